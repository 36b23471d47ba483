"""Answers what a reader must know of a fit before using it.

The questions are those on which published scaling laws were found to differ or to be silent
(Li et al. 2025, (Mis)Fitting: A Survey of Scaling Laws).
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from var_jax.scaling.table import Table

TOPICS = ("parameters", "compute", "learning rates", "schedules")  # facts that an author may state
EXACT = 1e-3  # relative difference that rounding of a written table may make
UNKNOWN = "not recorded in the table; its author must say"
STARTS = (
    "batched Levenberg-Marquardt from 12 starts over exponents and floors, checked by variable "
    "projection on a grid of exponents"
)


def checklist(table: Table, summaries: Mapping[str, Mapping]) -> dict[str, str]:
    """Returns the answers by question, for a table and the entries of its laws in fit.json."""
    fitted = {key: law for key, law in summaries.items() if law.get("huber")}
    facts = table.facts
    out = Counter(reason for _, reason in table.dropped)
    left_out = "; ".join(f"{count} as {reason}" for reason, count in out.most_common(5))
    more = f"; and {len(out) - 5} more reasons" if len(out) > 5 else ""
    agreeing = min((law["starts_agreeing"] for law in fitted.values()), default=None)
    starts = "" if agreeing is None else f"; {_least(agreeing)} of the starts agree"
    return {
        "form": _per_law(fitted, "form"),
        "runs in": f"{len(set(table.run))} runs in {len(table)} rows; each law names its points",
        "rows out": f"{len(table.dropped)}: {left_out}{more}" if out else "none",
        "parameters counted": facts.get("parameters", UNKNOWN),
        "FLOPs counted": _both(facts.get("compute", ""), _compute(table)),
        "learning rates": _both(facts.get("learning rates", ""), _learning_rates(table)),
        "schedules": facts.get("schedules", UNKNOWN),
        "rows of a run": facts.get("rows", "all"),
        "optimizer of the fit": STARTS + starts,
        "objective": _per_law(fitted, "estimator"),
        "intervals": _per_law(fitted, "interval_method"),
        "held-out error": _holdouts(summaries),
    }


def _both(stated: str, shown: str) -> str:
    """Returns what is stated beside what the columns show, so that neither hides the other."""
    if stated and shown:
        return f"{stated}; by the table's columns: {shown}"
    return stated or shown or UNKNOWN


def _least(share: float) -> str:
    return "all" if share == 1 else f"at least {share:.0%}"


def _compute(table: Table) -> str:
    """Returns what the columns themselves say of the FLOPs; "" if they say nothing."""
    if not {"compute", "params", "tokens"} <= table.columns.keys():
        return ""
    ratio = table["compute"] / (6 * table["params"] * table["tokens"])
    ratio = ratio[np.isfinite(ratio)]
    if not len(ratio):
        return ""
    if np.allclose(ratio, 1, rtol=EXACT):
        return "6 N D of the table's parameters and tokens"
    return (
        f"{ratio.min():.3g} to {ratio.max():.3g} times 6 N D of the table's parameters and "
        "tokens; how, its author must say"
    )


def _learning_rates(table: Table) -> str:
    """Returns which learning rates the runs have, and whether a size has several; "" if unknown."""
    if not {"learning_rate", "params"} <= table.columns.keys():
        return ""
    pairs = np.stack([table["params"], table["learning_rate"]], axis=1)
    pairs = np.unique(pairs[np.isfinite(pairs).all(axis=1)], axis=0)
    if not len(pairs):
        return ""
    rates, sizes = pairs[:, 1], Counter(pairs[:, 0].tolist())
    most = max(sizes.values())
    tuned = (
        f"up to {most} for a number of parameters"
        if most > 1
        else "one for each number of parameters, so that the table does not show how it was tuned"
    )
    return f"peaks from {rates.min():.3g} to {rates.max():.3g}, {tuned}"


def _per_law(fitted: Mapping[str, Mapping], name: str) -> str:
    """Returns a value that laws have in common once, and others with the laws that have them."""
    laws_by_value: dict[str, list[str]] = {}
    for key, law in fitted.items():
        laws_by_value.setdefault(law[name], []).append(key)
    if len(laws_by_value) == 1:
        return next(iter(laws_by_value))
    parts = [f"{value} ({', '.join(keys)})" for value, keys in laws_by_value.items()]
    return "; ".join(parts) or "no law was fitted"


def _holdouts(summaries: Mapping[str, Mapping]) -> str:
    parts = []
    for key, law in summaries.items():
        error = law.get("holdout_relative_error")
        parts.append(f"{key} {'none' if error is None else f'{error:.2%}'}")
    return "of the largest size, " + ", ".join(parts)
