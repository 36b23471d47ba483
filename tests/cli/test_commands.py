"""What every command says in its help and leaves on the disk."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image

from helpers import small, tiles
from helpers.commands import run
from helpers.files import contents
from helpers.runs import NoEvaluator
from var_jax import Pipeline
from var_jax.cli.main import COMMANDS, main
from var_jax.io.pictures import to_uint8
from var_jax.io.torch_file import read_tensors
from var_jax.train import evaluation


def pixels(path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_the_options_and_shows_an_example(capsys, name):
    """Each command's help ends well and has an example that begins with the command."""
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "example:\n" in text and f"  var-jax {name} " in text.partition("example:\n")[2]


def test_help_lists_the_commands(capsys):
    """No argument, --help and -h list every command."""
    for argv in ([], ["--help"], ["-h"]):
        text = run(capsys, *argv)
        assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.long
def test_sample_writes_a_grid(capsys, model_dir, tmp_path):
    """The picture is written into a directory that is made for it, the same seed gives the same
    picture, another seed another, and no other file is left."""
    out = tmp_path / "new" / "samples.png"
    assert run(
        capsys,
        "sample",
        "--model",
        model_dir,
        "--labels",
        "0,3-4",
        "--num",
        6,
        "--seed",
        5,
        "--out",
        out,
    ) == (f"6 images in {out}\n")
    grid = pixels(out)
    again = tmp_path / "again.png"
    run(
        capsys,
        "sample",
        "--model",
        model_dir,
        "--labels",
        "0,3-4",
        "--num",
        6,
        "--seed",
        5,
        "--out",
        again,
    )
    np.testing.assert_array_equal(pixels(again), grid)
    run(
        capsys,
        "sample",
        "--model",
        model_dir,
        "--labels",
        "0,3-4",
        "--num",
        6,
        "--seed",
        6,
        "--out",
        again,
    )
    assert not np.array_equal(pixels(again), grid)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again.png", "new"]


@pytest.mark.long
def test_sample_takes_a_model_on_the_hub(capsys, model_dir, hub, tmp_path):
    """A model's address gives the picture that its directory gives."""
    hub.commits["owner/small"] = [contents(model_dir)]
    options = ("--labels", "0,3-4", "--num", 6, "--seed", 5, "--out")
    run(capsys, "sample", "--model", "hf://owner/small", *options, tmp_path / "hub.png")
    run(capsys, "sample", "--model", model_dir, *options, tmp_path / "own.png")
    np.testing.assert_array_equal(pixels(tmp_path / "hub.png"), pixels(tmp_path / "own.png"))


@pytest.mark.long
def test_reconstruct_shows_the_original_beside_every_scale(capsys, model_dir, image, tmp_path):
    """The strip's tiles are, pixel for pixel and from left to right, the image and the pipeline's
    reconstructions from one, two and three scales."""
    out = tmp_path / "rec.png"
    text = run(
        capsys,
        "reconstruct",
        "--model",
        model_dir,
        "--images",
        image,
        "--resize",
        "stretch",
        "--out",
        out,
    )
    images = pixels(image).astype(np.float32)[None, ..., None] / 127.5 - 1
    steps = Pipeline.from_pretrained(model_dir).reconstruct(images)
    psnr = -10 * np.log10(np.mean((steps[-1] - images) ** 2) / 4)
    assert text == f"1 images in {out}; PSNR {psnr:.2f} dB\n"
    with Image.open(out) as strip:
        places = [tiles.corner(strip, pixels(image)[..., None])]
        places += [tiles.corner(strip, to_uint8((step + 1) / 2)[0]) for step in steps]
    tops, lefts = zip(*places, strict=True)
    assert len(places) == 4 and len(set(tops)) == 1 and list(lefts) == sorted(set(lefts))


@pytest.mark.long
def test_edit_by_box_is_that_by_the_same_mask(capsys, model_dir, image, tmp_path):
    """A box and a mask of its pixels give the same picture, which is the pipeline's edit;
    --outpaint gives another."""
    edit = (
        "edit",
        "--model",
        model_dir,
        "--image",
        image,
        "--resize",
        "stretch",
        "--label",
        3,
        "--seed",
        1,
        "--out",
    )
    by_box, by_mask, outside = (tmp_path / f"{name}.png" for name in ("box", "mask", "outside"))
    assert run(capsys, *edit, by_box, "--box", "0,0,0.67,0.5") == f"edited image in {by_box}\n"
    mask = np.zeros((6, 8), np.uint8)
    mask[:4, :4] = 255
    Image.fromarray(mask).save(tmp_path / "white.png")
    run(capsys, *edit, by_mask, "--mask", tmp_path / "white.png")
    np.testing.assert_array_equal(pixels(by_mask), pixels(by_box))
    run(capsys, *edit, outside, "--box", "0,0,0.67,0.5", "--outpaint")
    assert not np.array_equal(pixels(outside), pixels(by_box))
    images = pixels(image).astype(np.float32)[None, ..., None] / 127.5 - 1
    expected = Pipeline.from_pretrained(model_dir).edit(
        images, mask == 0, [3], seed=1, composite=True
    )[0, ..., 0]
    assert pixels(by_box).shape == (6, 8)  # gray, as the image is
    np.testing.assert_allclose(pixels(by_box), expected * 255, atol=0.51)


@pytest.mark.long
def test_conversion_there_and_back(capsys, tmp_path):
    """A model converted to PyTorch's files and back has the same config and, array by array, the
    same weights; --dtype and --cosine-codes act on what is converted."""
    expected, _, _ = small.reference("small_l2norm")
    torch, back, scales = tmp_path / "torch", tmp_path / "back", expected.config.tokenizer.scales
    expected.save(tmp_path / "model")
    text = run(capsys, "convert", "--to-torch", "--model", tmp_path / "model", "--out", torch)
    assert f"written to {torch}; to load it again:" in text and f"--scales {scales} " in text
    assert sorted(f.name for f in torch.iterdir()) == [
        "tokenizer.safetensors",
        "transformer.safetensors",
    ]
    run(
        capsys,
        "convert",
        "--tokenizer",
        torch / "tokenizer.safetensors",
        "--transformer",
        torch / "transformer.safetensors",
        "--scales",
        scales,
        "--out",
        back,
    )
    loaded = Pipeline.from_pretrained(back)
    for before, after in zip(expected.to_torch(), loaded.to_torch(), strict=True):
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[key], after[key]) for key in before)
    assert loaded.config == expected.config
    assert len(dict(read_tensors(torch / "tokenizer.safetensors"))) == len(
        expected.to_torch(with_buffers=True)[0]
    )
    run(
        capsys,
        "convert",
        "--tokenizer",
        torch / "tokenizer.safetensors",
        "--scales",
        scales,
        "--dtype",
        "bfloat16",
        "--cosine-codes",
        "--out",
        tmp_path / "half",
    )
    half = Pipeline.from_pretrained(tmp_path / "half")
    assert half.config.transformer is None and half.config.tokenizer.codes == "cosine"
    assert half.params["tokenizer"]["quantize"]["codebook"].dtype == "bfloat16"


@pytest.mark.long
def test_convert_says_which_flags_bring_a_model_back(capsys, model_dir, tmp_path):
    """The printed command converts the weights to a model that encodes and decodes as the one
    before: scales and group sizes cannot be read off weights."""
    torch, again = tmp_path / "torch", tmp_path / "again"
    text = run(capsys, "convert", "--to-torch", "--model", model_dir, "--out", torch)
    words = text.strip().splitlines()[-1].split()[1:]
    assert words[words.index("--scales") + 1] == str(small.SCALES)
    run(capsys, *(again if word == "MODEL" else word for word in words))
    original, loaded = Pipeline.from_pretrained(model_dir), Pipeline.from_pretrained(again)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 6, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(loaded.encode(images), original.encode(images))
    np.testing.assert_array_equal(
        loaded.decode(loaded.encode(images)), original.decode(original.encode(images))
    )


@pytest.mark.long
def test_training_and_sampling_from_the_workdir(
    capsys, digits_dir, model_dir, tmp_path, monkeypatch
):
    """Two steps of each stage by the command line; the transformer's workdir is a whole model: the
    picture shows the image that a pipeline loaded from there samples."""
    monkeypatch.setenv(
        "SLURM_NTASKS", "1"
    )  # alone: this process has used JAX, and cannot join others any more
    file = tmp_path / "small_run.py"
    file.write_text(small.CONFIG_FILE)
    common = (
        f"--config.data.data_dir={digits_dir}",
        f"--config.init_from={model_dir}",
        "--config.ema=0.5",
    )
    assert (
        main(
            [
                "train",
                "--config",
                f"{file}:tokenizer",
                "--workdir",
                str(tmp_path / "tokenizer"),
                *common,
            ]
        )
        == 0
    )
    lines = capsys.readouterr().err.splitlines()
    first = next(
        i for i, line in enumerate(lines) if line.startswith("training the tokenizer on digits; ")
    )
    assert lines[first + 1].startswith("step 1/2, loss ") and lines[-6].startswith(
        "step 2/2, loss "
    )
    assert "evaluating" in lines[-5] and lines[-4].startswith("step 2/2, held-out loss ")
    assert lines[-3].startswith("wall time ")
    assert (
        "held-out PSNR" in lines[-2]
        and f"{tmp_path / 'tokenizer' / 'samples' / 'step_0000002.png'}" in lines[-2]
    )
    _, program, *following = shlex.split(lines[-1])
    assert program == "var-jax" and following[-2:] == [
        "--workdir",
        f"{tmp_path / 'tokenizer'}-transformer",
    ]
    with monkeypatch.context() as patch:  # one evaluation is enough, and takes the longest
        patch.setattr(evaluation, "Evaluator", NoEvaluator)
        run(capsys, *following[:-1], tmp_path / "run", *common)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["stage"], config["ema"], config["steps"]) == ("transformer", 0.5, 2)
    run(
        capsys,
        "sample",
        "--model",
        tmp_path / "run",
        "--labels",
        "1",
        "--out",
        tmp_path / "one.png",
    )
    sample = Pipeline.from_pretrained(tmp_path / "run").sample([1], as_uint8=True)
    with Image.open(tmp_path / "one.png") as picture:
        tiles.corner(picture, sample[0])
