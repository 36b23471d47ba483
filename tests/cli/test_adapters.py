"""`--adapter`: its text, the lines that refuse it, and images of an adapted model."""

import argparse

import numpy as np
import pytest
from PIL import Image

from helpers import adapters, masked
from helpers.commands import run
from var_jax import Pipeline
from var_jax.cli.adapters import parse
from var_jax.io import pictures


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The directory of a tiny model of masked prediction."""
    directory = tmp_path_factory.mktemp("base") / "model"
    masked.pipeline().save(directory)
    return directory


@pytest.fixture(scope="module")
def mug(tmp_path_factory):
    """An adapter of that model with a new class."""
    directory = tmp_path_factory.mktemp("adapter") / "mug"
    return adapters.random_adapter(directory, masked.pipeline(), 0, classes="mug")


def test_parse_reads_directories_and_weights(tmp_path, monkeypatch):
    """W may be left out and may be negative; a directory whose name ends like a weight is taken
    whole, and what is no number is named."""
    monkeypatch.chdir(tmp_path)
    assert parse("runs/mug") == ("runs/mug", 1.0)
    assert parse("runs/mug=-0.5") == ("runs/mug", -0.5)
    (tmp_path / "lr=0.1").mkdir()
    assert parse("lr=0.1") == ("lr=0.1", 1.0)
    assert parse("lr=0.1=2") == ("lr=0.1", 2.0)
    assert parse("gs://bucket/lr=a/mug") == ("gs://bucket/lr=a/mug", 1.0)
    for text in ("runs/mug=much", "=0.5"):
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            parse(text)


def test_sample_refuses_adapters_in_one_line(base, mug, model_dir, tmp_path, refused):
    """A weight that is no finite number, a directory without an adapter, an adapter of another
    model, and an adapter in place of a model."""
    out = ("--labels", "3", "--out", "{out}")
    assert "'much'" in refused("sample", "--model", base, "--adapter", f"{mug}=much", *out)
    assert "finite" in refused("sample", "--model", base, "--adapter", f"{mug}=nan", *out)
    assert f"no adapter in {base}" in refused("sample", "--model", base, "--adapter", base, *out)
    assert "is of the base" in refused("sample", "--model", model_dir, "--adapter", mug, *out)
    assert f"--adapter {mug}" in refused("sample", "--model", mug, *out)
    unknown = ("--labels", "cup", "--out", "{out}")
    assert "'cup'" in refused("sample", "--model", base, "--adapter", mug, *unknown)
    samples = ("evaluate", "--samples", "x.npz", "--reference", "y.npz", "--adapter", mug)
    assert "--adapter is given with --samples" in refused(*samples)


@pytest.mark.long
def test_generate_and_edit_add_several_adapters(base, mug, tmp_path, capsys):
    """With two adapters, one of them negative, both commands give the images that Python gives, and
    other ones than without the second."""
    bowl = adapters.random_adapter(tmp_path / "bowl", masked.pipeline(), 1)
    both = ("--adapter", mug, "--adapter", f"{bowl}=-0.5")
    model = Pipeline.from_pretrained(base).with_adapter(mug)
    adapted = model.with_adapter(bowl, -0.5)
    settings = {"cfg": 0, "steps": 2}
    flags = ("--cfg", "0", "--steps", "2")

    samples = tmp_path / "samples.npz"
    run(capsys, "generate", "--model", base, *both, "--num", 11, *flags, "--out", samples)
    with np.load(samples) as arrays:
        generated = {image.tobytes() for image in arrays["arr_0"]}
    expected, other = (
        {image.tobytes() for image in one.sample(range(11), as_uint8=True, **settings)}
        for one in (adapted, model)
    )
    assert generated == expected != other

    side = adapted.config.tokenizer.image_shape[0]
    pixels = np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)
    source, edited = tmp_path / "source.png", tmp_path / "edited.png"
    Image.fromarray(pixels).save(source)
    box = ("--box", "0,0,0.5,1", "--label", "mug")
    run(capsys, "edit", "--model", base, *both, "--image", source, *box, *flags, "--out", edited)
    plain = tmp_path / "plain.png"
    one = ("--adapter", mug)
    run(capsys, "edit", "--model", base, *one, "--image", source, *box, *flags, "--out", plain)
    assert edited.read_bytes() != plain.read_bytes()


@pytest.mark.long
def test_sample_draws_a_new_class_by_its_name(base, mug, tmp_path, capsys):
    """The command's image is that of the adapted model, in Python by the same name."""
    image = tmp_path / "mug.png"
    weighted = f"{mug}=0.5"
    flags = ("--adapter", weighted, "--labels", "mug", "--cfg", "0", "--steps", "2")
    printed = run(capsys, "sample", "--model", base, *flags, "--out", image)
    assert "10 mug" in printed
    model = Pipeline.from_pretrained(base).with_adapter(mug, 0.5)
    expected = model.sample(["mug"], cfg=0, steps=2, as_uint8=True)
    grid = pictures.grid(expected, columns=1, titles=["mug"])
    np.testing.assert_array_equal(np.asarray(Image.open(image)), np.asarray(grid))


@pytest.mark.long
def test_sample_warns_where_learned_guidance_would_be_guided_again(base, tmp_path, caplog, capsys):
    """The preset has guidance; with --cfg 0, as the end of the training proposes, there is no
    warning."""
    guided = adapters.random_adapter(tmp_path / "guided", masked.pipeline(), 2, cfg="1.5")
    options = ("sample", "--model", base, "--adapter", guided, "--labels", 0, "--steps", 2)
    run(capsys, *options, "--cfg", 0, "--out", tmp_path / "one.png")
    assert "guides them again" not in caplog.text
    run(capsys, *options, "--out", tmp_path / "two.png")
    assert "has learned the predictions of guidance 1.5" in caplog.text
