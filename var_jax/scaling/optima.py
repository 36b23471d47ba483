"""The best learning rate and batch size as power laws of size, tokens and compute.

At every size, token budget and batch the optimum of the rate is that of a parabola in its logarithm
through the rates around the best. It is refused where the best rate is the smallest or the largest
that was run. The best batch follows likewise from the losses at the best rates. The laws are
straight lines of the logarithms.

Source: Bi et al. 2024 (DeepSeek LLM), section 3.1; Li et al. 2025 (Step Law).
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from var_jax.scaling.select_runs import RISE_TOGETHER
from var_jax.scaling.table import Table
from var_jax.scaling.tuned_runs import BATCH, BUDGET, RATE, Budget, Setting, budgets, rounded

Array = np.ndarray

NEAR = 5  # points around the best one that the parabola goes through
AT_LEAST = 3  # points of a parabola, and different values of an input of a law
INPUTS_OF_RATE = (("params", "tokens", BATCH), ("compute",))
INPUTS_OF_BATCH = (("tokens",), ("compute",))
MORE = {RATE: "rates", BATCH: "batch sizes"}
# Warnings of optima that are refused: too few settings, the best at an end, no parabola.
NAMES = {
    RATE: ("few-rates", "rate-at-edge", "rate-unclear"),
    BATCH: ("few-batches", "batch-at-edge", "batch-unclear"),
}


class Minimum(NamedTuple):
    """The minimum of a parabola in the logarithm of a setting.

    Attributes:
      value, loss: the best setting and its loss, NaN where it is refused.
      reason: why it is refused, as "name: text", or "".
    """

    value: float
    loss: float
    reason: str


def optima(table: Table, column: str) -> dict | None:
    """Returns the entry "optima" of fit.json, or None for a table that varies neither setting.

    Args:
      table: all runs, those at other rates than the best too.
      column: the loss that is lowest at the optima.
    """
    groups = budgets(table, column)
    by_batch = [_by_batch(group) for group in groups]
    varies = {
        # Rates that differ with the batch alone are one rate of each.
        RATE: any(len(same) > 1 for batches in by_batch for same in batches),
        BATCH: any(len(batches) > 1 for batches in by_batch),
    }
    if not any(varies.values()):
        return None
    rates, batches = [], []
    for group, settings in zip(groups, by_batch, strict=True):
        lowest = []
        for same in settings:
            entry = {**group.inputs, **_batch(same[0].batch)}
            if varies[RATE]:
                minimum = _minimum([s.rate for s in same], [s.loss for s in same], RATE)
                curve = [[s.rate, s.loss] for s in same]
                rates.append({**entry, **_entry(RATE, minimum), "runs": curve})
            else:
                best = same[0]
                minimum = Minimum(best.rate, best.loss, "" if best.loss > 0 else "it diverged")
            lowest.append((same[0].batch, minimum))
        if varies[BATCH]:
            usable = [(batch, m.loss) for batch, m in lowest if not m.reason]
            minimum = _minimum([b for b, _ in usable], [loss for _, loss in usable], BATCH)
            curve = [[batch, loss] for batch, loss in usable]
            batches.append({**group.inputs, **_entry(BATCH, minimum), "runs": curve})
    laws, notes = {}, []
    if varies[BATCH] and not varies[RATE]:
        notes.append(
            "fixed-rate: each batch size was run at one learning rate, and the best one "
            "is that at these rates"
        )
    for name, entries, kinds in (
        (RATE, rates, INPUTS_OF_RATE),
        (BATCH, batches, INPUTS_OF_BATCH),
    ):
        points = [entry for entry in entries if "refused" not in entry]
        notes += _refusals(name, entries)
        for kind in kinds if entries else ():
            chosen = _best_batches(points) if name == RATE and BATCH not in kind else points
            key, law = _law(name, chosen, kind)
            if key:
                laws[key] = law
    result = {"column": column, RATE: rates, BATCH: batches, "laws": laws, "warnings": notes}
    return {key: value for key, value in result.items() if value or key in ("laws", "warnings")}


def _by_batch(group: Budget) -> list[list[Setting]]:
    """Returns the settings of each batch in ascending order of rate; they differ in it alone."""
    ordered = sorted(group.settings, key=lambda s: (rounded(s.batch), rounded(s.rate)))
    return [list(same) for _, same in itertools.groupby(ordered, lambda s: rounded(s.batch))]


def _batch(value: float) -> dict[str, float]:
    return {} if np.isnan(value) else {BATCH: value}


def _entry(name: str, minimum: Minimum) -> dict:
    if minimum.reason:
        return {"refused": minimum.reason}
    return {f"best_{name}": minimum.value, "loss": minimum.loss}


def _minimum(values: Sequence[float], losses: Sequence[float], name: str) -> Minimum:
    """Returns the minimum of a parabola in log value through the points around the best.

    Losses that are not positive numbers are those of diverged runs: they bound the others, and are
    not on the parabola.
    """
    more, settings = MORE[name], np.array(values, float)
    y = np.array(losses, float)
    order = np.argsort(settings)
    settings, y = settings[order], y[order]
    is_finite = np.isfinite(y) & (y > 0)
    x = np.log(settings[is_finite])
    y = np.log(y[is_finite])

    def refused(reason: str) -> Minimum:
        return Minimum(np.nan, np.nan, reason)

    few, edge, unclear = NAMES[name]
    if len(x) < AT_LEAST:
        return refused(
            f"{few}: {AT_LEAST} {more} with a loss are needed, there are {len(x)}: add {more}"
        )
    best = int(np.argmin(y))
    if best == 0:
        return refused(f"{edge}: the smallest of {len(x)} {more} is the best: add smaller {more}")
    if best == len(x) - 1:
        beyond = not is_finite[-1]
        where = f"{more} between it and the diverged one" if beyond else f"larger {more}"
        return refused(
            f"{edge}: the largest of {len(x)} {more} that converged is the best: add {where}"
        )
    start = int(np.clip(best - NEAR // 2, 0, max(0, len(x) - NEAR)))
    near = slice(start, start + NEAR)
    middle = x[near].mean()
    a, b, c = np.polyfit(x[near] - middle, y[near], 2)
    place = middle - b / (2 * a) if a > 0 else np.nan
    if not x[near][0] < place < x[near][-1]:
        return refused(
            f"{unclear}: the parabola through the {len(x[near])} {more} around the best has no "
            f"minimum between them: add {more} or seeds"
        )
    return Minimum(float(np.exp(place)), float(np.exp(c - b**2 / (4 * a))), "")


def _best_batches(points: list[dict]) -> list[dict]:
    """Returns at every size and token budget the optimum of the batch with the lowest loss."""
    chosen: dict[tuple, dict] = {}
    for point in points:
        key = tuple(point.get(name) for name in BUDGET)
        if key not in chosen or point["loss"] < chosen[key]["loss"]:
            chosen[key] = point
    return list(chosen.values())


def _refusals(name: str, entries: list[dict]) -> list[str]:
    refused = [entry["refused"] for entry in entries if "refused" in entry]
    notes = []
    for label in NAMES[name]:
        reasons = [r.removeprefix(f"{label}: ") for r in refused if r.startswith(f"{label}: ")]
        if reasons:
            text = "; ".join(dict.fromkeys(reasons))
            notes.append(f"{label}: {len(reasons)} of {len(entries)} optima are refused: {text}")
    return notes


def _law(name: str, points: list[dict], kind: tuple[str, ...]) -> tuple[str, dict]:
    """Returns the key and the entry of the law of the optima against those of `kind` that vary."""
    notes = []
    inputs = [
        key
        for key in kind
        if points
        and all(key in point for point in points)
        and np.ptp(np.log([point[key] for point in points])) > 0.01
    ]
    if not inputs:
        return "", {}
    x = np.array([[point[key] for key in inputs] for point in points])
    y = np.array([point[f"best_{name}"] for point in points])
    key = f"{name}~{'+'.join(inputs)}"
    form = " ".join(["c", *(f"{_symbol(i)}^{_exponent(i)}" for i in inputs)])
    names = ["c", *(_exponent(i) for i in inputs)]
    entry: dict = {"form": form, "inputs": inputs, "n_optima": len(y)}
    needed = len(names) + 1
    why = ""
    if len(y) < needed:
        why = f"few-optima: {len(y)} optima; {needed} are needed for {len(names)} parameters"
    elif np.linalg.matrix_rank(np.log(x / x[0]), tol=RISE_TOGETHER) < len(inputs):
        why = f"confounded: {', '.join(inputs)} rise together: run sizes at other token budgets"
    if why:
        nothing = {"value": None, "ci95": [None, None]}
        return key, {**entry, **dict.fromkeys(names, nothing), "warnings": [f"refused: {why}"]}
    values, ends, scatter = line(np.log(x), np.log(y))
    entry["c"] = {"value": float(np.exp(values[0])), "ci95": np.exp(ends[0]).tolist()}
    for i, label in enumerate(names[1:], start=1):
        entry[label] = {"value": float(values[i]), "ci95": ends[i].tolist()}
    for i, label in enumerate(inputs):
        distinct = len(np.unique(np.round(np.log(x[:, i]), 2)))
        if distinct < AT_LEAST:
            notes.append(
                f"few-values: {distinct} different {label}: nothing shows whether it is a power"
            )
    return key, {**entry, "scatter": scatter, "warnings": notes}


class Line(NamedTuple):
    """A straight line of logarithms.

    Attributes:
      values: [log c, a_1, ...].
      ends: their 95 % intervals by Student's t.
      scatter: standard deviation about the line.
    """

    values: Float[Array, " p"]
    ends: Float[Array, "p 2"]
    scatter: float


def line(logx: Float[Array, "n k"], logy: Float[Array, " n"]) -> Line:
    """Fits log y = log c + sum_i a_i log x_i by least squares, of more points than parameters."""
    design = np.column_stack([np.ones(len(logy)), logx])
    values, *_ = np.linalg.lstsq(design, logy, rcond=None)
    freedom = len(logy) - design.shape[1]
    scatter = np.sqrt(np.sum((logy - design @ values) ** 2) / freedom)
    # The factor of the design is better conditioned than its square.
    inverse = np.linalg.inv(np.linalg.qr(design, mode="r"))
    half = special.stdtrit(freedom, 0.975) * scatter * np.sqrt(np.sum(inverse**2, axis=1))
    return Line(values, np.stack([values - half, values + half], axis=1), float(scatter))


def _symbol(name: str) -> str:
    return {"params": "N", "tokens": "D", "compute": "C", BATCH: "batch"}[name]


def _exponent(name: str) -> str:
    """Returns the name of the exponent of an input."""
    return {"params": "a", "tokens": "b", BATCH: "g", "compute": "h"}[name]
