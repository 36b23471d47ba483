"""Doubts about a fitted law: parameters that the runs do not determine, bends, outliers."""

import numpy as np
from jaxtyping import Float

from var_jax.scaling import laws, noise, profile_intervals, solver
from var_jax.scaling.select_runs import Sample
from var_jax.scaling.solver import Array

STARTS_AGREE = 0.5  # fraction of agreeing starts below which there is a warning
LOOSE = 0.05  # standard deviation of log loss above which a fit is called loose
CURVATURE = 2.0  # standard errors of downward curvature above which there is a warning
SMALLEST_OUTLIER = 2e-3  # log loss below which no run is called an outlier
OUTLIER = 5.0  # robust standard deviations off the law from which a run gets a warning
DETERMINED = 10.0  # ratio of the ends of an exponent's interval above which it is not determined
REMEDIES = {
    "params": "add sizes",
    "tokens": "add token budgets",
    "compute": "add runs of other budgets of compute",
}


def undetermined(sample: Sample, fit: laws.Fit, ends: Float[Array, "p 2"]) -> dict[str, str]:
    """Returns what to add to the runs for each exponent that they do not determine.

    An exponent is not determined if its interval does not close within the range that is searched,
    or has ends that differ by more than a factor of `DETERMINED`.
    """
    low, high = solver.ALPHA_RANGE
    remedies = {}
    for i, (name, column) in enumerate(
        zip(laws.PARAMETER_NAMES[len(sample.inputs)][2::2], sample.inputs, strict=True)
    ):
        row = 2 + 2 * i
        closed = ends[row, 0] > low * 1.01 and ends[row, 1] < high * 0.99
        at_bound = not low * 1.01 < fit.theta[row] < high * 0.99
        if at_bound or not closed or ends[row, 1] > DETERMINED * ends[row, 0]:
            remedies[name] = REMEDIES[column]
    return remedies


def warnings(
    sample: Sample,
    fit: laws.Fit,
    huber: laws.Fit,
    likelihood: profile_intervals.Likelihood,
    ends: Float[Array, "p 2"],
    floor: float | None,
) -> list[str]:
    """Returns what speaks against a fitted law, a line for each reason, which begins with its name.

    Args:
      huber: the law by Huber's loss, about which outliers are recognized.
      ends: the intervals of the law's parameters.
      floor: the value of E if it was not fitted.
    """
    lines = []
    smallest = float(sample.y.min())
    if floor is None and fit.theta[0] <= 1e-6 * smallest:
        lines.append(
            "E-at-bound: the best E is 0, its bound: the data show no floor, "
            "and alpha is only a lower limit"
        )
    elif floor is None and ends[0, 0] <= 1e-6 * smallest:
        lines.append("E-undetermined: E cannot be distinguished from 0")
    for i, name in list(enumerate(laws.PARAMETER_NAMES[len(sample.inputs)]))[2::2]:
        low, high = solver.ALPHA_RANGE
        if fit.theta[i] <= low * 1.01 or fit.theta[i] >= high * 0.99:
            lines.append(
                f"{name}-at-bound: the best {name} is {fit.theta[i]:g}, the end of its range"
            )
        elif ends[i, 0] <= low * 1.01 or ends[i, 1] >= high * 0.99:
            lines.append(
                f"{name}-unbounded: its interval does not close within {low:g} to {high:g}"
            )
    if len(sample.inputs) == 1:
        bend = curvature(sample)
        if bend is not None and bend < -CURVATURE:
            lines.append(
                f"concave: log loss bends downward in log {sample.inputs[0]} by {-bend:.1f} "
                "standard errors; no E >= 0 does that, so the law does not hold over this range"
            )
    if fit.starts_agreeing < STARTS_AGREE:
        lines.append(
            f"starts-disagree: {fit.starts_agreeing:.0%} of the starts end in the best optimum"
        )
    if not fit.loss.same(fit.projected, fit.cost, len(sample.y)) or not fit.starts_agreeing:
        lines.append("solvers-disagree: descent and variable projection end in different optima")
    if likelihood.noise > LOOSE:
        lines.append(
            f"loose-fit: runs scatter by {likelihood.noise:.0%} about the law; "
            "are they of one data set?"
        )
    if likelihood.freedom <= 0:
        lines.append(f"no-interval: {sample.runs} runs leave no degree of freedom")
    distinct = len(np.unique(np.round(np.log(sample.x[:, 0]), 6)))
    if len(sample.inputs) > 1 and distinct < noise.SIZES_TO_SHARE:
        lines.append(
            f"few-sizes-for-shared-noise: {distinct} different {sample.inputs[0]} hardly show "
            "whether runs of one size have an error in common, as branches of a trunk may; "
            f"{noise.SIZES_TO_SHARE} sizes can show it"
        )
    # The residuals of nearly least absolute errors show a stray run that another fit would follow.
    residual = np.abs(np.log(sample.y / huber.predict(sample.x)))
    limit = OUTLIER * _robust_deviation(residual, int(np.sum(~likelihood.held)))
    for name in dict.fromkeys(sample.run[residual > max(limit, SMALLEST_OUTLIER)]):
        largest = residual[sample.run == name].max()
        lines.append(f"outlier: run {name} is {largest:.2%} off the law by Huber's loss")
    return lines


def _robust_deviation(size: Float[Array, " n"], parameters: int) -> float:
    """Returns the noise's standard deviation from the median absolute residual.

    The `parameters` smallest residuals are left out, because a fit of nearly least absolute errors
    passes exactly through that many runs.
    """
    return float(1.4826 * np.median(np.sort(size)[min(parameters, len(size) - 1) :]))


def curvature(sample: Sample) -> float | None:
    """Returns the curvature of a log-log parabola over its standard error; negative bends down.

    None with fewer than five points.
    """
    logx, logy = np.log(sample.x[:, 0]), np.log(sample.y)
    if len(logy) < 5:
        return None
    design = np.vander(logx - logx.mean(), 3)
    weights = sample.weights
    inverse = np.linalg.pinv(design.T @ (weights[:, None] * design))
    coefficients = inverse @ design.T @ (weights * logy)
    left = np.sum(weights * (logy - design @ coefficients) ** 2) / max(weights.sum() - 3, 1)
    return float(coefficients[0] / max(np.sqrt(left * inverse[0, 0]), 1e-12))
