"""Bootstrap of fitted laws over runs: the same objective, refitted to resamples.

It stands next to the reported intervals (`profile_intervals`) as a second opinion.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from var_jax.scaling import laws, solver
from var_jax.scaling.profile_intervals import CONFIDENCE_LEVEL
from var_jax.scaling.solver import Array, Problem


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

    Each fit starts from the law `theta` and from one with half its exponents, and the better result
    is taken. The loss is the problem's own, with its degrees of freedom as they are.

    Args:
      weights: weights of the losses, one row per fit.
      logy: log losses of each fit, if they differ from the problem's.
    """
    centered, mean = laws.center(p)
    held = np.zeros(p.parameters, bool)
    held[0] = floor is not None
    first = laws.shift(theta, -mean)
    second = first.copy()
    second[2::2] /= 2
    if floor is None:
        second[0] *= 0.8
    logy = centered.logy if logy is None else np.concatenate([logy, logy])
    batch = dataclasses.replace(centered, weights=np.concatenate([weights, weights]), logy=logy)
    rows = np.repeat(np.stack([first, second]), len(weights), axis=0)
    ends, costs = solver.solve(batch, rows, held, iterations=150, tolerance=1e-4)
    ends, costs = ends.reshape(2, len(weights), -1), costs.reshape(2, -1)
    return laws.shift(ends[costs.argmin(axis=0), np.arange(len(weights))], mean)


def percentile(samples: Float[Array, "r p"]) -> Float[Array, "p 2"]:
    """Returns intervals of [E, A, alpha, ...] between the 2.5 % and 97.5 % bootstrap quantiles."""
    ends = (1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2
    return np.quantile(laws.with_amplitudes(samples), ends, axis=0).T
