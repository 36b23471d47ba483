"""Steps with a spike of the loss or the gradient change nothing, are counted, and resume."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import small
from helpers.batches import image_batch
from helpers.runs import assert_close, assert_resumes_bit_for_bit, assert_same, records, weights
from objectives.test_toy_objective import MeanImage
from objectives.test_toy_objective import config as mean_image_run
from var_jax.config.sections import MeshConfig, OptimizerConfig
from var_jax.devices.mesh import make_mesh
from var_jax.errors import UserError
from var_jax.io.checkpoint import Checkpoints
from var_jax.objectives import registry
from var_jax.objectives.step_types import TrainState
from var_jax.train import spikes
from var_jax.train.loop import Diverged, train
from var_jax.train.optimizer import learning_rates, make_optimizers
from var_jax.train.program import Program
from var_jax.train.state import StateFactory

config = mean_image_run
FACTOR, WINDOW = 3.0, 4
SKIPPING = OptimizerConfig(
    base_lr=0.1, schedule="cosine", eps=1e-3, skip_spikes=FACTOR, skip_spikes_window=WINDOW
)


class Spiky(MeanImage):
    """The mean image, with a gradient 100 times as large in the steps after 5 and 7 others."""

    def loss(self, params, frozen, batch, rng, *, variant=None, step=0):
        loss, metrics = super().loss(params, frozen, batch, rng)
        is_spike = (step == 5) | (step == 7)
        return jnp.where(is_spike, 100 * loss, loss), {"loss": loss}


class Exploding(MeanImage):
    """The mean image, whose loss is infinite after 5 steps."""

    def loss(self, params, frozen, batch, rng, *, variant=None, step=0):
        loss, _ = super().loss(params, frozen, batch, rng)
        loss = jnp.where(step == 5, jnp.inf, loss)
        return loss, {"loss": loss}


@pytest.fixture
def spiky(config):
    """A run of nine steps that logs and saves each of them."""
    registry.register("mean_image", Spiky)
    return dataclasses.replace(
        config, steps=9, eval_every=9, keep_checkpoints=9, optimizer=SKIPPING
    )


def decisions(values: list[tuple[float, float]]) -> list[bool]:
    """Which of the steps with these losses and gradient norms are skipped, by plain Python."""
    window, in_a_row, result = [], 0, []
    for loss, norm in values:
        full = window[-WINDOW:] if len(window) >= WINDOW else []
        limits = [FACTOR * np.median(column) for column in zip(*full, strict=True)]
        skip = any(
            0 < limit < value and min(column) >= 0
            for limit, value, column in zip(
                limits, (loss, norm), zip(*full, strict=True), strict=False
            )
        )
        result.append(skip)
        window, in_a_row = (window, in_a_row + 1) if skip else ([*window, (loss, norm)], 0)
        if in_a_row == WINDOW:
            window, in_a_row = [], 0
    return result


@pytest.mark.parametrize(
    ("values", "skipped"),
    [
        # Only once the window is full, each by one of the two values; not at the factor itself.
        ([(1, 1), (9, 9), (1, 1), (1, 1), (4, 1), (1, 4), (3, 3), (1, 1)], [4, 5]),
        # Losses of which one is negative have no multiple, whatever their median; a gradient has.
        ([(-1, 1), (-1, 1), (-1, 1), (-1, 1), (5, 1), (5, 5)], [5]),
        ([(-0.01, 1), (0.005, 1), (0.005, 1), (0.02, 1), (0.03, 1), (0.03, 5)], [5]),
        # A new level is accepted after as many skipped steps as the window holds.
        ([(1, 1)] * 4 + [(8, 1)] * 4 + [(8, 1)] * 4 + [(30, 1), (8, 1)], [4, 5, 6, 7, 12]),
        # Values that are not finite are never a reason: the run ends by them.
        ([(1, 1)] * 4 + [(np.nan, 1), (1, np.nan)], []),
    ],
)
def test_skip_or_take_compares_with_the_median(values, skipped):
    """The steps are those that plain Python skips, and those named here; each leaves the parameters
    and the optimizer as they were, but for the step's number, and every other one moves them."""
    window = spikes.first_window(SKIPPING)
    state = TrainState(jnp.int32(0), jnp.zeros(2), jnp.zeros(2), jnp.zeros(2), spikes=window)
    advance = jax.jit(functools.partial(spikes.skip_or_take, SKIPPING))
    result = []
    for step, (loss, norm) in enumerate(values):
        moved = state.replace(
            step=state.step + 1,
            **{name: getattr(state, name) + 1 for name in ("params", "ema", "opt_state")},
        )
        metrics = {"loss": jnp.float32(loss), "grad_norm": jnp.float32(norm)}
        after, metrics = advance(state, moved, metrics)
        assert int(after.step) == step + 1
        skip = int(metrics[spikes.METRIC]) > int(state.spikes.skipped)
        for name in ("params", "ema", "opt_state"):
            assert_same(getattr(after, name), getattr(state if skip else moved, name))
        result.append(skip)
        state = after
    assert result == decisions(values) and [i for i, skip in enumerate(result) if skip] == skipped


def test_loss_with_an_adversarial_term_is_not_compared():
    """After a window of small losses of one sign the next is a spike in a step without the term,
    and in a step with it the gradient norm alone decides."""
    values, zero = jnp.full(WINDOW, 0.005), jnp.int32(0)
    window = spikes.SpikeWindow(values, jnp.ones(WINDOW), jnp.int32(WINDOW), zero, zero)
    state = TrainState(zero, jnp.zeros(2), jnp.zeros(2), jnp.zeros(2), spikes=window)

    def skipped(norm: float, **others) -> int:
        metrics = {"loss": jnp.float32(0.03), "grad_norm": jnp.float32(norm), **others}
        return int(spikes.skip_or_take(SKIPPING, state, state, metrics)[1][spikes.METRIC])

    assert [skipped(1.0), skipped(4.0)] == [1, 1]
    assert [skipped(norm, generator=jnp.zeros(())) for norm in (1.0, 4.0)] == [0, 1]


def test_train_skips_planted_spikes(spiky, tmp_path, capsys):
    """Steps 6 and 8 have a gradient 100 times as large: their checkpoints have the parameters,
    optimizer state and average of the step before, the others do not; the records count them, a
    line names each, and the rate of the log is that which the optimizer's own count gives."""
    train(spiky, tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert [line.split(":")[0] for line in lines] == ["step 6/9 skipped", "step 8/9 skipped"]
    assert lines[-1].endswith("2 skipped so far")
    logged = [record for record in records(tmp_path) if record["split"] == "train"]
    assert [record[spikes.METRIC] for record in logged] == [0, 0, 0, 0, 0, 1, 1, 2, 2]
    rates = learning_rates(registry.with_frozen_shapes(spiky))
    assert [record["lr"] for record in logged] == [
        rates(done)["lr"] for done in (0, 1, 2, 3, 4, 5, 5, 6, 6)
    ]
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=9)
    for part in ("params", "ema", "opt_state"):
        at = {step: checkpoints.restore_part(part, step) for step in range(4, 10)}
        for step in range(5, 10):
            same = all(
                np.array_equal(a, b)
                for a, b in zip(
                    jax.tree.leaves(at[step]), jax.tree.leaves(at[step - 1]), strict=True
                )
            )
            assert same == (step in (6, 8)), (part, step)


@pytest.mark.long
@pytest.mark.parametrize("stop", [5, 6, 7])
def test_train_resumes_across_a_skipped_step(spiky, tmp_path, monkeypatch, stop):
    """A run that is stopped before, at or after a skipped step goes on as if nothing had happened:
    the window and the count are in the checkpoint."""
    assert_resumes_bit_for_bit(spiky, tmp_path, monkeypatch, stop=stop)
    for run in ("whole", "stopped"):
        assert weights(tmp_path / run, "spikes")["skipped"] == 2


@pytest.mark.usefixtures("compiled_once")
def test_train_step_skips_the_same_steps_on_every_mesh(spiky):
    """One device and eight skip the same steps and have the same weights, within rounding."""
    objective, results = registry.with_frozen_shapes(spiky), []
    for devices in (1, 8):
        mesh = make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
        with jax.set_mesh(mesh):
            program, counts = Program(objective, mesh), []
            state = program.first_state()
            for number in range(spiky.steps):
                state, metrics = program.step(number)(state, image_batch(8), objective.frozen)
                counts.append(int(metrics[spikes.METRIC]))
        results.append((counts, jax.tree.map(np.asarray, state.params)))
    (counts, params), (expected_counts, expected) = results
    assert counts == expected_counts == [0, 0, 0, 0, 0, 1, 1, 2, 2]
    assert_close(params, expected, 1e-5)


def test_train_still_ends_by_a_loss_that_is_not_finite(spiky, tmp_path):
    """A loss of infinity ends the run with the step's number, as without the key."""
    registry.register("mean_image", Exploding)
    with pytest.raises(Diverged, match="loss of step 6 is inf; the last checkpoint is of step 5"):
        train(spiky, tmp_path)


def test_state_without_the_key_is_that_of_before(config, tmp_path):
    """By default the state has no window and the metrics no count; a checkpoint without the field,
    as earlier versions wrote it, is restored, and one without a window is refused by a run with
    one."""

    def abstract(run):
        objective = registry.with_frozen_shapes(run)
        mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
        factory = StateFactory(objective, make_optimizers(objective), mesh)
        return factory, jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            factory.abstract,
            factory.shardings,
        )

    factory, expected = abstract(config)
    state = factory.first_state()
    assert state.spikes is None
    checkpoints = Checkpoints(tmp_path, keep=1)
    fields = {name: value for name, value in vars(state).items() if name != "spikes"}
    checkpoints.save(0, fields, {}, wait=True)
    restored, _ = checkpoints.restore(expected)
    assert restored.spikes is None
    assert_same(restored.params, state.params)
    _, with_window = abstract(dataclasses.replace(config, optimizer=SKIPPING))
    with pytest.raises(UserError, match="spikes"):
        checkpoints.restore(with_window)


@pytest.mark.parametrize(
    ("key", "value"), [("skip_spikes", 1.0), ("skip_spikes", -2.0), ("skip_spikes_window", 0)]
)
def test_skip_spikes_is_checked(key, value):
    """A factor that would skip half of all steps, and a window without steps, are refused."""
    with pytest.raises(UserError, match=f"optimizer.{key} is {value}"):
        small.train_config("tokenizer", "", optimizer=OptimizerConfig(**{key: value}))
