"""Files that the version before the modules moved into folders wrote: today's code reads them and
goes on with them.

`tests/reference/earlier_version.tar.xz` holds them, with what that version read back from them;
`tests/reference/earlier_version.md` says how they were made.
"""

import json
import math
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from helpers.batches import take
from helpers.runs import records
from var_jax import Pipeline
from var_jax.cli.main import main
from var_jax.config.strict import build
from var_jax.config.train import TrainConfig
from var_jax.data import token_cache
from var_jax.errors import UserError
from var_jax.train.workdir import refuse_another_run

ARCHIVE = Path(__file__).parent / "reference" / "earlier_version.tar.xz"
RUN = """
from var_jax.config.train import default_config

def get_config(arg="d1"):
    config = default_config()
    config.stage = "tokenizer" if arg == "tokenizer" else "transformer"
    config.seed, config.steps, config.batch_size = 3, 4, 8
    config.log_every, config.checkpoint_every, config.keep_checkpoints = 1, 2, 1
    config.eval_every, config.eval_images, config.sample_classes = 4, 16, 2
    config.ema = 0.9
    config.data.update(dict(train_split="train[:64]", eval_split="test[:16]", resize="whole"))
    config.optimizer.update(dict(base_lr=0.1, schedule="cosine", eps=1e-3))
    config.tokenizer.update(dict(
        scales="1,2,3x4", in_channels=1, channels=4, multipliers=(1, 2), blocks=1, attention=False,
        mid_attention=False, norm_groups=4, z_channels=4, vocab_size=16, phi=2))
    if config.stage == "tokenizer":
        config.adversarial.update(dict(
            weight=0.2, start=1, warmup=2, channels=8, layers=1, lecam=0.01))
        config.codebook.update(dict(init="sampled", revive_threshold=0.1, entropy=0.005))
    config.transformer.update(dict(depth=1, width=16, heads=2, num_classes=10))
    return config
"""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """The directory in which the earlier version worked."""
    directory = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(directory, filter="data")
    (directory / "run.py").write_text(RUN)
    return directory


@pytest.fixture(scope="module")
def expected(earlier) -> dict[str, np.ndarray]:
    """What the earlier version read, encoded and sampled."""
    return {
        name: array
        for file in ("expected.npz", "expected_tokens.npz")
        for name, array in np.load(earlier / file).items()
    }


@pytest.mark.long
def test_pipeline_samples_and_encodes_as_the_earlier_version(earlier, expected):
    """The model directory gives the logits, tokens, images and codes that it gave: parameters are
    found under their names, and neither the networks nor the random numbers have changed. top_p is
    off, as its cut may fall between codes that only rounding tells apart."""
    model = Pipeline.from_pretrained(earlier / "model")
    labels, settings = expected["labels"], {"seed": 5, "cfg": 1.5, "top_k": 5, "top_p": 0}
    images, tokens = model.sample(labels, return_tokens=True, **settings)
    np.testing.assert_array_equal(tokens, expected["tokens"])
    np.testing.assert_allclose(images, expected["images"], atol=1e-5)
    np.testing.assert_allclose(model.logits(tokens, labels), expected["logits"], atol=1e-6)
    np.testing.assert_array_equal(model.encode(expected["images"] * 2 - 1), expected["codes"])


@pytest.mark.long
@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_train_resumes_a_workdir_of_the_earlier_version(
    earlier, digits_dir, tmp_path, stage, monkeypatch
):
    """A run that was interrupted after step 2 of 4 ends with the losses that the earlier version
    had in an uninterrupted run: parameters, optimizer, average, and of a tokenizer the
    discriminator and the codes' usage are all found. Rounding may differ between processors."""
    # This process has used JAX already, and can join no others.
    monkeypatch.setenv("SLURM_NTASKS", "1")
    workdir = tmp_path / "run"
    shutil.copytree(earlier / f"{stage}_run", workdir)
    config = f"{earlier / 'run.py'}{':tokenizer' if stage == 'tokenizer' else ''}"
    flags = [f"--config.data.data_dir={digits_dir}"]
    assert main(["train", "--config", config, "--workdir", str(workdir), *flags]) == 0
    losses = json.loads((earlier / "expected.json").read_text())["losses"][stage]
    resumed = records(workdir)
    assert [(r["step"], r["split"]) for r in resumed] == [(r["step"], r["split"]) for r in losses]
    for record, before in zip(resumed, losses, strict=True):
        for name in ("loss", "grad_norm", "discriminator_loss", "psnr", "loss_mean"):
            if name in before:
                assert record[name] == pytest.approx(before[name], rel=1e-3), (record, name)
    assert json.loads((workdir / "status.json").read_text())["restarts"] == 1
    assert math.isfinite(resumed[-1]["loss"])


def test_workdir_of_the_earlier_version_is_of_the_same_run_by_the_name_of_today(earlier):
    """The earlier version called data.resize "stretch" "whole", as its config.json has it."""
    workdir = earlier / "tokenizer_run"
    values = json.loads((workdir / "config.json").read_text())
    assert values["data"]["resize"] == "whole"
    for resize in ("whole", "stretch"):
        data = {**values["data"], "resize": resize}
        refuse_another_run(epath.Path(workdir), build(TrainConfig, {**values, "data": data}))
    data = {**values["data"], "resize": "crop"}
    with pytest.raises(UserError, match="data.resize: crop here, stretch there"):
        refuse_another_run(epath.Path(workdir), build(TrainConfig, {**values, "data": data}))


def test_token_cache_of_the_earlier_version_gives_the_same_batches(earlier, expected):
    """The batches are two views of 64 images in the order of a run of seed 5, and the held-out
    ones, as the earlier version read them."""
    cache = token_cache.open_cache(earlier / "tokens")
    train = take(token_cache.train_batches(cache, 8, 5), len(expected["train"]))
    np.testing.assert_array_equal([b["tokens"] for b in train], expected["train"])
    np.testing.assert_array_equal([b["label"] for b in train], expected["train_labels"])
    (held_out,) = take(token_cache.eval_batches(cache, 16), 1)
    np.testing.assert_array_equal(held_out["tokens"], expected["test"])


def test_generate_finds_a_sample_set_of_the_earlier_version_finished(earlier, capsys):
    """The same command has nothing to do: the model's fingerprint, the settings and the labels are
    those that the file was written with."""
    out = earlier / "samples.npz"
    before = out.read_bytes()
    settings = ["--num", "12", "--seed", "7", "--out", str(out)]
    assert main(["generate", "--model", str(earlier / "model"), *settings]) == 0
    assert out.read_bytes() == before
    assert main(["generate", "--model", str(earlier / "model"), *settings, "--cfg", "2"]) == 2
    assert "cfg" in capsys.readouterr().err
