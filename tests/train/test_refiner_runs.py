"""Whole runs of logit refiners: resumed bit for bit, their file, and their workdir."""

import dataclasses

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from helpers import refiners, small
from helpers.runs import assert_resumes_bit_for_bit, weights
from var_jax import Pipeline
from var_jax.data.model_fingerprint import fingerprints
from var_jax.errors import UserError
from var_jax.io import refiner_file
from var_jax.train.loop import train

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.mark.long
def test_train_resumes_a_refiner_bit_for_bit(digits_dir, unevaluated, tmp_path, monkeypatch):
    """A run that was stopped and resumed has every number of one that was not, and the same file.
    Its checkpoints hold nothing of the frozen model, whose files are the same bytes after it; the
    file is of the averaged numbers and makes a model that samples. The workdir does not go on with
    another model."""
    base = tmp_path / "base"
    small.pipeline().save(base)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    config = refiners.training(base)
    data = dataclasses.replace(config.data, data_dir=str(digits_dir))
    config = dataclasses.replace(config, data=data)
    assert_resumes_bit_for_bit(config, tmp_path, monkeypatch)
    finished, stopped = tmp_path / "whole", tmp_path / "stopped"
    content = [(run / refiner_file.NAME).read_bytes() for run in (finished, stopped)]
    assert content[0] == content[1]
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before

    average = flatten_dict(weights(finished, "ema"), sep="/")
    stored = refiner_file.load(finished)
    for path, leaf in flatten_dict(stored.params, sep="/").items():
        np.testing.assert_array_equal(leaf, average[path], err_msg=path)
    assert np.any(stored.params["head"]["kernel"])
    own = small.pipeline()
    assert stored.sampling_fingerprint == fingerprints(own.config, own.params).sampling
    assert stored.config == refiners.CONFIG and not (finished / "tokenizer").exists()
    refined = Pipeline.from_pretrained(base).with_refiner(finished)
    assert refined.sample([0, 1], cfg=0).shape == (2, *small.TOKENIZER.image_shape)

    other = small.pipeline()
    params = dict(other.params, transformer={**other.params["transformer"]})
    params["transformer"]["pos_start"] = params["transformer"]["pos_start"] + 1
    Pipeline(other.config, params).save(tmp_path / "other")
    changed = dataclasses.replace(config.refiner, base=str(tmp_path / "other"))
    with pytest.raises(UserError, match=f"was started with, {stored.fingerprint}"):
        train(dataclasses.replace(config, refiner=changed), finished)
