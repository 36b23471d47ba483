"""The objective of a logit refiner: its loss, its gradient, every mesh, and what it refuses."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from etils import epath
from flax import linen as nn
from flax.traverse_util import flatten_dict

from helpers import masked, refiners, small
from helpers.mesh_steps import assert_same_step, one_step
from helpers.numerics import log_softmax
from var_jax import Pipeline
from var_jax.config import idle_keys
from var_jax.config.strict import plain
from var_jax.config.train import TrainConfig
from var_jax.data.model_fingerprint import model_fingerprint
from var_jax.errors import UserError
from var_jax.io import refiner_file
from var_jax.models import flops
from var_jax.objectives import registry
from var_jax.sweep import run_id

pytestmark = pytest.mark.usefixtures("compiled_fast")

ROWS = 8
BATCH = {
    "tokens": np.random.RandomState(0).randint(0, 16, (ROWS, small.SCALES.total)).astype(np.int32),
    "label": np.arange(ROWS, dtype=np.int32),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The directory of the tiny model."""
    directory = tmp_path_factory.mktemp("base") / "next_scale"
    small.pipeline().save(directory)
    return directory


def fresh(objective):
    return nn.meta.unbox(jax.jit(objective.init)(jax.random.key(1)))


@pytest.mark.long
def test_loss_starts_as_the_frozen_models(base, tmp_path):
    """At its start the loss is the cross-entropy of the model's own logits over the refined scales,
    by numpy; the held-out metrics are those of all scales, and the last layer alone has a
    gradient, as all that is before it is multiplied by zero."""
    objective = refiners.objective(refiners.training(base, last_scale=1), tmp_path)
    params, frozen = fresh(objective), objective.frozen
    logits = np.asarray(small.pipeline().logits(BATCH["tokens"], BATCH["label"]), np.float64)
    chosen = np.take_along_axis(log_softmax(logits), BATCH["tokens"][..., None], axis=-1)[..., 0]
    loss, metrics = jax.jit(objective.loss)(params, frozen, BATCH, None)
    np.testing.assert_allclose(loss, -chosen[:, :5].mean(), rtol=1e-4)
    assert metrics["loss_scale"].shape == (2,) and "loss_last" not in metrics

    held_out = {**BATCH, "mask": np.arange(ROWS) < 5}
    sums = jax.jit(objective.eval_metrics)(params, frozen, held_out)
    means = objective.summarize(jax.tree.map(np.asarray, sums), 5)
    np.testing.assert_allclose(means["loss"], -chosen[:5].mean(), rtol=1e-4)
    assert means["loss_base"] == pytest.approx(means["loss"])
    assert len(means["loss_scale"]) == 3
    assert "without the refiner" in objective.headline(means)

    gradients = jax.jit(jax.grad(lambda p: objective.loss(p, frozen, BATCH, None)[0]))(params)
    moved = {path for path, leaf in flatten_dict(gradients, sep="/").items() if np.any(leaf)}
    assert moved == {"head/kernel", "head/bias"}


@pytest.mark.long
def test_training_lowers_the_loss_of_dependent_tokens(base, tmp_path):
    """Where every token of a scale is that before it, the frozen model cannot know it and the
    refiner can: 60 steps of Adam leave less than a third of the loss. The frozen weights are the
    same bits."""
    objective = refiners.objective(refiners.training(base), tmp_path)
    first = np.random.RandomState(1).randint(0, 16, (ROWS, len(small.SCALES)))
    batch = {**BATCH, "tokens": first[:, small.SCALES.level_ids].astype(np.int32)}
    params, frozen, optimizer = fresh(objective), objective.frozen, optax.adam(2e-2)
    before = jax.tree.map(np.array, frozen)

    @jax.jit
    def step(params, state, rng):
        (loss, _), slope = jax.value_and_grad(objective.loss, has_aux=True)(
            params, frozen, batch, rng
        )
        updates, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for i in range(60):
        params, state, loss = step(params, state, jax.random.key(i))
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 3
    jax.tree.map(np.testing.assert_array_equal, before, objective.frozen)


@pytest.mark.long
def test_step_is_the_same_on_every_mesh(base):
    """Metrics and updated weights of 4x2 devices are those of one device, to rounding."""
    config = refiners.training(base)
    objective = refiners.objective(config, base)
    start = refiners.random_params()
    one, many = (
        one_step(data, model, BATCH, start, objective.config, objective)
        for data, model in ((1, 1), (4, 2))
    )
    assert_same_step(many, one, start)


def test_flops_of_a_step_are_a_frozen_pass_and_three_of_the_refiner(base, tmp_path):
    """The frozen model has no backward pass, and neither counts scales that are not refined."""
    every = refiners.objective(refiners.training(base), tmp_path)
    assert every.flops_per_image() == (
        flops.forward_flops(small.TRANSFORMER)
        + 3 * flops.refiner_flops(refiners.CONFIG, small.TRANSFORMER)
    )
    part = refiners.objective(refiners.training(base, last_scale=0), tmp_path)
    assert part.flops_per_image() < every.flops_per_image() / 5
    assert part.scales().total == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": ""}, "refiner.base is ''.*--config.refiner.base=DIR"),
        ({"base": "no/such"}, "no model directory no/such"),
        ({"last_scale": 3}, "refiner.last_scale is 3"),
    ],
    ids=str,
)
def test_run_refuses_what_does_not_fit_its_base(base, settings, message):
    """The line names the key before any weight is read."""
    config = refiners.training(base)
    config = dataclasses.replace(config, refiner=dataclasses.replace(config.refiner, **settings))
    with pytest.raises(UserError, match=message):
        registry.with_frozen_sizes(config)


def test_base_of_another_objective_or_of_another_run_is_refused(base, tmp_path):
    """Masked prediction has no scales to refine; and a workdir goes on with the model that it was
    started with alone, whose fingerprint is in its file."""
    masked.pipeline().save(tmp_path / "masked")
    with pytest.raises(UserError, match="'masked'; it must be 'next_scale'"):
        registry.with_frozen_sizes(refiners.training(tmp_path / "masked"))
    run = tmp_path / "run"
    run.mkdir()
    other = refiner_file.RefinerFile(refiners.CONFIG, "0123", refiners.random_params())
    refiner_file.save(epath.Path(run), other)
    model = small.pipeline()
    own = model_fingerprint(model.config, model.params)
    with pytest.raises(UserError, match=f"refiner.base .* is {own}.* started with, 0123"):
        refiners.objective(refiners.training(base), run)


def test_class_dropout_on_a_base_without_it_is_refused(tmp_path):
    """The base's row for no class was never trained, and the refiner would learn on its hidden
    states; without dropout the run is made."""
    model = small.pipeline()
    transformer = dataclasses.replace(small.TRANSFORMER, class_dropout=0.0)
    untrained = dataclasses.replace(model.config, transformer=transformer)
    Pipeline(untrained, model.params).save(tmp_path / "base")
    config = refiners.training(tmp_path / "base")
    with pytest.raises(UserError, match=r"class_dropout is 0\.1; it must be 0, as in the model in"):
        registry.with_frozen_sizes(config)
    resolved = registry.with_frozen_sizes(dataclasses.replace(config, transformer=transformer))
    assert resolved.transformer == transformer


def test_keys_without_effect_are_refused(base):
    """A schedule of scales is part of the base's own training, and the width of a refiner means
    nothing in another stage."""
    config = refiners.training(base)
    transformer = dataclasses.replace(config.transformer, flip_share=0.5)
    config = dataclasses.replace(config, transformer=transformer)
    with pytest.raises(UserError, match=r"flip_share=0\.5 has no effect while stage is 'refiner'"):
        idle_keys.refuse_flags(config, ["transformer.flip_share"])
    with pytest.raises(UserError, match=r"refiner\.width=8.*no effect in the transformer's stage"):
        idle_keys.refuse(dataclasses.replace(config, stage="transformer"))


def test_runs_of_sweeps_keep_their_ids():
    """A run without a refiner has the id that it had before there were refiners: its config without
    the section."""
    config = small.train_config("transformer", "")
    assert run_id.of_config(config) == "d631eb375063"
    assert TrainConfig.refiner == refiners.RefinerConfig() and "refiner" in plain(config)
