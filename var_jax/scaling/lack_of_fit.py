"""Tests whether a law describes its runs, where some of them are repeated.

Runs of the same inputs, such as seeds of one setting, differ by noise alone. So their scatter about
their own mean measures the noise of these settings whatever the law is, and a law that the other
runs scatter about by more does not describe them. Without this test a likelihood takes what a wrong
form leaves over for noise of any shape that it is allowed.

The test takes whitened residuals for independent and of one size. So noise of settings that are not
repeated is extrapolated from those that are, and repeated runs count once each. Branches of one
trunk are alike: three seeds of one size with five budgets each count as 10 degrees of freedom, and
are 2 if branches of a seed are equal in all but their length. A table of runs does not say which of
them had a trunk in common.

Source: the F test of lack of fit against pure error, Draper and Smith 1998, section 2.1.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import special

from var_jax.scaling import laws, solver

Array = np.ndarray

LEVEL = 0.01  # probability of the statistic, if the form is right, below which a fit lacks
PURE_FREEDOM = 3  # least repeated runs beyond one per setting that measure the noise


class LackOfFit(NamedTuple):
    """The test of each row of residuals.

    Attributes:
      statistic: mean square of lack of fit over that of pure error, F.
      freedom: degrees of freedom of lack of fit, and of pure error.
      probability: that of a statistic as large if the form is right.
      scatter: standard deviation of runs about the law over that of repeated runs.
    """

    statistic: Float[Array, " s"]
    freedom: tuple[int, int]
    probability: Float[Array, " s"]
    scatter: Float[Array, " s"]

    @property
    def is_clear(self) -> Bool[Array, " s"]:
        """Whether the form does not describe the runs."""
        return self.probability < LEVEL


def examine(
    logx: Float[Array, "n j"],
    residuals: Float[Array, "s n"],
    weights: Float[Array, " n"],
    fitted: int,
) -> LackOfFit | None:
    """Returns the test of a law's residuals, or None where too few runs are repeated.

    None too for points that are not a run each, as those of a frontier are not.

    Args:
      logx: log of the inputs.
      residuals: measured minus predicted log losses, whitened if their noise is not of one size.
      weights: weight of each run.
      fitted: number of fitted parameters.
    """
    _, setting = np.unique(np.round(logx, 6), axis=0, return_inverse=True)
    setting = np.ravel(setting)
    runs, settings = len(logx), int(setting.max()) + 1
    freedom = settings - fitted, runs - settings
    if freedom[0] < 1 or freedom[1] < PURE_FREEDOM or not np.all(weights == 1):
        return None
    members = (np.arange(settings)[:, None] == setting).astype(float)
    means = (residuals @ (members.T / members.sum(axis=1))) @ members
    tiny = np.finfo(float).tiny
    pure = np.maximum(np.sum((residuals - means) ** 2, axis=1) / freedom[1], tiny)
    total = np.sum(residuals**2, axis=1)
    lack = np.maximum(total - pure * freedom[1], 0) / freedom[0]
    return LackOfFit(
        lack / pure,
        freedom,
        special.fdtrc(*freedom, lack / pure),
        np.sqrt(total / (runs - fitted) / pure),
    )


def of_law(p: solver.Problem, fit: laws.Fit, fitted: int) -> LackOfFit | None:
    """Returns the test of a fitted law, with the noise that its likelihood chose.

    Whitening leaves what is equal in all runs of a setting equal in them, so that the statistic is
    F for noise of that growth and share.

    Args:
      p: the problem in raw units.
      fitted: number of fitted parameters.
    """
    r = solver.residuals(dataclasses.replace(p, whitening=fit.whitening), fit.theta[None])
    return examine(p.logx, r, p.weights, fitted)


def warnings(tested: LackOfFit | None) -> list[str]:
    """Returns the warning that the form does not describe the runs, if that is clear."""
    if tested is None or not tested.is_clear[0]:
        return []
    first, second = tested.freedom
    return [
        "lack-of-fit: the form does not describe the runs, which scatter about it "
        f"{tested.scatter[0]:.2g} times as much as repeated runs do (F {tested.statistic[0]:.3g} "
        f"at {first} and {second} degrees of freedom, fewer if repeated runs are branches of one "
        "trunk); intervals allow for noise alone"
    ]


def is_misfit(summary: Mapping) -> bool:
    """Returns whether a law's entry in fit.json says that its form does not describe the runs."""
    tested = summary.get("lack_of_fit")
    return tested is not None and tested["p"] < LEVEL


def entry(tested: LackOfFit | None) -> dict | None:
    """Returns the entry of a law in fit.json."""
    if tested is None:
        return None
    return {
        "F": float(tested.statistic[0]),
        "degrees_of_freedom": list(tested.freedom),
        "p": float(tested.probability[0]),
        "scatter_over_repeated_runs": float(tested.scatter[0]),
    }
