"""A mistake in weights, settings or images is one line on stderr that names it, exit code 2."""

import shutil

import numpy as np
import pytest
from PIL import Image

from helpers import small
from reference import torch_writer

NOT_A_MODEL = "model directory"


@pytest.mark.long
def test_convert_refuses_scales_of_other_weights(refused, weights):
    """The line has what the weights hold and what the scales ask for."""
    convert = (
        "convert",
        "--tokenizer",
        weights / "tokenizer.safetensors",
        "--transformer",
        weights / "transformer.safetensors",
        "--out",
        "{out}",
        "--scales",
    )
    assert "scales is 1,2,3 (3 sizes); it must be 4 sizes" in refused(*convert, "1,2,3")
    assert "scales is 1,2,3,5 (39 tokens in all); it must be 30 tokens in all" in refused(
        *convert, "1,2,3,5"
    )
    assert "scale 2x2 follows 3x3" in refused(*convert, "1,3,2")
    assert "scale 'x' is not a size" in refused(*convert, "1,x")


def test_convert_names_what_it_misses(refused, weights, model_dir):
    """Flags and files that a conversion needs are named, each in one line."""
    assert "--tokenizer and --scales is missing; it must be given" in refused(
        "convert", "--out", "{out}"
    )
    assert "--model is None" in refused("convert", "--to-torch", "--out", "{out}")
    assert "no such file" in refused(
        "convert", "--tokenizer", "none.pth", "--scales", "1,2", "--out", "{out}"
    )
    assert "misses encoder.conv_in.weight" in refused(
        "convert",
        "--tokenizer",
        weights / "transformer.safetensors",
        "--scales",
        "1,2,3,4",
        "--out",
        "{out}",
    )
    assert NOT_A_MODEL in refused(
        "convert", "--to-torch", "--model", weights / "none", "--out", "{out}"
    )


def test_convert_refuses_a_pickle_that_would_run_code(refused, tmp_path):
    """The line has the name of the function that the file would call, and it is not called."""
    hostile, witness = tmp_path / "hostile.pth", tmp_path / "witness"
    torch_writer.write_zip(
        hostile, b"cos\nsystem\n(" + torch_writer.text(f"touch {witness}") + b"tR", {}
    )
    assert "os.system" in refused(
        "convert", "--tokenizer", hostile, "--scales", "1,2", "--out", "{out}"
    )
    assert not witness.exists()


def test_commands_refuse_a_checkpoint_cut_short(refused, tmp_path, model_dir):
    """Half a file is named in one line, whichever format it has."""
    full, short = tmp_path / "whole.pth", tmp_path / "short.pth"
    torch_writer.save(full, small.reference(small.CASES[0])[0].to_torch()[0])
    short.write_bytes(full.read_bytes()[:5000])
    assert "short.pth" in refused(
        "convert", "--tokenizer", short, "--scales", "1,2,3,4", "--out", "{out}"
    )
    for name, size in (
        ("transformer.safetensors", 3000),
        ("tokenizer.safetensors", 5),
        ("model.json", 40),
    ):
        damaged = tmp_path / name.partition(".")[0]
        shutil.copytree(model_dir, damaged)
        (damaged / name).write_bytes((damaged / name).read_bytes()[:size])
        assert name in refused("sample", "--model", damaged, "--labels", "1", "--out", "{out}.png")
    (damaged / "model.json").write_text('{"format": 1, "tokenizer": {"chanels": 3}}')
    assert "model.tokenizer.chanels; did you mean 'channels'" in refused(
        "sample", "--model", damaged, "--labels", "1", "--out", "{out}.png"
    )
    (damaged / "model.json").write_text(
        (model_dir / "model.json").read_text().replace('"format": 1', '"format": 2')
    )
    assert "is of format 2, and this version reads 1 to 1; update var-jax" in refused(
        "sample", "--model", damaged, "--labels", "1", "--out", "{out}.png"
    )
    (damaged / "model.json").write_text("[]")
    assert "model.json" in refused(
        "sample", "--model", damaged, "--labels", "1", "--out", "{out}.png"
    )
    (damaged / "model.json").write_text(
        (model_dir / "model.json").read_text().replace('"depth": 2', '"depth": 3')
    )
    assert "transformer.safetensors" in refused(
        "sample", "--model", damaged, "--labels", "1", "--out", "{out}.png"
    )
    (damaged / "model.json").unlink()
    assert "holds no model" in refused(
        "sample", "--model", damaged, "--labels", "1", "--out", "{out}.png"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("--labels", "11"), "label is 11; it must be from 0 to 9 (10: no class)"),
        (("--labels", "0-30"), "label is 11"),
        (("--labels", "-1"), "--labels"),
        (("--labels", "one"), "'one' is not a class id"),
        (("--labels", ""), "--labels"),
        (("--labels", "3-1", "--num", "4"), "--labels '3-1'"),
        (("--labels", "0-9999999999"), "'0-9999999999' goes beyond every model's classes"),
        (
            ("--labels", "1", "--num", "9999999999"),
            "--num is 9999999999; it must be from 0 to 1000000",
        ),
        (("--labels", "1", "--cfg", "-1"), "cfg is -1.0"),
        (("--labels", "1", "--cfg", "nan"), "cfg is nan"),
        (("--labels", "1", "--top-p", "1.5"), "top_p is 1.5; it must be from 0 to 1"),
        (("--labels", "1", "--top-p", "-0.5"), "top_p is -0.5"),
        (("--labels", "1", "--top-k", "-3"), "top_k is -3"),
        (("--labels", "1", "--temperature", "0"), "temperature is 0.0"),
        (("--labels", "1", "--seed", "-1"), "seed is -1"),
        (("--labels", "1", "--num", "-1"), "--num is -1"),
    ],
)
def test_sample_refuses_settings_by_name(refused, model_dir, settings, message):
    """The line has the setting, its value and the values that are allowed."""
    assert message in refused("sample", "--model", model_dir, "--out", "{out}.png", *settings)


def test_sample_refuses_a_tokenizer_alone(refused, model_dir, tmp_path):
    """A model directory without a transformer is refused with what it should be."""
    from var_jax import Pipeline
    from var_jax.config.model import ModelConfig

    model = small.pipeline()
    Pipeline(ModelConfig(small.TOKENIZER), {"tokenizer": model.params["tokenizer"]}).save(
        tmp_path / "alone"
    )
    assert "a tokenizer alone; it must be one with a transformer" in refused(
        "sample", "--model", tmp_path / "alone", "--labels", "1", "--out", "{out}.png"
    )


@pytest.mark.long
def test_edit_and_reconstruct_refuse_boxes_and_images_by_name(refused, model_dir, image, tmp_path):
    """Boxes, masks, labels and image files that cannot be used are named with what they should
    be."""
    edit = ("edit", "--model", model_dir, "--out", "{out}.png", "--image")
    for box in ("0,0,1", "a,b,c,d", "0.5,0,0.2,1", "0,0,1,1.5", "nan,0,1,1"):
        assert f"--box '{box}'" in refused(*edit, image, "--box", box)
    full = "at least one token of the 3x4 grid, 1/3 of the height by 1/4 of the width"
    for box in ("0.2,0.3,0.25,0.35", "0,0,1,0.05"):
        line = refused(*edit, image, "--box", box)
        assert (
            f"--box '{box}' is less than a token, so that nothing is generated; it must be {full}"
            in line
        )
        line = refused(*edit, image, "--box", box, "--outpaint")
        assert (
            f"--box '{box}' is less than a token, so that nothing is kept; it must be {full}"
            in line
        )
    line = refused(*edit, image, "--box", "0,0,1,1", "--outpaint")
    assert "the whole image, so that nothing is generated; it must be smaller" in line
    mask = np.zeros((6, 8), np.uint8)
    mask[2, 3] = 255
    Image.fromarray(mask).save(tmp_path / "dot.png")
    for region in ((), ("--outpaint",)):
        assert "dot.png is less than a token" in refused(
            *edit, image, "--mask", tmp_path / "dot.png", *region
        )
    assert "one of --mask, --box and --keep-scales is required" in refused(*edit, image)
    assert "label is 12" in refused(*edit, image, "--box", "0,0,1,1", "--label", "12")
    assert "no image file" in refused(*edit, tmp_path / "none.png", "--box", "0,0,1,1")
    assert "no image file" in refused(*edit, image, "--mask", tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not an image")
    assert "text.png does not decode" in refused(*edit, tmp_path / "text.png", "--box", "0,0,1,1")
    (tmp_path / "short.png").write_bytes(image.read_bytes()[:60])
    assert "short.png does not decode" in refused(*edit, tmp_path / "short.png", "--box", "0,0,1,1")
    reconstruct = ("reconstruct", "--model", model_dir, "--out", "{out}.png", "--images")
    assert "no files match" in refused(*reconstruct, tmp_path / "*.jpg")
    assert "does not decode" in refused(*reconstruct, tmp_path / "s*.png")
    Image.new("L", (30, 20)).save(tmp_path / "large.png")
    assert "large.png has 20 x 30 pixels" in refused(
        *reconstruct, tmp_path / "large.png", "--resize", "pad"
    )
