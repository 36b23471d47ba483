"""Channels and classes that a config leaves to its data: where they come from, and where they must
be known."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from helpers import small
from helpers.runs import fake_step
from var_jax.config.model import ModelConfig, TokenizerConfig, TransformerConfig
from var_jax.config.strict import plain
from var_jax.config.train import FIXED_SIZES, DataConfig
from var_jax.data import builders, sources, token_manifest
from var_jax.errors import UserError
from var_jax.models import flops
from var_jax.train import data_sizes, step
from var_jax.train.loop import train

LEFT = {
    "tokenizer": dataclasses.replace(small.TOKENIZER, in_channels=0),
    "transformer": dataclasses.replace(small.TRANSFORMER, num_classes=0),
}


def folder(root, mode: str, classes=("cat", "dog", "owl"), images=4) -> DataConfig:
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(images):
            Image.fromarray(np.full((6, 8, 3), 30 * i, np.uint8)).convert(mode).save(
                root / name / f"{i}.png"
            )
    return DataConfig(
        "image_folder", source_dir=str(root), data_dir=f"{root}-tfds", resize="stretch"
    )


def config(data, stage="transformer", **changes):
    return small.train_config(stage, "", **{**LEFT, "data": data, **changes})


def sizes(run) -> tuple[int, int]:
    return run.tokenizer.in_channels, run.transformer.num_classes


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("RGB", 3), ("L", 1), ("LA", 1), ("I;16", 1), ("1", 1), ("P", 3), ("RGBA", 3)],
)
def test_data_sizes_of_an_image_folder(tmp_path, mode, channels):
    """Each kind of file has the channels that `transforms.decode` gives it, and one image in color
    among gray ones makes a set in color."""
    data = folder(tmp_path / "photos", mode)
    run = config(data)
    assert run.left_to_data == ["tokenizer.in_channels", "transformer.num_classes"]
    assert sizes(data_sizes.from_data(run)) == (channels, 3)
    assert sources.open_split(data, "train")[0]["image"].shape[-1] == channels
    Image.new("RGB", (6, 8)).save(tmp_path / "photos" / "owl" / "z.png")
    assert sizes(data_sizes.from_data(run)) == (3, 3)


def test_data_sizes_keep_what_a_config_gives(tmp_path):
    """Given sizes win over the data's, and data that are not needed are not opened."""
    data = folder(tmp_path / "photos", "RGB")
    assert sizes(data_sizes.from_data(config(data, tokenizer=small.TOKENIZER))) == (1, 3)
    settings = config(data, transformer=small.TRANSFORMER, tokenizer=small.TOKENIZER)
    assert (
        data_sizes.from_data(dataclasses.replace(settings, data=DataConfig("nowhere"))).left_to_data
        == []
    )


def test_fixed_sizes_are_those_of_the_data(digits_dir):
    """The table of sizes that need no reading agrees with the data sets it names."""
    split = sources.open_split(DataConfig("digits", data_dir=str(digits_dir)), "train")
    expected = {
        "digits": (split[0]["image"].shape[-1], len(split.class_names)),
        "fashion_mnist_idx": (1, len(builders.FASHION_CLASSES)),
    }
    assert expected == FIXED_SIZES


def test_data_sizes_of_an_unprepared_tfds_data_set():
    """The sizes of ImageNet and MNIST, which are not prepared here, are known all the same."""
    assert sizes(data_sizes.from_data(config(DataConfig("imagenet2012")))) == (3, 1000)
    assert sizes(data_sizes.from_data(config(DataConfig("mnist")))) == (1, 10)


def test_data_sizes_of_a_token_cache(tmp_path):
    """Channels and classes come from the cache's manifest, without the images."""
    manifest = token_manifest.Manifest(
        "abc", "image_folder", "crop", (8, 8, 3), small.SCALES, 16, ("a", "b"), 0
    )
    (tmp_path / "manifest.json").write_text(json.dumps(plain(manifest)))
    run = config(DataConfig("image_folder", tokens_dir=str(tmp_path)))
    assert sizes(data_sizes.from_data(run)) == (3, 2)


def test_data_sizes_of_a_resumed_run_are_those_of_its_start(tmp_path):
    """A run of an earlier version, whose config gave ten classes, goes on although its data have
    three."""
    data = folder(tmp_path / "photos", "RGB")
    (tmp_path / "config.json").write_text(
        json.dumps({"tokenizer": {"in_channels": 1}, "transformer": {"num_classes": 10}})
    )
    assert sizes(data_sizes.from_data(config(data), tmp_path)) == (1, 10)
    for broken in ("{", "[]", '{"tokenizer": 3, "transformer": {"num_classes": "x"}}', "{}"):
        (tmp_path / "config.json").write_text(broken)
        assert sizes(data_sizes.from_data(config(data), tmp_path)) == (3, 3)


def test_data_sizes_name_missing_data_with_the_keys(tmp_path):
    """The error has the folder and the keys that could be set instead."""
    run = config(DataConfig("image_folder", source_dir=str(tmp_path / "none")))
    with pytest.raises(UserError) as error:
        data_sizes.from_data(run)
    assert all(text in str(error.value) for text in (str(tmp_path / "none"), *run.left_to_data))


@pytest.mark.parametrize(
    ("use", "key"),
    [
        (lambda: LEFT["tokenizer"].image_shape, "tokenizer.in_channels"),
        (lambda: flops.tokenizer_train_flops(LEFT["tokenizer"]), "tokenizer.in_channels"),
        (lambda: flops.param_count(LEFT["transformer"]), "transformer.num_classes"),
        (lambda: ModelConfig(LEFT["tokenizer"]), "tokenizer.in_channels"),
        (lambda: ModelConfig(small.TOKENIZER, LEFT["transformer"]), "transformer.num_classes"),
        (lambda: TokenizerConfig(in_channels=2), "tokenizer.in_channels is 2"),
        (lambda: TransformerConfig(num_classes=-1), "transformer.num_classes is -1"),
    ],
)
def test_config_names_sizes_that_are_needed_and_not_known(use, key):
    """Each use of a size that is still open names the key to set."""
    with pytest.raises(UserError, match=key):
        use()


@pytest.mark.long
@pytest.mark.usefixtures("compiled_once", "unevaluated")
def test_train_on_a_color_folder_is_in_color(tmp_path, monkeypatch):
    """The config does not give the channels, and the run's config.json has those of its images. The
    step of this test learns nothing, as compiling a real one would show nothing of sizes."""
    monkeypatch.setattr(step, "make_train_step", fake_step())
    data = folder(tmp_path / "photos", "RGB", images=8)
    train(config(data, "tokenizer", steps=1), tmp_path / "run")
    parsed = json.loads((tmp_path / "run" / "config.json").read_text())
    assert parsed["tokenizer"]["in_channels"] == 3
