"""One training step and one evaluation step of an objective, as pure functions to be jitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from var_jax.config.train import TrainConfig
from var_jax.devices import sharding
from var_jax.objectives.base import Frozen, Objective
from var_jax.objectives.step_types import TRAINED, Batch, Metrics, StepVariant, TrainState
from var_jax.train import spikes, trainable


def make_train_step(
    objective: Objective[Frozen],
    optimizers: Mapping[str, optax.GradientTransformation],
    variant: StepVariant | None = None,
    seed: jax.Array | int | None = None,
) -> Callable[[TrainState, Batch, Frozen], tuple[TrainState, Metrics]]:
    """Returns (state, batch, frozen) -> (state, metrics).

    Gradients are averaged over `config.microbatches` parts of the batch. Randomness is a function
    of only the seed and the step, so that no key is stored.

    Args:
      optimizers: the optimizers of `optimizer.make_optimizers`, by the state's field for their
        network.
      variant: the parts of the step; by default the objective's last variant, which has all of
        them.
      seed: the run's seed, where it is an argument of the compiled program; by default the
        config's.
    """
    config = objective.config
    seed = config.seed if seed is None else seed
    variant = objective.last_variant() if variant is None else variant

    def train_step(state: TrainState, batch: Batch, frozen: Frozen) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        mask = trainable.mask_of(config.trainable, state.params)

        def gradients_of(rows: Batch, key: jax.Array) -> tuple[Any, Any]:
            computed, others = objective.gradients(state, frozen, rows, key, variant=variant)
            return computed._replace(
                params=trainable.zeros_elsewhere(mask, computed.params)
            ), others

        gradients, rows = _mean_gradients(gradients_of, batch, rng, config.microbatches)
        updated = update(config, optimizers[TRAINED], state, gradients.params)
        metrics = {
            **gradients.metrics,
            "grad_norm": optax.tree_utils.tree_norm(gradients.params),
        }
        after, metrics = objective.finish_step(updated, gradients, rows, metrics, optimizers)
        if state.spikes is None:
            return after, metrics
        return spikes.skip_or_take(config.optimizer, state, after, metrics)

    return train_step


def make_eval_step(objective: Objective[Frozen]) -> Callable[[Any, Batch, Frozen], Metrics]:
    """Returns (params, batch, frozen) -> metrics of a held-out batch, without any dropout.

    The metrics are sums over the rows that count, whose number is "images".
    """

    def eval_step(params: Any, batch: Batch, frozen: Frozen) -> Metrics:
        images = {"images": jnp.sum(batch["mask"])}
        return images | objective.eval_metrics(params, frozen, batch)

    return eval_step


def update(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    gradients: Any,
) -> TrainState:
    """Returns the state with the trained model and its running average after a step."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema and average(state.ema, params, config.ema, state.step // config.ema_warmup)
    mask = trainable.mask_of(config.trainable, state.params)
    params = trainable.with_others(mask, params, state.params)
    ema = ema and trainable.with_others(mask, ema, state.ema)
    return state.replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)


def average(ema: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """Returns the running average; its decay is warmed up, so that early steps do not linger."""
    warm_decay = jnp.minimum(decay, (1 + step) / (10 + step))

    def mix(average: jax.Array, param: jax.Array) -> jax.Array:
        return (average * warm_decay + param * (1 - warm_decay)).astype(average.dtype)

    return jax.tree.map(mix, ema, params)


def _mean_gradients(
    gradients: Callable[[Batch, jax.Array], tuple[Any, Any]],
    batch: Batch,
    rng: jax.Array,
    parts: int,
) -> tuple[Any, Any]:
    """Returns the results of `gradients` (rows, rng) over equal parts of the batch.

    The first result is averaged over the parts, and the rows of the second are joined. Only one
    part is in memory at a time.
    """
    if parts == 1:
        return gradients(batch, rng)

    def split(x):  # strided, so that each part is spread over all devices as the batch is
        rows = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return sharding.constrain(rows, None, "batch", *(None,) * (x.ndim - 1))

    def body(total, part):
        index, rows = part
        averaged, joined = gradients(rows, jax.random.fold_in(rng, index))
        return jax.tree.map(jnp.add, total, averaged), joined

    stacked = jax.tree.map(split, dict(batch))
    shapes, _ = jax.eval_shape(gradients, jax.tree.map(lambda x: x[0], stacked), rng)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, joined = jax.lax.scan(body, zeros, (jnp.arange(parts), stacked))
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), joined)
    return jax.tree.map(lambda x: x / parts, total), rows
