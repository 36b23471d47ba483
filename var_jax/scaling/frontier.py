"""What compute buys: the lower envelope of the runs' curves, IsoFLOP minima, and the optimum of a
joint law."""

import dataclasses

import numpy as np
from jaxtyping import Float

from var_jax.scaling import power
from var_jax.scaling.solver import Array
from var_jax.scaling.table import Table

PER_DECADE = 10  # points of the envelope's grid
LEVELS_PER_DECADE = 3  # compute levels of interpolated IsoFLOP curves
WARM_UP = 0.1  # share of a training curve's compute that is dropped at its start
CURVE_ROWS = 3  # a run with as many rows is a curve of its own
SAME = 0.05  # compute levels this close are one


@dataclasses.dataclass(frozen=True)
class Curve:
    """Loss against compute of one run, or of one size trained for several budgets; ascending in
    compute."""

    name: str
    params: float
    compute: Float[Array, " k"]
    loss: Float[Array, " k"]
    run: Array

    def where(self, points) -> "Curve":
        return dataclasses.replace(
            self, compute=self.compute[points], loss=self.loss[points], run=self.run[points]
        )

    def at(self, compute: Float[Array, " g"]) -> Float[Array, " g"]:
        """Loss interpolated on logarithms; infinite where the curve does not reach."""
        if len(self.compute) == 1:
            inside = np.abs(np.log(compute / self.compute[0])) < SAME
            return np.where(inside, self.loss[0], np.inf)
        edge = 1e-9
        inside = (compute >= self.compute[0] * (1 - edge)) & (
            compute <= self.compute[-1] * (1 + edge)
        )
        return np.where(
            inside,
            np.exp(np.interp(np.log(compute), np.log(self.compute), np.log(self.loss))),
            np.inf,
        )


@dataclasses.dataclass(frozen=True)
class Envelope:
    """The compute-optimal frontier on a logarithmic grid.

    Attributes:
      compute, loss, params: of the best curve at each grid point.
      owner: the curve that is best there.
      run: the run nearest to each grid point.
      weights: they sum to the number of runs that the frontier touches, since points of one run are
        one observation.
      text: how it was drawn.
    """

    compute: Float[Array, " g"]
    loss: Float[Array, " g"]
    params: Float[Array, " g"]
    owner: Array
    run: Array
    weights: Float[Array, " g"]
    text: str


def curves(table: Table, column: str) -> list[Curve]:
    """The curves of a table: its runs' own where they have several rows, else every size over its
    token budgets."""
    table = table.complete("compute", column)
    params = table.columns.get("params", np.full(len(table), np.nan))
    rows_of = {run: np.flatnonzero(table.run == run) for run in dict.fromkeys(table.run)}
    if max((len(rows) for rows in rows_of.values()), default=0) >= CURVE_ROWS:
        groups = {run: rows for run, rows in rows_of.items() if len(rows) > 1}
        warm_up = WARM_UP
    elif np.isfinite(params).any():
        sizes = np.unique(params[np.isfinite(params)])
        groups = {f"{size:.4g} parameters": np.flatnonzero(params == size) for size in sizes}
        warm_up = 0.0
    else:
        return []
    found = []
    for name, rows in groups.items():
        rows = rows[np.argsort(table["compute"][rows])]
        rows = rows[table["compute"][rows] >= warm_up * table["compute"][rows[-1]]]
        found.append(
            Curve(
                name,
                float(params[rows[-1]]),
                table["compute"][rows],
                table[column][rows],
                table.run[rows],
            )
        )
    return found


def envelope(found: list[Curve]) -> Envelope | None:
    """The frontier, or None where no two curves of two or more points overlap in compute.

    Edges where one curve stands alone are dropped: it is best there for want of others.
    """
    found = [curve for curve in found if len(curve.compute) > 1]
    if len(found) < 2:
        return None
    low, high = min(c.compute[0] for c in found), max(c.compute[-1] for c in found)
    grid = np.geomspace(low, high, max(2, int(np.ceil(np.log10(high / low) * PER_DECADE)) + 1))
    losses = np.stack([curve.at(grid) for curve in found])
    shared = np.flatnonzero(np.isfinite(losses).sum(axis=0) >= 2)
    if not len(shared):
        return None
    grid, losses = grid[shared], losses[:, shared]
    best = losses.argmin(axis=0)
    nearest = [
        found[b].run[np.argmin(np.abs(np.log(found[b].compute / c)))]
        for b, c in zip(best, grid, strict=True)
    ]
    runs = len(set(nearest))
    share = np.full(len(grid), runs / len(grid))
    text = (
        f"lower envelope of {len(found)} curves at {len(grid)} points of compute, touched by {runs} runs; "
        f"edges where one curve stands alone are dropped"
    )
    owner = np.array([found[b].name for b in best], dtype=object)
    return Envelope(
        grid,
        losses[best, np.arange(len(grid))],
        np.array([found[b].params for b in best]),
        owner,
        np.array(nearest, dtype=object),
        share,
        text,
    )


def redrawn(
    found: list[Curve], compute: Float[Array, " g"], resamples: int, seed: int = 0
) -> Float[Array, "r g"]:
    """The envelope's losses at `compute` for runs drawn with replacement: what it owes to the runs
    that made it.

    Infinite where fewer than two of a resample's curves reach.
    """
    found = [curve for curve in found if len(curve.compute) > 1]
    runs, owner = np.unique(
        np.concatenate([curve.run for curve in found]).astype(str), return_inverse=True
    )
    owners = np.split(owner, np.cumsum([len(curve.run) for curve in found])[:-1])
    drawn = (
        np.random.default_rng(seed).multinomial(
            len(runs), np.full(len(runs), 1 / len(runs)), size=resamples
        )
        > 0
    )
    out = np.full((resamples, len(compute)), np.inf)
    for row, there in zip(out, drawn, strict=True):
        losses = np.full((len(found), len(compute)), np.inf)
        for line, curve, mine in zip(losses, found, owners, strict=True):
            if (kept := there[mine]).sum() > 1:
                line[:] = curve.where(kept).at(compute)
        reached = np.isfinite(losses).sum(axis=0) >= 2
        row[reached] = losses.min(axis=0)[reached]
    return out


def isoflop(found: list[Curve], at_least: int = 4) -> dict:
    """Minima of loss over size at fixed compute, and the power law of the optimal size.

    A parabola in log size through the five sizes around the best one; refused where it has no
    minimum within the sampled sizes, or fewer than `at_least` sizes reach the level.

    Returns:
      "minima": compute, params and loss of each; "refused": compute and reason; "exponent": of
      params against compute with "ci95", or None with fewer than 3 minima; "levels": (compute,
      params, loss) behind each minimum.
    """
    minima, refused, levels = [], [], []
    for compute in _levels(found):
        points = sorted((c.params, float(c.at(np.array([compute]))[0])) for c in found)
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
        begin = int(np.clip(np.argmin(losses) - 2, 0, max(0, len(logs) - 5)))
        near = slice(begin, begin + 5)
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
    law = None
    if len(minima) >= 3:
        fitted = power.fit(*(np.array([m[name] for m in minima]) for name in ("compute", "params")))
        law = {
            "value": fitted.exponent,
            "ci95": list(fitted.exponent_ci95),
            "A": float(np.exp(fitted.log_a)),
        }
    return {"minima": minima, "refused": refused, "exponent": law, "levels": levels}


def _levels(found: list[Curve]) -> list[float]:
    """Compute at which sizes were trained side by side, else a grid over the curves' range."""
    if not found:
        return []
    ends = np.sort(np.concatenate([c.compute for c in found]))
    breaks = np.flatnonzero(np.diff(np.log(ends)) > SAME)
    groups = [
        group
        for group in np.split(ends, breaks + 1)
        if len(group) >= 4 and group[-1] / group[0] < 1 + 2 * SAME
    ]
    if len(groups) >= 2:
        return [float(np.exp(np.log(group).mean())) for group in groups]
    low, high = ends[0], ends[-1]
    count = int(np.floor(np.log10(high / low) * LEVELS_PER_DECADE)) + 1
    return [float(c) for c in np.geomspace(low, high, max(count, 2))[1:-1]]


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOPs a token of training, exp(intercept) N^slope: what ties compute to size and tokens.

    Attributes:
      scatter: standard deviation of its logarithm about the line.
    """

    intercept: float
    slope: float
    scatter: float

    def per_token(self, params: Float[Array, " n"]) -> Float[Array, " n"]:
        return np.exp(self.intercept + self.slope * np.log(params))


def cost(table: Table) -> Cost | None:
    """The cost line of a table's runs; None where a column is missing or there is one size."""
    if not {"params", "tokens", "compute"} <= set(table.columns):
        return None
    table = table.complete("params", "tokens", "compute")
    if len(np.unique(table["params"])) < 2:
        return None
    x, y = np.log(table["params"]), np.log(table["compute"] / table["tokens"])
    slope, intercept = np.polyfit(x, y, 1)
    return Cost(float(intercept), float(slope), float(np.std(y - intercept - slope * x)))


def optimum(theta: Float[Array, "r 5"], price: Cost, compute: float) -> Float[Array, "r 2"]:
    """Size and tokens of least loss for a budget, by each of the joint laws `theta` (raw units)."""
    out = np.empty((len(theta), 2))
    for row, law in zip(out, theta, strict=True):
        if price.slope <= 0 or not np.isfinite(law).all():
            row[:] = np.nan
            continue
        # d/dN of A N^-alpha + B D^-beta with D = compute / cost(N): one root, in closed form.
        _, log_a, alpha, log_b, beta = law
        gap = (
            log_a
            + np.log(alpha)
            - log_b
            - np.log(beta * price.slope)
            + beta * (np.log(compute) - price.intercept)
        )
        log_n = gap / (alpha + beta * price.slope)
        row[:] = (
            np.exp(np.clip(log_n, -700, 700)),
            compute / np.exp(price.intercept + price.slope * log_n),
        )
    return out
