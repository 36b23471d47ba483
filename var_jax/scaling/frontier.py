"""Compute-optimal training: envelopes of training curves, IsoFLOP minima, joint laws' optima."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from var_jax.scaling import power
from var_jax.scaling.solver import Array
from var_jax.scaling.table import Table

POINTS_PER_DECADE = 10  # points of the envelope's grid
LEVELS_PER_DECADE = 3  # compute levels of interpolated IsoFLOP curves
WARM_UP = 0.1  # fraction of a training curve's compute that is dropped at its start
CURVE_ROWS = 3  # a run with at least this many rows is a curve of its own
EDGE = 1e-9  # fraction of compute by which a point may miss a curve's end through rounding
SAME_LEVEL = 0.05  # compute levels whose logarithms differ by less than this are one


@dataclasses.dataclass(frozen=True)
class Curve:
    """Loss against compute of one run, or of one size trained for several budgets.

    Points are in ascending order of compute.
    """

    name: str
    params: float
    compute: Float[Array, " k"]
    loss: Float[Array, " k"]
    run: Array

    def where(self, points) -> "Curve":
        """Returns the curve through only the given points."""
        return dataclasses.replace(
            self, compute=self.compute[points], loss=self.loss[points], run=self.run[points]
        )

    def at(self, compute: Float[Array, " g"]) -> Float[Array, " g"]:
        """Returns the loss interpolated in log-log space; infinite beyond the curve's ends."""
        if len(self.compute) == 1:
            inside = np.abs(np.log(compute / self.compute[0])) < SAME_LEVEL
            return np.where(inside, self.loss[0], np.inf)
        inside = (compute >= self.compute[0] * (1 - EDGE)) & (
            compute <= self.compute[-1] * (1 + EDGE)
        )
        return np.where(
            inside,
            np.exp(np.interp(np.log(compute), np.log(self.compute), np.log(self.loss))),
            np.inf,
        )


@dataclasses.dataclass(frozen=True)
class Envelope:
    """The compute-optimal frontier on a logarithmic grid of compute.

    Attributes:
      compute: the grid.
      loss, params: loss and size of the best curve at each grid point.
      owner: name of the best curve at each grid point.
      run: the run of that curve that is nearest to the grid point.
      weights: weights of the grid points; they sum to the number of runs that the frontier touches,
        because the points of one run are one observation.
      selection: a description of how the frontier was found.
    """

    compute: Float[Array, " g"]
    loss: Float[Array, " g"]
    params: Float[Array, " g"]
    owner: Array
    run: Array
    weights: Float[Array, " g"]
    selection: str


def curves(table: Table, column: str) -> list[Curve]:
    """Returns the curves of a table.

    Runs with several rows are curves themselves, without their warm-up. Otherwise the runs of each
    size, which differ in their token budgets, make a curve.
    """
    table = table.complete("compute", column)
    params = table.columns.get("params", np.full(len(table), np.nan))
    rows_by_run = {run: np.flatnonzero(table.run == run) for run in dict.fromkeys(table.run)}
    if max((len(rows) for rows in rows_by_run.values()), default=0) >= CURVE_ROWS:
        groups = {run: rows for run, rows in rows_by_run.items() if len(rows) > 1}
        warm_up = WARM_UP
    elif np.isfinite(params).any():
        sizes = np.unique(params[np.isfinite(params)])
        groups = {f"{size:.4g} parameters": np.flatnonzero(params == size) for size in sizes}
        warm_up = 0.0
    else:
        return []
    curves = []
    for name, rows in groups.items():
        rows = rows[np.argsort(table["compute"][rows])]
        rows = rows[table["compute"][rows] >= warm_up * table["compute"][rows[-1]]]
        curves.append(
            Curve(
                name,
                float(params[rows[-1]]),
                table["compute"][rows],
                table[column][rows],
                table.run[rows],
            )
        )
    return curves


def envelope(curves: list[Curve]) -> Envelope | None:
    """Returns the frontier, or None if no two curves of two or more points overlap in compute.

    Stretches with a single curve are dropped, because there it is the best for lack of others.
    """
    curves = [curve for curve in curves if len(curve.compute) > 1]
    if len(curves) < 2:
        return None
    low, high = min(c.compute[0] for c in curves), max(c.compute[-1] for c in curves)
    grid = np.geomspace(
        low, high, max(2, int(np.ceil(np.log10(high / low) * POINTS_PER_DECADE)) + 1)
    )
    losses = np.stack([curve.at(grid) for curve in curves])
    shared = np.flatnonzero(np.isfinite(losses).sum(axis=0) >= 2)
    if not len(shared):
        return None
    grid, losses = grid[shared], losses[:, shared]
    best = losses.argmin(axis=0)
    nearest = [
        curves[b].run[np.argmin(np.abs(np.log(curves[b].compute / c)))]
        for b, c in zip(best, grid, strict=True)
    ]
    runs = len(set(nearest))
    share = np.full(len(grid), runs / len(grid))
    text = (
        f"lower envelope of {len(curves)} curves at {len(grid)} points of compute, touched by "
        f"{runs} runs; edges where one curve stands alone are dropped"
    )
    owner = np.array([curves[b].name for b in best], dtype=object)
    return Envelope(
        grid,
        losses[best, np.arange(len(grid))],
        np.array([curves[b].params for b in best]),
        owner,
        np.array(nearest, dtype=object),
        share,
        text,
    )


def resampled_losses(
    curves: list[Curve], compute: Float[Array, " g"], resamples: int, seed: int = 0
) -> Float[Array, "r g"]:
    """Returns the envelope's losses at `compute` for bootstrap resamples of the runs.

    They show how much the envelope depends on the particular runs. They are infinite where fewer
    than two curves of a resample reach.
    """
    curves = [curve for curve in curves if len(curve.compute) > 1]
    runs, owner = np.unique(
        np.concatenate([curve.run for curve in curves]).astype(str), return_inverse=True
    )
    owners = np.split(owner, np.cumsum([len(curve.run) for curve in curves])[:-1])
    is_drawn = (
        np.random.default_rng(seed).multinomial(
            len(runs), np.full(len(runs), 1 / len(runs)), size=resamples
        )
        > 0
    )
    lowest = np.full((resamples, len(compute)), np.inf)
    curves_reaching = np.zeros(lowest.shape, int)
    for curve, run_indices in zip(curves, owners, strict=True):
        losses = _losses_of_subsets(curve, is_drawn[:, run_indices], compute)
        curves_reaching += np.isfinite(losses)
        np.minimum(lowest, losses, out=lowest)
    return np.where(curves_reaching >= 2, lowest, np.inf)


def _losses_of_subsets(
    curve: Curve, subsets: Bool[Array, "r k"], compute: Float[Array, " g"]
) -> Float[Array, "r g"]:
    """Returns the losses `curve.where(row).at(compute)` of all rows of `subsets`.

    It is infinite for rows that keep fewer than two points.
    """
    if len(set(curve.run)) == 1:
        return np.where(subsets[:, :1], curve.at(compute), np.inf)
    count = len(curve.compute)
    # The last kept point up to each point of the curve, and the first kept one from it on.
    index = np.arange(count)
    last = np.maximum.accumulate(np.where(subsets, index, -1), axis=1)
    first = np.minimum.accumulate(np.where(subsets, index, count)[:, ::-1], axis=1)[:, ::-1]
    # The kept points on either side of each value of compute.
    left = np.searchsorted(curve.compute, compute * (1 + EDGE), side="right") - 1
    right = np.searchsorted(curve.compute, compute * (1 - EDGE))
    low = np.where(left < 0, -1, last[:, np.maximum(left, 0)])
    high = np.where(right == count, count, first[:, np.minimum(right, count - 1)])
    inside = (low >= 0) & (high < count) & (subsets.sum(axis=1) > 1)[:, None]
    low, high = np.maximum(low, 0), np.minimum(high, count - 1)
    x, y = np.log(curve.compute), np.log(curve.loss)
    share = (np.log(compute) - x[low]) / np.maximum(x[high] - x[low], 1e-300)
    between = y[low] + np.clip(share, 0, 1) * (y[high] - y[low])
    return np.where(inside, np.exp(between), np.inf)


def isoflop(curves: list[Curve], at_least: int = 4) -> dict:
    """Finds the minima of loss over size at fixed compute, and the power law of the optimal size.

    Each minimum is that of a parabola in log size through the five sizes around the best one. A
    compute level is refused if the parabola has no minimum within the sampled sizes, or if fewer
    than `at_least` sizes reach the level.

    Returns:
      A dict with "minima" (compute, params and loss of each), "refused" (compute and reason),
      "exponent" (that of params against compute with its "ci95", or None with fewer than three
      minima), "levels" ((compute, params, loss) of the points at each level) and
      "interpolated", whether the levels lie between those that runs were trained to.
    """
    minima, refused, levels = [], [], []
    trained = _trained_levels(curves)
    for compute in trained or _levels_between(curves):
        points = sorted((c.params, float(c.at(np.array([compute]))[0])) for c in curves)
        points = np.array([point for point in points if np.isfinite(point).all()])
        if len(points) < at_least or len(np.unique(points[:, 0])) < at_least:
            refused.append(
                {
                    "compute": compute,
                    "reason": f"{len(points)} sizes reach it, {at_least} are needed",
                }
            )
            continue
        logs, losses = np.log(points[:, 0]), points[:, 1]
        start = int(np.clip(np.argmin(losses) - 2, 0, max(0, len(logs) - 5)))
        near = slice(start, start + 5)
        middle = logs[near].mean()
        a, b, c = np.polyfit(logs[near] - middle, losses[near], 2)
        center = -b / (2 * a) if a > 0 else np.nan
        levels.append((compute, points[:, 0], losses))
        if not a > 0:
            refused.append({"compute": compute, "reason": "loss over size has no minimum"})
        elif not logs[0] <= center + middle <= logs[-1]:
            where = "below" if center + middle < logs[0] else "above"
            refused.append(
                {"compute": compute, "reason": f"the minimum lies {where} the sampled sizes"}
            )
        elif np.argmin(losses) in (0, len(losses) - 1):
            refused.append(
                {"compute": compute, "reason": "the best size is the smallest or largest sampled"}
            )
        else:
            minima.append(
                {
                    "compute": compute,
                    "params": float(np.exp(center + middle)),
                    "loss": float(c - b**2 / (4 * a)),
                }
            )
    law = optimal_size_law(minima)
    return {
        "minima": minima,
        "refused": refused,
        "exponent": law,
        "levels": levels,
        "interpolated": not trained,
    }


def optimal_size_law(minima: list[dict]) -> dict | None:
    """Returns the power law of the minima's params against their compute, None for fewer than 3."""
    if len(minima) < 3:
        return None
    compute = np.array([minimum["compute"] for minimum in minima])
    params = np.array([minimum["params"] for minimum in minima])
    fitted = power.fit(compute, params)
    ends = list(fitted.exponent_ci95)
    return {"value": fitted.exponent, "ci95": ends, "A": float(np.exp(fitted.log_a))}


def _trained_levels(curves: list[Curve]) -> list[float]:
    """Returns the compute levels that several sizes were trained to; [] with fewer than two."""
    ends = _ends(curves)
    breaks = np.flatnonzero(np.diff(np.log(ends)) > SAME_LEVEL)
    groups = [
        group
        for group in np.split(ends, breaks + 1)
        if len(group) >= 4 and group[-1] / group[0] < 1 + 2 * SAME_LEVEL
    ]
    return [float(np.exp(np.log(group).mean())) for group in groups] if len(groups) >= 2 else []


def _levels_between(curves: list[Curve]) -> list[float]:
    """Returns a grid of compute over all curves; [] without any."""
    ends = _ends(curves)
    if not len(ends):
        return []
    low, high = ends[0], ends[-1]
    count = int(np.floor(np.log10(high / low) * LEVELS_PER_DECADE)) + 1
    return [float(c) for c in np.geomspace(low, high, max(count, 2))[1:-1]]


def _ends(curves: list[Curve]) -> Float[Array, " n"]:
    return np.sort(np.concatenate([curve.compute for curve in curves])) if curves else np.zeros(0)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Training FLOPs per token as a power law of size, exp(intercept) N^slope.

    It relates compute to size and tokens.

    Attributes:
      scatter: standard deviation of the log FLOPs per token about the line.
    """

    intercept: float
    slope: float
    scatter: float

    def per_token(self, params: Float[Array, " n"]) -> Float[Array, " n"]:
        """Returns the training FLOPs per token of models with `params` parameters."""
        return np.exp(self.intercept + self.slope * np.log(params))


def cost(table: Table) -> Cost | None:
    """Fits the training FLOPs per token, as a power law of the parameters, to a table's runs.

    It returns None if a column is missing or all sizes are equal.
    """
    if not {"params", "tokens", "compute"} <= set(table.columns):
        return None
    table = table.complete("params", "tokens", "compute")
    if len(np.unique(table["params"])) < 2:
        return None
    x, y = np.log(table["params"]), np.log(table["compute"] / table["tokens"])
    slope, intercept = np.polyfit(x, y, 1)
    return Cost(float(intercept), float(slope), float(np.std(y - intercept - slope * x)))


def optimum(theta: Float[Array, "r 5"], cost: Cost, compute: float) -> Float[Array, "r 2"]:
    """Returns (params, tokens) of the lowest loss at a compute budget, for each joint law `theta`.

    The laws are in raw units. Rows are NaN where there is no optimum.
    """
    if cost.slope <= 0:
        return np.full((len(theta), 2), np.nan)
    # The derivative of A N^-alpha + B D^-beta with D = compute / cost(N) has one root in N, which
    # is known in closed form.
    _, log_a, alpha, log_b, beta = theta.T
    gap = (
        log_a
        + np.log(alpha)
        - log_b
        - np.log(beta * cost.slope)
        + beta * (np.log(compute) - cost.intercept)
    )
    log_n = np.clip(gap / (alpha + beta * cost.slope), -300, 300)
    tokens = compute / np.exp(cost.intercept + cost.slope * log_n)
    return np.stack([np.exp(log_n), tokens], axis=-1)
