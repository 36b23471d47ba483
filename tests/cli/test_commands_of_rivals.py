"""Every command that takes a model or a config works for each rival of next-scale prediction, or
says in one line why it does not."""

import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from helpers import diffusion, masked, next_token
from helpers.commands import run
from var_jax import Pipeline
from var_jax.cli.main import main
from var_jax.demo import page, session
from var_jax.perf import roofline
from var_jax.scaling import sweep_runs

MODELS = {
    "next_token": next_token.pipeline,
    "masked": masked.pipeline,
    "diffusion": diffusion.pipeline,
}
CONFIG_FILE = """
from var_jax.config.train import default_config

def get_config(arg="next_token"):
    config = default_config()
    config.stage = "tokenizer" if arg == "tokenizer" else "transformer"
    config.steps, config.batch_size, config.eval_images, config.sample_classes = 2, 8, 8, 2
    config.data.name, config.data.resize, config.data.data_dir = "digits", "stretch", DATA_DIR
    config.tokenizer.update(dict(
        scales="4", in_channels=1, channels=8, multipliers=(1, 2), blocks=1, attention=False,
        mid_attention=False, norm_groups=4, z_channels=4, vocab_size=16, phi=2))
    config.transformer.update(dict(depth=1, width=16, heads=2, num_classes=10))
    if arg != "tokenizer":
        config.transformer.objective = arg
    return config

def get_sweep(arg=""):
    return [{"transformer.depth": depth} for depth in (1, 2)]
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A directory of each objective's small model, {objective: directory}."""
    directory = tmp_path_factory.mktemp("models")
    for objective, pipeline in MODELS.items():
        pipeline().save(directory / objective)
    return {objective: directory / objective for objective in MODELS}


@pytest.fixture
def config_file(digits_dir, tmp_path):
    file = tmp_path / "rivals.py"
    file.write_text(CONFIG_FILE.replace("DATA_DIR", repr(str(digits_dir))))
    return file


@pytest.fixture
def image(models, tmp_path):
    """A picture at the size of every objective's small model."""

    def write(objective):
        shape = MODELS[objective]().config.tokenizer.image_shape
        pixels = np.random.default_rng(0).integers(0, 256, shape[:2], dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "image.png")
        return tmp_path / "image.png"

    return write


@pytest.mark.long
@pytest.mark.parametrize("objective", MODELS)
def test_commands_of_a_model_work_for_every_objective(objective, models, image, capsys, tmp_path):
    """`sample`, `reconstruct` and `merge` write what they name; `edit` does where the model edits,
    and is otherwise refused with the objectives that do, as pictures of scales are."""
    model, picture = models[objective], image(objective)
    sampled, edited = tmp_path / "sampled.png", tmp_path / "edited.png"
    run(capsys, "sample", "--model", model, "--labels", "0-3", "--num", 4, "--out", sampled)
    rebuilt = tmp_path / "rebuilt.png"
    run(capsys, "reconstruct", "--model", model, "--images", picture, "--out", rebuilt)
    assert sampled.exists() and rebuilt.exists()

    strip = ["sample", "--model", model, "--labels", 0, "--strip", "s.png", "--out", sampled]
    assert main([str(argument) for argument in strip]) == 2
    assert "--strip is s.png; it must be left out" in capsys.readouterr().err

    out = tmp_path / "merged"
    run(capsys, "merge", "--base", model, "--tuned", model, "--weight", 0.5, "--out", out)
    merged, before = Pipeline.from_pretrained(out), Pipeline.from_pretrained(model)
    assert merged.config == before.config

    edit = ["edit", "--model", model, "--image", picture, "--box", "0,0,0.5,0.5", "--out", edited]
    if objective == "masked":
        run(capsys, *edit)
        assert edited.exists()
        return
    assert main([str(argument) for argument in edit]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "'masked'" in error and f"'{objective}'" in error
    assert not edited.exists()


@pytest.mark.long
@pytest.mark.parametrize("objective", MODELS)
def test_page_generates_with_every_objective(objective, models):
    """The page is built, its button returns the image of `sample`, and the editor does where the
    model edits; nothing of it asks a model without scales for them."""
    model = Pipeline.from_pretrained(models[objective])
    classes = session.class_choices(model.config, model.class_names)
    page.build(model, classes, objective)
    cfg = model.sampling_settings()["cfg"]
    _, image, *_ = page.Handlers(model, classes).generate(3, 1, "fid", cfg)
    np.testing.assert_array_equal(image, model.sample([3], seed=1, as_uint8=True)[0])
    assert model.edits == (objective == "masked")
    if model.edits:
        mask = np.zeros(image.shape[:2], bool)
        mask[:4, :4] = True
        choices = session.Choices(3, 1, "fid", cfg)
        edited = session.redraw(model, image, mask, choices, keep_scales=None)
        np.testing.assert_array_equal(edited[~mask], image[~mask])


@pytest.mark.long
@pytest.mark.parametrize("objective", MODELS)
def test_commands_of_a_config_work_for_every_objective(
    objective, models, config_file, capsys, tmp_path
):
    """`config` prints the objective, and a dry run of a sweep a row for each run; neither writes
    anything."""
    config, workdir = f"{config_file}:{objective}", tmp_path / "sweep"
    assert objective in run(capsys, "config", config, "--diff")
    flags = [f"--config.tokenizer_dir={models[objective]}"]
    text = run(capsys, "sweep", "--config", config, "--workdir", workdir, "--dry-run", *flags)
    assert "depth=2" in text and not workdir.exists()


@pytest.mark.study
@pytest.mark.parametrize("objective", MODELS)
def test_run_of_every_objective_from_quickstart_to_its_evaluation(
    objective, config_file, digits_dir, capsys, tmp_path, monkeypatch
):
    """Both stages, samples, the tokenizer's evaluation, `status`, the row that `fit` reads, a token
    cache and a run from it, and the two benchmarks of speed; each writes or prints what it should,
    and a token cache is refused where the objective has no tokens."""
    work, config = tmp_path / "run", f"{config_file}:{objective}"
    tokenizer = f"{config_file}:tokenizer"
    run(
        capsys,
        *("quickstart", "--config", config, "--tokenizer-config", tokenizer),
        *("--workdir", work, "--samples", 20),
    )
    assert json.loads((work / "report.json").read_text())["samples"]["count"] == 20

    samples, report = tmp_path / "samples.npz", tmp_path / "report.json"
    reference = ["--reference", "digits:test[:64]", "--resize", "stretch", "--data-dir", digits_dir]
    run(capsys, "generate", "--model", work, "--num", 24, "--out", samples)
    with np.load(samples) as arrays:
        assert arrays["arr_0"].shape == (24, 8, 8, 1)
    run(capsys, "evaluate", "--model", work, *reference, "--json", report)
    assert "psnr" in json.loads(report.read_text())["metrics"]
    assert "2/2" in run(capsys, "status", work / "transformer-run")
    rows = sweep_runs.read_rows(epath.Path(work), [], [])
    (row,) = (row for row in rows if row["run"] == "transformer-run")
    assert all(row[name] > 0 for name in ("params", "tokens", "compute", "loss"))

    cache = tmp_path / "cache"
    run(
        capsys,
        *("tokenize", "--config", tokenizer, "--model", work / "tokenizer-run", "--out", cache),
    )
    from_cache = [
        *("train", "--config", config, f"--config.data.tokens_dir={cache}"),
        *("--workdir", tmp_path / "from_cache"),
    ]
    if objective == "diffusion":
        assert main([str(argument) for argument in from_cache]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "data.tokens_dir" in error
    else:
        run(capsys, *from_cache)
    monkeypatch.setitem(roofline.MATRIX, "cpu", 64)
    for what in ("sample", "train"):
        assert "FLOP" in run(capsys, "bench", what, "--config", config, "--batch", 8)
