"""A new kind of training is one class: here a mean image, which trains, resumes and evaluates
through the same loop as the tokenizer and the transformers."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import var_jax.config.train
from helpers import small
from helpers.runs import assert_resumes_bit_for_bit, records
from var_jax.errors import UserError
from var_jax.objectives import registry
from var_jax.objectives.base import Objective
from var_jax.ops.normalize import normalize_images
from var_jax.train.loop import train


class MeanImage(Objective):
    """Predicts every image by one image, the mean of the training images at the optimum."""

    section = "tokenizer"  # whose image size and dtypes it takes

    def init(self, key):
        mean = 0.1 * jax.random.normal(key, (math.prod(self.model.image_shape),))
        return {"mean": nn.LogicallyPartitioned(mean, ("embed",))}  # divided like a model's width

    def batch_shapes(self):
        return {"image": jax.ShapeDtypeStruct(self.model.image_shape, jnp.uint8)}

    def _errors(self, params, batch):
        mean = params["mean"].reshape(self.model.image_shape)
        return jnp.mean((normalize_images(batch["image"]) - mean) ** 2, axis=(1, 2, 3))

    def loss(self, params, frozen, batch, rng, *, variant=None, step=0):
        loss = jnp.mean(self._errors(params, batch))
        return loss, {"loss": loss}

    def eval_metrics(self, params, frozen, batch):
        return {"loss": jnp.sum(self._errors(params, batch) * batch["mask"])}


@pytest.fixture
def config(digits_dir, monkeypatch):
    """A run of it, on all devices by default settings."""
    monkeypatch.setattr(registry, "OBJECTIVES", {**registry.OBJECTIVES})
    stages = [*registry.STAGES]
    monkeypatch.setattr(var_jax.config.train, "STAGES", stages)
    monkeypatch.setattr(registry, "STAGES", stages)
    registry.register("mean_image", MeanImage)
    return small.train_config("mean_image", digits_dir, steps=6, eval_every=2)


def test_toy_objective_trains_and_evaluates(config, tmp_path):
    """The held-out loss falls from evaluation to evaluation, and all of a workdir is there but for
    pictures, which this objective has not."""
    held_out = train(config, tmp_path)
    by_step = [record["loss"] for record in records(tmp_path) if record["split"] == "val"]
    assert by_step == sorted(by_step, reverse=True) and len(set(by_step)) == 3
    assert held_out["loss"] == by_step[-1] and held_out["images"] == config.eval_images
    assert json.loads((tmp_path / "config.json").read_text())["stage"] == "mean_image"
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["params"] == {"total": 48, "body": 48}
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "done"
    assert not (tmp_path / "samples").exists() and not (tmp_path / "tokenizer").exists()


def test_toy_objective_resumes_bit_for_bit(config, tmp_path, monkeypatch):
    """A run that SIGTERM stops goes on by the same command, as if nothing had happened."""
    assert_resumes_bit_for_bit(config, tmp_path, monkeypatch, stop=3)


def test_stage_that_nothing_trains_is_refused():
    """The config's own check knows the stages that objectives are registered for."""
    with pytest.raises(UserError, match="config.stage is 'mean_image'; it must be 'tokenizer' or"):
        small.train_config("mean_image", "")
