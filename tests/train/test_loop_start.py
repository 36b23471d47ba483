"""What `train` starts from: weights, a tokenizer or its tokens; mistakes leave no workdir."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import small
from helpers.runs import (
    NoEvaluator,
    assert_same,
    records,
    weights,
)
from var_jax import Pipeline
from var_jax.config.train import MeshConfig
from var_jax.errors import UserError
from var_jax.train import evaluation, step
from var_jax.train.loop import train
from var_jax.train.tokenize import tokenize

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.mark.long
def test_train_makes_no_workdir_for_a_mistake(configs, model_dir, tmp_path):
    """Eight mistakes, in sizes, data, weights and meshes, are each named, and none leaves a
    directory."""
    config = configs["transformer"]
    fewer = dataclasses.replace(config.transformer, num_classes=9)
    for name, changes, message in (
        ("large", {"batch_size": 8000}, "batch_size=1437 or less"),
        (
            "split",
            {"data": dataclasses.replace(config.data, eval_split="tset")},
            "did you mean 'test'",
        ),
        ("classes", {"transformer": fewer}, "num_classes is 9; it must be at least the 10 classes"),
        ("init", {"init_from": str(tmp_path / "none")}, "no model directory"),
        (
            "width",
            {"transformer": dataclasses.replace(config.transformer, width=32)},
            "does not fit this run",
        ),
        ("mesh", {"mesh": MeshConfig(3, 2)}, "as many devices as there are, 8"),
        ("batch", {"batch_size": 6}, "batch_size is 6; it must be a multiple of 4"),
        ("tokenizer", {"tokenizer_dir": ""}, "tokenizer_dir is ''"),
    ):
        with pytest.raises(UserError, match=message):
            train(dataclasses.replace(config, **changes), str(tmp_path / name))
        assert not (tmp_path / name).exists(), name


@pytest.mark.slow
def test_train_fine_tunes_with_another_class_count(configs, tmp_path, monkeypatch):
    """A run that starts from the weights but for the class embedding takes a real step and a real
    evaluation."""
    monkeypatch.setattr(evaluation.Evaluator, "picture", NoEvaluator.picture)
    config = configs["transformer"]
    config = dataclasses.replace(
        config, steps=1, transformer=dataclasses.replace(config.transformer, num_classes=12)
    )
    result = train(config, str(tmp_path))
    actual, original = weights(tmp_path), dict(small.pipeline().params["transformer"])
    fresh = actual.pop("class_embed")
    assert fresh.shape == (13, 16) and abs(fresh.std() / config.transformer.init_std - 1) < 0.2
    del original["class_embed"]
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), actual, original)
    rate = (
        config.optimizer.base_lr * config.batch_size / 256
    )  # what a step of Adam moves a weight by at most
    assert all(0 < most < 1.5 * rate for most in jax.tree.leaves(moved)), moved
    training, held_out = records(tmp_path)
    assert training["grad_norm"] > 0 and np.isfinite(training["loss"])
    assert held_out["images"] == 12 and held_out["loss"] == pytest.approx(result["loss"])
    assert Pipeline.from_pretrained(tmp_path).config.transformer.num_classes == 12


@pytest.mark.long
@pytest.mark.parametrize("cached", [True, False])
def test_train_places_what_its_steps_use_of_the_tokenizer(
    cached, configs, unevaluated, model_dir, tmp_path, monkeypatch
):
    """Steps get only the parts of the tokenizer that they use: never the decoder, which is for
    pictures, and no encoder if tokens come from a cache. The workdir has all parts."""
    config, seen = configs["transformer"], []

    def make(*_):
        def step(run, batch, frozen):
            seen.append(set(frozen.params))
            return run.replace(step=run.step + 1), {"loss": jnp.ones(()), "grad_norm": jnp.ones(())}

        return step

    monkeypatch.setattr(step, "make_train_step", make)
    if cached:
        data = dataclasses.replace(config.data, train_split="train[:16]", eval_split="test[:8]")
        config = dataclasses.replace(config, data=data, steps=1)
        tokenize(config, str(model_dir), str(tmp_path / "cache"), batch=1)
        data = dataclasses.replace(data, tokens_dir=str(tmp_path / "cache"))
        config = dataclasses.replace(config, data=data)
    train(config, str(tmp_path / "run"))
    assert seen == [{"quantize"} | (set() if cached else {"encoder", "quant_conv"})]
    model = Pipeline.from_pretrained(
        tmp_path / "run" / "tokenizer"
    )  # and the workdir has all of it
    assert_same(model.params["tokenizer"], small.pipeline().params["tokenizer"])
