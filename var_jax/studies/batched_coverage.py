"""Whether profile intervals contain the truth, for all sweeps of a planted law at once.

A profile interval contains the true value of a parameter if the likelihood at that value, with the
others refitted, has risen by no more than at the interval's end. That takes one refit where the
ends take dozens, and sweeps of the same runs are one batch of the solver. The choice of the noise
is that of the reported law. Use it for shares of hundreds of sweeps; `interval_coverage` computes
the intervals themselves for some of them, and compares.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from var_jax.scaling import (
    interval_limits,
    laws,
    losses,
    noise,
    profile_intervals,
    solver,
    whitening,
)
from var_jax.scaling.solver import Array, Problem


class Verdicts(NamedTuple):
    """Results of all sweeps.

    Attributes:
      inside: whether the interval of each parameter contains the truth.
      degrees: degrees of freedom of the chosen noise, infinite for normal noise.
      growth: how the chosen noise grows for small runs, as in `whitening.Whitening`.
      share: the fraction of its variance that runs of one size have in common.
    """

    inside: Bool[Array, "s p"]
    degrees: Float[Array, " s"]
    growth: Float[Array, " s"]
    share: Float[Array, " s"]


def verdicts(problems: Sequence[Problem], truth: Float[Array, " p"]) -> Verdicts:
    """Returns which intervals contain the truth.

    Args:
      problems: sweeps of one law, in raw units, whose runs have weight one.
      truth: the law [E, log A, alpha, ...] in raw units.
    """
    inside = np.zeros((len(problems), len(truth)), bool)
    result = Verdicts(inside, *np.zeros((3, len(problems))))
    grids = np.array([hash(p.logx.tobytes()) for p in problems])
    for grid in np.unique(grids):
        rows = np.flatnonzero(grids == grid)
        batch = dataclasses.replace(
            problems[int(rows[0])], logy=np.stack([problems[int(row)].logy for row in rows])
        )
        for values, part in zip(result, _same_runs(batch, truth), strict=True):
            values[rows] = part
    return result


def _same_runs(p: Problem, truth: Float[Array, " p"]) -> Verdicts:
    """Returns the verdicts of sweeps of the same runs, whose losses are the rows of the batch."""
    centered, mean = laws.center(p)
    sweeps = len(p.logy)
    # From the truth, and from laws of smaller and of larger exponents.
    near = np.tile(laws.shift(truth, -mean), (3, sweeps, 1))
    near[1, :, 2::2] *= 0.5
    near[2, :, 2::2] *= 1.5
    near[1:, :, 0] *= np.array([0.8, 1.1])[:, None]
    choice = noise.choose(centered, near, np.zeros(len(truth), bool))
    inside = np.zeros((sweeps, len(truth)), bool)
    for degrees in np.unique(choice.degrees):
        rows = np.flatnonzero(choice.degrees == degrees)
        part = noise.Choice(*(values[rows] for values in choice))
        batch = dataclasses.replace(p, logy=p.logy[rows], loss=losses.StudentT(degrees))
        inside[rows] = _not_rejected(batch, part, truth)
    return Verdicts(inside, choice.degrees, choice.growth, choice.share)


def _not_rejected(
    p: Problem, choice: noise.Choice, truth: Float[Array, " p"]
) -> Bool[Array, "s p"]:
    """Returns whether the profile of each parameter at the truth is within the interval's limit.

    Args:
      choice: the noise of each sweep with one number of degrees of freedom, and the most likely law
        for centered log x.
    """
    maps = whitening.independent(p.logx, p.weights)
    p = dataclasses.replace(
        p, whitening=dataclasses.replace(maps, growth=choice.growth, share=choice.share)
    )
    centered, mean = laws.center(p)
    best = laws.shift(choice.theta, mean)
    runs = p.logy.shape[1]
    freedom = interval_limits.degrees_of_freedom(runs, len(truth), choice.degrees, choice.growth)
    of_parameters = _freedoms(p, choice, best, freedom)
    inside = np.zeros(best.shape, bool)
    for i, value in enumerate(truth):
        # Amplitudes are those at x = 1: their profile needs log x as it is.
        frame, by = (p, 0 * mean) if i % 2 else (centered, -mean)
        held = np.arange(len(truth)) == i
        starts = np.stack([best, np.tile(truth, (len(best), 1))])
        starts = laws.shift(starts, by)
        starts[..., i] = value
        _, pinned_cost = noise.minimize(frame, starts, held)
        below, above = profile_intervals.E_TAILS if i == 0 else profile_intervals.EQUAL_TAILS
        tails = np.where(value < best[:, i], below, above)
        allowed = interval_limits.rise(tails, runs, freedom, of_parameters[:, i])
        inside[:, i] = pinned_cost - choice.cost <= allowed
    return inside


def _freedoms(
    p: Problem,
    choice: noise.Choice,
    best: Float[Array, "s p"],
    freedom: Float[Array, " s"],
) -> Float[Array, "s p"]:
    """Returns the degrees of freedom of each parameter of each sweep, in raw units."""
    out = np.tile(freedom[:, None], best.shape[1])
    maps = whitening.independent(p.logx, p.weights)
    for row in np.flatnonzero(choice.share):
        own = dataclasses.replace(maps, growth=choice.growth[row], share=choice.share[row])
        jacobian = solver.log_jacobian(best[None, row], p.logx)[0]
        of_noise = whitening.satterthwaite(own, jacobian, np.eye(best.shape[1]))
        out[row] = np.minimum(of_noise, out[row])
    return out
