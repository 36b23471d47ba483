"""Bootstrap of fitted laws over runs: the same objective, refitted to resamples.

It stands next to the reported intervals (`profile_intervals`) as a second opinion.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from var_jax.scaling import laws, solver
from var_jax.scaling.profile_intervals import CONFIDENCE_LEVEL
from var_jax.scaling.solver import Array, Problem

TOLERANCE = 1e-4  # of the log likelihood of a refit
PROBED = 100  # refits that show whether a second start finds other optima


def resample(
    p: Problem,
    theta: Float[Array, " p"],
    resamples: int,
    *,
    floor: float | None = None,
    groups: Float[Array, " n"] | None = None,
    seed: int = 0,
) -> Float[Array, "r p"]:
    """Returns laws refitted to bootstrap resamples of the runs.

    Args:
      theta: the law of all runs, from which the refits start.
      groups: the run of each row; rows of a run are drawn together. By default every row is a run.

    Returns:
      [E, log A, alpha, ...] of each resample in raw units.
    """
    _, owner = np.unique(np.arange(len(p.logx)) if groups is None else groups, return_inverse=True)
    runs = owner.max() + 1
    draws = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=resamples)
    return refits(p, theta, draws[:, owner] * p.weights, floor)


def refits(
    p: Problem,
    theta: Float[Array, " p"],
    weights: Float[Array, "r n"],
    floor: float | None = None,
    logy: Float[Array, "r n"] | None = None,
) -> Float[Array, "r p"]:
    """Returns the best law for each row of weights.

    Each fit starts from the law `theta`. The first `PROBED` start from one with half its exponents
    too; if that is better for any of them, so do all, and the better result is taken. The loss is
    the problem's own, with its degrees of freedom as they are.

    Args:
      weights: weights of the losses, one row per fit.
      logy: log losses of each fit, if they differ from the problem's.
    """
    centered, mean = laws.center(p)
    held = np.zeros(p.parameters, bool)
    held[0] = floor is not None
    near = laws.shift(theta, -mean)
    far = near.copy()
    far[2::2] /= 2
    if floor is None:
        far[0] *= 0.8

    def solved(start, rows):
        part = dataclasses.replace(
            centered, weights=weights[rows], logy=centered.logy if logy is None else logy[rows]
        )
        starts = np.tile(start, (len(part.weights), 1))
        return solver.solve(part, starts, held, iterations=150, tolerance=TOLERANCE)

    ends, costs = solved(near, slice(None))
    for rows in (slice(PROBED), slice(PROBED, None)):
        others, other_costs = solved(far, rows)
        margin = 10 * TOLERANCE * centered.loss.unit(costs[rows])
        better = other_costs < costs[rows] - margin
        ends[rows] = np.where(better[:, None], others, ends[rows])
        if not better.any():
            break
    return laws.shift(ends, mean)


def percentile(samples: Float[Array, "r p"]) -> Float[Array, "p 2"]:
    """Returns intervals of [E, A, alpha, ...] between the 2.5 % and 97.5 % bootstrap quantiles."""
    ends = (1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2
    return np.quantile(laws.with_amplitudes(samples), ends, axis=0).T
