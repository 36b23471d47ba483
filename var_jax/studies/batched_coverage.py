"""Whether profile intervals contain the truth, for all sweeps of a planted law at once.

A profile interval contains the true value of a parameter if the likelihood at that value, with the
others refitted, has risen by no more than at the interval's end. That takes one refit where the
ends take dozens, and sweeps of the same runs are one batch of the solver. The choice of the noise
is that of `estimate.fit`. Use it for shares of hundreds of sweeps; `interval_coverage` computes the
intervals themselves for some of them, and compares.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from var_jax.scaling import estimate, laws, losses, profile_intervals, solver
from var_jax.scaling.solver import Array, Problem


class Verdicts(NamedTuple):
    """Results of all sweeps.

    Attributes:
      inside: whether the interval of each parameter contains the truth.
      noise_freedom: degrees of freedom of the chosen noise, infinite for normal noise.
    """

    inside: Bool[Array, "s p"]
    noise_freedom: Float[Array, " s"]


def verdicts(problems: Sequence[Problem], truth: Float[Array, " p"]) -> Verdicts:
    """Returns which intervals contain the truth.

    Args:
      problems: sweeps of one law, in raw units, whose runs have weight one.
      truth: the law [E, log A, alpha, ...] in raw units.
    """
    inside = np.zeros((len(problems), len(truth)), bool)
    noise_freedom = np.full(len(problems), np.inf)
    grids = np.array([hash(p.logx.tobytes()) for p in problems])
    for grid in np.unique(grids):
        rows = np.flatnonzero(grids == grid)
        batch = dataclasses.replace(
            problems[int(rows[0])], logy=np.stack([problems[int(row)].logy for row in rows])
        )
        inside[rows], noise_freedom[rows] = _same_runs(batch, truth)
    return Verdicts(inside, noise_freedom)


def _same_runs(p: Problem, truth: Float[Array, " p"]) -> Verdicts:
    """Returns the verdicts of sweeps of the same runs, whose losses are the rows of the batch."""
    centered, mean = laws.center(p)
    sweeps, runs = p.logy.shape
    freedom = runs - len(truth)

    # Normal noise, from the truth and from laws of smaller and of larger exponents.
    near = np.tile(laws.shift(truth, -mean), (3, sweeps, 1))
    near[1, :, 2::2] *= 0.5
    near[2, :, 2::2] *= 1.5
    near[1:, :, 0] *= np.array([0.8, 1.1])[:, None]
    best, cost = _minimize(dataclasses.replace(centered, loss=losses.StudentT()), near)
    normal_cost, noise_freedom = cost, np.full(sweeps, np.inf)

    # Student's t, from that law and from one that ignores outliers, as `estimate.fit` does.
    absolute = dataclasses.replace(centered, loss=losses.Huber(laws.DELTA))
    rows = np.stack([best, _minimize(absolute, np.stack([best, near[0]]))[0]])
    best_gain = np.full(sweeps, estimate.CLEAR_GAIN)
    for degrees in estimate.DEGREES:
        if (degrees + 1) * freedom < estimate.SAFETY * runs:
            continue
        heavy = dataclasses.replace(centered, loss=losses.StudentT(degrees))
        law, heavy_cost = _minimize(heavy, rows)
        rows = np.stack([law, rows[1]])
        gain = (normal_cost - heavy_cost) * freedom / runs
        better = gain > best_gain
        best_gain = np.where(better, gain, best_gain)
        best = np.where(better[:, None], law, best)
        cost = np.where(better, heavy_cost, cost)
        noise_freedom = np.where(better, degrees, noise_freedom)

    inside = np.zeros((sweeps, len(truth)), bool)
    for degrees in np.unique(noise_freedom):
        rows = np.flatnonzero(noise_freedom == degrees)
        part = dataclasses.replace(p, logy=p.logy[rows], loss=losses.StudentT(degrees))
        inside[rows] = _not_rejected(part, laws.shift(best[rows], mean), cost[rows], truth)
    return Verdicts(inside, noise_freedom)


def _not_rejected(
    p: Problem, best: Float[Array, "s p"], cost: Float[Array, " s"], truth: Float[Array, " p"]
) -> Bool[Array, "s p"]:
    """Returns whether the profile of each parameter at the truth is within the interval's limit.

    Args:
      best: the most likely laws in raw units.
      cost: their negative log likelihoods.
    """
    centered, mean = laws.center(p)
    runs = p.logy.shape[1]
    inside = np.zeros(best.shape, bool)
    for i, value in enumerate(truth):
        # Amplitudes are those at x = 1: their profile needs log x as it is.
        frame, by = (p, 0 * mean) if i % 2 else (centered, -mean)
        held = np.arange(len(truth)) == i
        starts = np.stack([best, np.tile(truth, (len(best), 1))])
        starts = laws.shift(starts, by)
        starts[..., i] = value
        _, pinned_cost = _minimize(frame, starts, held)
        below, above = profile_intervals.E_TAILS if i == 0 else profile_intervals.EQUAL_TAILS
        tails = np.where(value < best[:, i], below, above)
        inside[:, i] = pinned_cost - cost <= profile_intervals.rise(tails, runs, runs - len(truth))
    return inside


def _minimize(
    p: Problem, starts: Float[Array, "k s p"], held: Bool[Array, " p"] | None = None
) -> tuple[Float[Array, "s p"], Float[Array, " s"]]:
    """Returns the best law of each sweep and its cost, from several starts."""
    count, sweeps, parameters = starts.shape
    held = np.zeros(parameters, bool) if held is None else held
    repeated = dataclasses.replace(p, logy=np.tile(p.logy, (count, 1)))
    ends, costs = solver.solve(
        repeated, starts.reshape(-1, parameters), held, iterations=100, tolerance=1e-7
    )
    ends, costs = ends.reshape(starts.shape), costs.reshape(count, sweeps)
    chosen = costs.argmin(axis=0)
    each = np.arange(sweeps)
    return ends[chosen, each], costs[chosen, each]
