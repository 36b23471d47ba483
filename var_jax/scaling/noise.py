"""Chooses the noise that the runs of a sweep have, from their residuals.

The noise is normal, of one size and independent, unless the runs clearly show otherwise: heavy
tails (Student's t), a standard deviation that falls with the size of a run, or a part that runs of
one size have in common. Where repeated runs show that the law does not describe the runs
(`lack_of_fit`), what it leaves over is not taken for noise of small runs, nor for a part in common.

What is clear is a threshold of the gain in restricted log likelihood, which for n runs and p
parameters is the gain in log likelihood times (n - p) / n, less half the growth of the log
determinant of the law's information. docs/results/interval_coverage.md justifies the thresholds by
the share of planted laws that the intervals hold.

Sources: Lange, Little and Taylor 1989, Robust statistical modeling using the t distribution;
Patterson and Thompson 1971, Recovery of inter-block information when block sizes are unequal.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from var_jax.scaling import lack_of_fit, laws, losses, solver, whitening
from var_jax.scaling.solver import Array, Problem
from var_jax.scaling.whitening import Whitening

DEGREES = (10.0, 4.0, 3.0, 2.0)  # degrees of freedom that are tried beside normal noise
# Gain at which Student's t is chosen. On 150 clean sweeps of 10 runs it is reached in 1 %, with
# 2 % gross outliers in 12 %.
CLEAR_TAILS = 3.0
# With few runs a law through p of them exactly has a high likelihood under heavy tails. It is
# unbounded where (nu + 1) (n - p) < n; this factor keeps away from that.
SAFETY = 2.0

# Values of `Whitening.growth` that are tried. All are of noise that grows for small runs: what a
# wrong form leaves over is largest where the law is steep or far from other runs, and would
# otherwise be taken for noise of the largest ones.
GROWTHS = np.round(np.arange(0.0, 1.01, 0.2), 2)
CLEAR_GROWTH = 1.5  # gain at which noise that grows for small runs is chosen
GROWTH_FREEDOM = 7  # least degrees of freedom, n - p, with which growth is tried

SHARES = np.round(np.arange(0.0, 0.91, 0.1), 2)  # values of `Whitening.share` that are tried
# Gain at which runs of one size share noise. It is low, because not to see such noise costs more
# coverage than to allow for it where there is none; with few sizes it is hardly seen.
CLEAR_SHARE, CLEAR_SHARE_OF_FEW_SIZES = 0.15, 0.0
SIZES_TO_SHARE = 6  # sizes below which it may be there and not be seen
SHARE_FREEDOM = 3  # least runs beyond one per size with which a share can be told


class Choice(NamedTuple):
    """The noise of each sweep of a batch, and its most likely law.

    Attributes:
      degrees: degrees of freedom of Student's t, infinite for normal noise.
      growth: how the noise grows for small runs, as in `Whitening`.
      share: fraction of the variance that runs of one size have in common.
      theta: the law's parameters.
      cost: its negative log likelihood.
    """

    degrees: Float[Array, " s"]
    growth: Float[Array, " s"]
    share: Float[Array, " s"]
    theta: Float[Array, "s p"]
    cost: Float[Array, " s"]


class Profiled(NamedTuple):
    """The most likely growth or share of each sweep.

    Attributes:
      gain: gain in restricted log likelihood over the value zero.
      value: the growth or share.
      theta: the parameters of the most likely law with it.
    """

    gain: Float[Array, " s"]
    value: Float[Array, " s"]
    theta: Float[Array, "s p"]


def choose(p: Problem, near: Float[Array, "k s p"], held: Bool[Array, " p"]) -> Choice:
    """Returns the noise of sweeps of the same runs.

    Args:
      p: the problem with log x centered and a row of log losses per sweep; its loss is replaced.
      near: laws of normal noise to start from, for each sweep.
      held: parameters that are given rather than fitted.
    """
    sweeps, runs = len(p.logy), float(p.weights.sum())
    freedom = runs - float(np.sum(~held))
    independent = whitening.independent(p.logx, p.weights)
    normal = dataclasses.replace(p, loss=losses.StudentT(), whitening=None)
    law, cost = minimize(normal, near, held)
    none = np.zeros(sweeps)
    best = Choice(np.full(sweeps, math.inf), none, none, law, cost)
    if freedom <= 0:
        return best
    # Student's t, from that law and from one that ignores outliers.
    absolute = dataclasses.replace(normal, loss=losses.Huber(laws.DELTA))
    starts = np.stack([law, minimize(absolute, np.stack([law, near[0]]), held)[0]])
    heavy, most = best, np.full(sweeps, -math.inf)
    for degrees in DEGREES:
        if (degrees + 1) * freedom < SAFETY * runs:
            continue
        law, cost = minimize(
            dataclasses.replace(normal, loss=losses.StudentT(degrees)), starts, held
        )
        starts = np.stack([law, starts[1]])
        gain = (best.cost - cost) * freedom / runs - CLEAR_TAILS
        option = Choice(np.full(sweeps, degrees), none, none, law, cost)
        heavy, most = _choose(gain > most, option, heavy), np.maximum(gain, most)
    options = [(none, best), (most, heavy)]
    if freedom >= GROWTH_FREEDOM:
        maps = dataclasses.replace(independent, growth=GROWTHS)
        for gain, option in tuple(options):
            rise, growth, law = _profile(normal, option, held, maps, freedom)
            tried = dataclasses.replace(independent, growth=growth)
            rise = np.where(_is_contradicted(normal, law, tried, held), -math.inf, rise)
            options.append((gain + rise - CLEAR_GROWTH, option._replace(growth=growth, theta=law)))
    score = none
    for gain, option in options:
        best = _choose(gain > score, option, best)
        score = np.maximum(gain, score)
    best = _refined(normal, best, independent, held)
    if not can_share(independent, p.weights, int(np.sum(~held))):
        return best

    maps = dataclasses.replace(independent, growth=best.growth, share=SHARES)
    rise, share, law = _profile(normal, best, held, maps, freedom)
    tried = dataclasses.replace(maps, share=share)
    few = len(independent.members) < SIZES_TO_SHARE
    is_clear = rise > (CLEAR_SHARE_OF_FEW_SIZES if few else CLEAR_SHARE)
    is_clear &= ~_is_contradicted(normal, law, tried, held)
    shared = best._replace(share=share, theta=law)
    return _refined(normal, _choose(is_clear, shared, best), independent, held)


def can_share(independent: Whitening, weights: Float[Array, " n"], fitted: int) -> bool:
    """Returns whether the runs can show that those of one size share noise.

    Args:
      independent: the map of the runs.
      weights: weight of each run.
      fitted: number of fitted parameters.
    """
    sizes, runs = independent.members.shape
    of_size = min(fitted, 3)  # E and a term of the size use up as many means of sizes
    return bool(np.all(weights == 1)) and runs - sizes >= SHARE_FREEDOM and sizes > of_size


def minimize(
    p: Problem, starts: Float[Array, "k s p"], held: Bool[Array, " p"]
) -> tuple[Float[Array, "s p"], Float[Array, " s"]]:
    """Returns the best law of each sweep and its cost, from several starts."""
    count, sweeps, parameters = starts.shape
    maps = p.whitening
    if maps is not None:
        growth, share = (
            np.tile(value, count) if np.ndim(value) else value
            for value in (maps.growth, maps.share)
        )
        maps = dataclasses.replace(maps, growth=growth, share=share)
    repeated = dataclasses.replace(p, logy=np.tile(p.logy, (count, 1)), whitening=maps)
    ends, costs = solver.solve(
        repeated, starts.reshape(-1, parameters), held, iterations=100, tolerance=1e-7
    )
    ends, costs = ends.reshape(starts.shape), costs.reshape(count, sweeps)
    chosen = costs.argmin(axis=0)
    each = np.arange(sweeps)
    return ends[chosen, each], costs[chosen, each]


def _profile(
    p: Problem, choice: Choice, held: Bool[Array, " p"], maps: Whitening, freedom: float
) -> Profiled:
    """Returns the gain, the value and the law of the most likely of several growths or shares.

    The likelihood is the restricted one, and its gain is over that of the value zero.

    Args:
      choice: the heavy tails of each sweep, and the most likely law at the value zero.
      maps: the map, whose growth or share is the values that are tried; a growth beside tried
        shares is each sweep's own.
    """
    of_share = np.ndim(maps.share) > 0
    tried = maps.share if of_share else maps.growth
    count, sweeps = len(tried), len(choice.theta)
    values = np.repeat(tried, sweeps)
    growth = np.tile(maps.growth, count) if of_share else values
    rows = dataclasses.replace(maps, growth=growth, share=values if of_share else maps.share)
    batch = dataclasses.replace(p, logy=np.tile(p.logy, (count, 1)), whitening=rows)
    starts, degrees = np.tile(choice.theta, (count, 1)), np.tile(choice.degrees, count)
    ends, costs = starts.copy(), np.empty(len(starts))
    for each in np.unique(degrees):
        same = np.flatnonzero(degrees == each)
        part = dataclasses.replace(batch.rows(same, len(starts)), loss=losses.StudentT(each))
        ends[same], costs[same] = solver.solve(
            part, starts[same], held, iterations=30, tolerance=1e-3
        )
    jacobian = solver.log_jacobian(ends, p.logx).swapaxes(1, 2)[:, ~held]
    mapped = rows(jacobian)
    determinants = np.linalg.slogdet((mapped * p.weights) @ mapped.swapaxes(1, 2))[1]
    cost = costs * freedom / float(p.weights.sum()) + determinants / 2
    cost, ends = cost.reshape(count, sweeps), ends.reshape(count, sweeps, -1)

    lowest, each = cost.argmin(axis=0), np.arange(sweeps)
    gain = cost[int(np.argmin(np.abs(tried)))] - cost[lowest, each]
    # The vertex of the parabola through the best value and its neighbors.
    inner = np.clip(lowest, 1, count - 2)
    below, here, above = (cost[inner + i, each] for i in (-1, 0, 1))
    bend = np.maximum(below - 2 * here + above, 1e-12)
    offset = np.clip((below - above) / (2 * bend), -0.5, 0.5)
    value = tried[lowest] + np.where(lowest == inner, offset, 0) * (tried[1] - tried[0])
    return Profiled(gain, value, ends[lowest, each])


def _is_contradicted(
    p: Problem, theta: Float[Array, "s p"], maps: Whitening, held: Bool[Array, " p"]
) -> Bool[Array, " s"]:
    """Returns for which sweeps repeated runs show that such noise is misfit.

    Args:
      maps: the map of the noise, with each sweep's growth, and its share if there is one.
    """
    residuals = solver.residuals(dataclasses.replace(p, whitening=maps), theta)
    tested = lack_of_fit.examine(p.logx, residuals, p.weights, int(np.sum(~held)))
    return np.zeros(len(theta), bool) if tested is None else tested.is_clear


def _refined(p: Problem, best: Choice, maps: Whitening, held: Bool[Array, " p"]) -> Choice:
    """Returns the choice with the most likely laws of its noise and their costs."""
    theta, cost = best.theta.copy(), best.cost.copy()
    for degrees in np.unique(best.degrees):
        rows = np.flatnonzero(best.degrees == degrees)
        whitened = dataclasses.replace(maps, growth=best.growth[rows], share=best.share[rows])
        part = dataclasses.replace(
            p, logy=p.logy[rows], loss=losses.StudentT(degrees), whitening=whitened
        )
        theta[rows], cost[rows] = minimize(part, theta[None, rows], held)
    return best._replace(growth=best.growth.copy(), share=best.share.copy(), theta=theta, cost=cost)


def _choose(where: Bool[Array, " s"], first: Choice, second: Choice) -> Choice:
    """Returns the sweeps of `first` where `where` is true and those of `second` elsewhere."""
    return Choice(
        *(
            np.where(where.reshape(-1, *[1] * (one.ndim - 1)), one, other)
            for one, other in zip(first, second, strict=True)
        )
    )
