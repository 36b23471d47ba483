"""Whole runs of adapters: resumed bit for bit, their file, and their workdir."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from helpers import adapters, masked, small
from helpers.runs import assert_resumes_bit_for_bit, weights
from var_jax import Pipeline
from var_jax.adapters import adapter_file
from var_jax.config.train import DataConfig
from var_jax.errors import UserError
from var_jax.train.loop import train

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images of one old class and a new one."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("3", "mug"):
        (folder / name).mkdir()
        for i in range(4):
            pixels = random.integers(0, 256, small.TOKENIZER.image_shape[:2], dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.long
def test_train_resumes_an_adapter_bit_for_bit(photos, unevaluated, tmp_path, monkeypatch):
    """A run that was stopped and resumed has every number of one that was not. Its checkpoints hold
    nothing of the frozen model; its file is of the averaged numbers, and merges into the model. The
    workdir is no model by itself, and does not go on over another one."""
    data = DataConfig(
        "image_folder", data_dir=str(tmp_path / "tfds"), source_dir=str(photos), resize="stretch"
    )
    base = tmp_path / "base"
    masked.pipeline().save(base)
    config = small.train_config("transformer", "", data=data, batch_size=4)
    config = adapters.training(config, base, targets="qkv", classes="mug")
    assert_resumes_bit_for_bit(config, tmp_path, monkeypatch)
    finished, stopped = tmp_path / "whole", tmp_path / "stopped"
    content = [(run / adapter_file.NAME).read_bytes() for run in (finished, stopped)]
    assert content[0] == content[1]

    average = flatten_dict(weights(finished, "ema"), sep="/")
    assert set(average) == {"lora/qkv/a", "lora/qkv/b", "class_rows"}
    stored = adapter_file.load(finished)
    for path, leaf in flatten_dict(stored.params, sep="/").items():
        np.testing.assert_array_equal(leaf, average[path], err_msg=path)
        assert np.any(leaf), path
    model = Pipeline.from_pretrained(base)
    adapted = model.with_adapter(finished)
    assert adapted.class_names[-1] == "mug"
    assert not (finished / "tokenizer").exists()

    with pytest.raises(UserError, match=f"{finished} holds an adapter.*--adapter {finished}"):
        Pipeline.from_pretrained(finished)
    adapted.save(tmp_path / "other")
    other = adapters.training(config, tmp_path / "other", targets="qkv", classes="jar")
    with pytest.raises(UserError, match=f"{stored.fingerprint}"):
        train(other, finished)
