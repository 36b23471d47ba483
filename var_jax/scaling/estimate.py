"""Chooses the likelihood of a sweep's noise, and fits the law that maximizes it.

Losses of real runs have heavier tails than a normal distribution: a run diverges a little, or was
trained by another recipe. Student's t then gives shorter intervals that still hold the truth. Where
the runs show no heavy tails, normal noise does, as a few clean runs look heavy-tailed by chance. So
the noise is normal unless the likelihood of the residuals prefers Student's t clearly, which
docs/results/interval_coverage.md justifies by the share of planted laws that the intervals hold.
The degrees of freedom are then those of the noise for intervals, bootstrap and plots: they and the
law are nearly uncorrelated, as the distribution is symmetric.

Source: Lange, Little and Taylor 1989, Robust statistical modeling using the t distribution.
"""

import dataclasses

import numpy as np

from var_jax.scaling import laws, losses, solver
from var_jax.scaling.solver import Problem

DEGREES = (10.0, 4.0, 3.0, 2.0)  # degrees of freedom that are tried beside normal noise
# Gain in log likelihood, times (n - p) / n for p fitted parameters, at which Student's t is chosen.
# On 150 clean sweeps of 10 runs it is reached in 1 %, with 2 % gross outliers in 12 %.
CLEAR_GAIN = 3.0
# With few runs a law through p of them exactly has a high likelihood under heavy tails. It is
# unbounded where (nu + 1) (n - p) < n; this factor keeps away from that.
SAFETY = 2.0


def fit(p: Problem, floor: float | None = None, *, check: bool = True) -> laws.Fit:
    """Returns the most likely law, under normal noise or under Student's t.

    Its `loss` is the `losses.StudentT` that was chosen.

    Args:
      p: the problem in raw units, without a batch axis; its loss is replaced.
      floor: a fixed value of E, or None to fit it.
      check: whether variable projection checks the optima, as in `laws.fit`.
    """
    p = dataclasses.replace(p, loss=losses.StudentT())
    normal = laws.fit(p, floor, check=False)
    runs = float(p.weights.sum())
    freedom = runs - p.parameters + (floor is not None)
    if freedom <= 0:
        return laws.checked(p, normal, floor) if check else normal

    # Starts: the best law of normal noise, one that ignores outliers, and some of the grid.
    centered, mean = laws.center(p)
    held = np.arange(p.parameters) < (floor is not None)
    grid = laws.starts(centered, floor)
    rows = np.concatenate([laws.shift(normal.theta, -mean)[None], grid[:: max(1, len(grid) // 8)]])
    absolute = losses.Huber(laws.DELTA)
    robust, costs = solver.solve(
        dataclasses.replace(centered, loss=absolute), rows, held, iterations=100, tolerance=1e-6
    )
    rows = np.stack([rows[0], robust[int(np.argmin(costs))]])

    best, best_gain = None, CLEAR_GAIN
    for degrees in DEGREES:
        if (degrees + 1) * freedom < SAFETY * runs:
            continue
        heavy = dataclasses.replace(centered, loss=losses.StudentT(degrees))
        rows, costs = solver.solve(heavy, rows, held, iterations=100, tolerance=1e-6)
        gain = (normal.cost - costs.min()) * freedom / runs
        if gain > best_gain:
            best, best_gain = (degrees, rows), gain
    if best is None:
        return laws.checked(p, normal, floor) if check else normal
    degrees, rows = best
    chosen = dataclasses.replace(p, loss=losses.StudentT(degrees))
    return laws.fit(chosen, floor, near=laws.shift(rows, mean), check=check)


def describe(noise_freedom: float) -> str:
    """Returns the name of the estimator of values and intervals, for reports."""
    if np.isinf(noise_freedom):
        return "maximum likelihood, normal noise of log loss"
    return (
        "maximum likelihood, Student's t noise of log loss with "
        f"{noise_freedom:g} degrees of freedom"
    )
