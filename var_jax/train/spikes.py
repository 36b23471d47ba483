"""Steps whose loss or gradient spikes are skipped (`optimizer.skip_spikes`).

A spike is a loss or a global gradient norm above a factor times its median over a window of earlier
steps. Both are reductions over all devices, so that every host decides the same. The loss of a step
with an adversarial term is not compared: it crosses 0, and a multiple of it says nothing.

Of optax's wrappers, `apply_if_finite` looks for values that are not finite, `MultiSteps` with
`skip_large_updates` compares a gradient with a constant, and `conditionally_mask` leaves the
comparison to its caller; none keeps a window or sees the loss. They would protect the parameters
and the optimizer, but neither the average nor the discriminator nor the codebook's usage, which
are no part of the optimizer. So the whole state before the step is selected here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp

from var_jax.config.sections import OptimizerConfig
from var_jax.objectives.adversarial import GENERATOR
from var_jax.objectives.step_types import Metrics, TrainState

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

METRIC = "skipped_steps"  # number of steps skipped so far


@flax.struct.dataclass
class SpikeWindow:
    """The losses and gradient norms that a step is compared with; a part of the training state.

    Attributes:
      losses: of the last steps that were taken, as a ring buffer of `skip_spikes_window` values.
      norms: their global gradient norms.
      taken: number of steps in the ring buffer so far; steps are skipped once it is full.
      in_a_row: number of steps skipped since the last one that was taken.
      skipped: number of steps skipped in the whole run.
    """

    losses: Float[Array, " w"]
    norms: Float[Array, " w"]
    taken: Int[Array, ""]
    in_a_row: Int[Array, ""]
    skipped: Int[Array, ""]


def first_window(config: OptimizerConfig) -> SpikeWindow | None:
    """Returns the empty window of a run's first state; None if spikes are not skipped."""
    if not config.skip_spikes:
        return None
    values, zero = jnp.zeros(config.skip_spikes_window), jnp.zeros((), jnp.int32)
    return SpikeWindow(values, values, zero, zero, zero)


def skip_or_take(
    config: OptimizerConfig, before: TrainState, after: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics]:
    """Returns the state after a step or, if the step has a spike, the one before with its number.

    The metrics have "skipped_steps", the number of steps skipped so far. The learning rate's
    schedule and the optimizer's own count are parts of the state that is kept: they wait for a step
    that is taken.

    Args:
      metrics: those of the step, with "loss" and "grad_norm"; "generator" is the sign of an
        adversarial term in the loss.
    """
    window = before.spikes
    loss, norm = (metrics[name].astype(jnp.float32) for name in ("loss", "grad_norm"))
    is_spike = _is_above(config, window, norm, window.norms)
    if GENERATOR not in metrics:
        is_spike |= _is_above(config, window, loss, window.losses)
    chosen = jax.tree.map(lambda old, new: jnp.where(is_spike, old, new), before, after)
    window = _next_window(window, loss, norm, is_spike)
    state = chosen.replace(step=after.step, spikes=window)
    return state, {**metrics, METRIC: window.skipped}


def skipped_steps(state: TrainState) -> int:
    """Returns how many steps were skipped so far; 0 in a run that skips none."""
    return 0 if state.spikes is None else int(state.spikes.skipped)


def _is_above(
    config: OptimizerConfig, window: SpikeWindow, value: jax.Array, values: jax.Array
) -> Bool[Array, ""]:
    """Returns whether a step's value is a spike beside the window's values of its kind.

    Values of which one is negative, as of a loss with an entropy to be raised, or whose median is
    0, have no multiple to compare with.
    """
    is_full, median = window.taken >= values.size, jnp.median(values)
    return is_full & (jnp.min(values) >= 0) & (median > 0) & (value > config.skip_spikes * median)


def _next_window(
    window: SpikeWindow, loss: jax.Array, norm: jax.Array, is_spike: jax.Array
) -> SpikeWindow:
    """Returns the window after a step, whose values it takes up unless the step was skipped.

    After as many skipped steps in a row as the window holds it begins anew: that is no spike, but a
    new level, of which the run would not take another step.
    """
    size = window.losses.size
    at = window.taken % size
    in_a_row = jnp.where(is_spike, window.in_a_row + 1, 0)
    begins_anew = in_a_row >= size
    return SpikeWindow(
        losses=jnp.where(is_spike, window.losses, window.losses.at[at].set(loss)),
        norms=jnp.where(is_spike, window.norms, window.norms.at[at].set(norm)),
        taken=jnp.where(begins_anew, 0, window.taken + ~is_spike),
        in_a_row=jnp.where(begins_anew, 0, in_a_row),
        skipped=window.skipped + is_spike,
    )
