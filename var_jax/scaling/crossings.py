"""Finds the ends of profile-likelihood intervals, many at once."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from var_jax.scaling.solver import Array

RISE_TOLERANCE = 1e-3  # share of an interval's rise that its end may fall short of
MOST_TRIALS = 24  # fits of each end after it was bracketed
LEAST_ADVANCE = 1e-3  # share of a step that a value must follow, or it has reached its bound


class Refitted(NamedTuple):
    """The most likely laws among those of a given value.

    Attributes:
      value: the value that each law has.
      rows: the laws' parameters.
      rise: how far the negative log likelihood of each lies above the lowest.
    """

    value: Float[Array, " r"]
    rows: Float[Array, "r p"]
    rise: Float[Array, " r"]


Refit = Callable[[Float[Array, " r"], Float[Array, "r p"]], Refitted]


def crossings(
    refit: Refit,
    rows: Float[Array, "r p"],
    start: Float[Array, " r"],
    step: Float[Array, " r"],
    edge: Float[Array, " r"],
    allowed: Float[Array, " r"],
    *,
    tolerance: float = RISE_TOLERANCE,
) -> Float[Array, " r"]:
    """Returns the values at which profiles reach their limits, from within.

    Args:
      refit: returns the most likely laws near the values that are asked for, from laws to start
        from. A law may stay short of the value, but never lies on the other side of the start.
      rows: the most likely law in each row.
      start: the most likely value in each row.
      step: first step outward, with its sign.
      edge: bound of each value.
      allowed: rise of the cost within the interval.
      tolerance: share of `allowed` that the rise at the ends may fall short of.
    """

    def bounded(values):
        return np.where(step < 0, np.maximum(values, edge), np.minimum(values, edge))

    # `inner` and `outer` are values that were asked for, `inside` is what the refitted laws have.
    inner, inside = start.copy(), Refitted(start.copy(), rows.copy(), np.zeros(len(start)))
    outer, outer_rise = bounded(inner + step), np.full(len(start), np.inf)
    # Step outward until each profile exceeds the limit or the value is at its bound.
    for _ in range(60):
        trial = refit(outer, inside.rows)
        below = trial.rise <= allowed
        outer_rise = np.where(below, outer_rise, trial.rise)
        advance = np.abs(trial.value - inside.value)
        at_bound = (outer == edge) | (advance <= LEAST_ADVANCE * np.abs(outer - inner))
        inner, inside = np.where(below, outer, inner), _choose(below, trial, inside)
        if np.all(~below | at_bound):
            break
        step = step * np.where(below & ~at_bound, 1.6, 1)
        outer = np.where(below & ~at_bound, bounded(outer + step), outer)
    # Narrow the gap between the last value within the limit and the first beyond it. The root of
    # the rise is nearly linear; every third trial halves the gap, lest one end stay where it is.
    for iteration in range(MOST_TRIALS):
        root, inner_root = np.sqrt(allowed), np.sqrt(np.maximum(inside.rise, 0))
        share = (root - inner_root) / np.maximum(np.sqrt(outer_rise) - inner_root, 1e-300)
        halve = np.isinf(outer_rise) | (iteration % 3 == 2)
        middle = inner + (outer - inner) * np.where(halve, 0.5, np.clip(share, 0.02, 0.98))
        trial = refit(middle, inside.rows)
        below = trial.rise <= allowed
        inner, inside = np.where(below, middle, inner), _choose(below, trial, inside)
        outer, outer_rise = np.where(below, outer, middle), np.where(below, outer_rise, trial.rise)
        if np.all((allowed - inside.rise <= tolerance * allowed) | (outer == inner)):
            break
    return inside.value


def _choose(where: Bool[Array, " r"], first: Refitted, second: Refitted) -> Refitted:
    """Returns the rows of `first` where `where` is true and those of `second` elsewhere."""
    return Refitted(
        np.where(where, first.value, second.value),
        np.where(where[:, None], first.rows, second.rows),
        np.where(where, first.rise, second.rise),
    )
