"""How a law's parameters change under other reasonable choices of estimator, runs and counting."""

import dataclasses

import numpy as np
from jaxtyping import Float

from var_jax.scaling import estimate, laws, losses, select_runs, solver
from var_jax.scaling.select_runs import Sample
from var_jax.scaling.solver import Array
from var_jax.scaling.table import Table

HEAVY_TAILS = 4.0  # degrees of freedom of the noise that is tried where normal noise was chosen
GROUPS = {"params": "size", "compute": "compute"}


def alternatives(
    sample: Sample,
    fit: laws.Fit,
    huber: laws.Fit,
    floor: float | None,
    without_largest: laws.Fit | None = None,
) -> list[dict[str, str | float]]:
    """Returns the law's parameters under other choices, one dict per choice.

    The choices are the objective, the runs at either end of the sizes, and a floor of zero. One
    that the runs do not support is left out.

    Args:
      fit: the reported law.
      huber: the law by Huber's loss.
      floor: a fixed value of E, or None if it is fitted.
      without_largest: the law without the largest size, if it was fitted already.
    """
    rows = [
        _row(estimate.describe(fit, sample.inputs[0]), fit),
        _row(f"Huber's loss at {huber.loss.delta:g}", huber),  # type: ignore[attr-defined]
    ]
    normal = fit.loss == losses.StudentT() and fit.whitening is None
    loss = losses.StudentT(HEAVY_TAILS) if normal else losses.StudentT()
    other = _refit(sample, floor, loss)
    rows.append(_row(estimate.describe(other), other))
    sizes = sample.x[:, 0]
    for name, extreme, known in (
        ("smallest", np.argmin(sizes), None),
        ("largest", np.argmax(sizes), without_largest),
    ):
        rest = sample.where(sample.group != sample.group[int(extreme)])
        enough = rest.weights.sum() > 1 + 2 * len(sample.inputs)
        if enough and len(np.unique(rest.x[:, 0])) >= select_runs.MIN_SIZES:
            group = "curve of the frontier" if sample.curves else GROUPS[sample.inputs[0]]
            rows.append(_row(f"without the {name} {group}", known or _refit(rest, floor)))
    if floor is None:
        rows.append(_row("without a floor, E = 0", _refit(sample, 0.0)))
    return rows


def other_counting(
    table: Table, column: str, inputs: tuple[str, ...], floor: float | None
) -> list[dict[str, str | float]]:
    """Returns the law under each other count of parameters or FLOPs that the table has.

    These are columns such as params_body and compute_6nd of a sweep.
    """
    rows = []
    for name in inputs:
        for other in table.columns:
            if not other.startswith(f"{name}_"):
                continue
            counted = dataclasses.replace(
                table, columns={**table.columns, name: table.columns[other]}
            )
            try:
                sample = select_runs.sample(counted, column, inputs)
            except select_runs.Refused:
                continue
            rows.append(_row(f"{other} instead of {name}", _refit(sample, floor)))
    return rows


def alpha_given_floor(
    p: solver.Problem, fit: laws.Fit, e_ends: Float[Array, "2"]
) -> list[list[float]]:
    """Returns [E, alpha] pairs: the best exponent for E = 0, the ends of E's interval, and E."""
    centered, mean = laws.center(p)
    smallest = float(np.exp(p.logy.min()))
    floors = [
        0.0,
        *(float(e) for e in e_ends if np.isfinite(e) and 0 < e < smallest),
        float(fit.theta[0]),
    ]
    floors = sorted(set(floors))
    rows = []
    for floor in floors:
        near = laws.shift(fit.theta, -mean)
        near[0] = floor
        rows += [near, *laws.starts(centered, floor)]
    ends, costs = solver.solve(centered, np.array(rows), np.arange(3) == 0)
    best = costs.reshape(len(floors), -1).argmin(axis=1)
    ends = ends.reshape(len(floors), -1, 3)
    return [[e, float(ends[i, best[i], 2])] for i, e in enumerate(floors)]


def _refit(sample: Sample, floor: float | None, loss: losses.Loss | None = None) -> laws.Fit:
    """Returns the law of a sample by the reported estimator, or by the given loss."""
    if loss is None:
        p = solver.problem(sample.x, sample.y, losses.StudentT(), sample.weights)
        return estimate.fit(p, floor, check=False)
    p = solver.problem(sample.x, sample.y, loss, sample.weights)
    return laws.fit(p, floor, check=False)


def _row(choice: str, fit: laws.Fit) -> dict[str, str | float]:
    values = fit.values
    names = [name for name in values if name not in "AB"]
    return {"choice": choice, **{name: float(values[name]) for name in names}}
