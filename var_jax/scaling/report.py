"""Fits all laws of a table of runs, and writes fit.json, report.md and the plots."""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from var_jax.errors import UserError, did_you_mean
from var_jax.io import atomic
from var_jax.scaling import analysis, frontier, laws, plots, power, prediction, select_runs
from var_jax.scaling.table import Table

KINDS = (("params",), ("compute",), ("params", "tokens"))


def fit_table(
    table: Table,
    *,
    resamples: int = 1000,
    floors: Mapping[str, float] | None = None,
    delta: float = laws.DELTA,
    predict: Sequence[Mapping[str, float]] = (),
) -> tuple[dict, dict]:
    """Fits every law that the table's columns allow.

    Args:
      resamples: number of bootstrap resamples of the runs; 0 leaves the bootstrap out.
      floors: fixed values of E by fitted column; the key "" stands for all other columns.
      delta: Huber's constant, in log loss, of the laws in "huber".
      predict: inputs at which the loss is predicted.

    Returns:
      The content of fit.json, and the plots by file name.

    Raises:
      UserError: the table has no column to fit, or no input to fit against.
    """
    kinds = [inputs for inputs in KINDS if set(inputs) <= set(table.columns)]
    if not table.fitted:
        raise UserError(
            "no column starts with loss or err; name one with --map loss=COLUMN"
            f"{did_you_mean('loss', table.columns)}"
        )
    if not kinds:
        step = (
            "; step alone says neither how large a run is nor what each step costs"
            if "step" in table.columns
            else ""
        )
        raise UserError(
            "there is neither a params nor a compute column; name one with --map params=COLUMN, "
            f"or give the directory of a sweep{step}{did_you_mean('params', table.columns)}"
        )
    _require_rows(table, [(*inputs, column) for inputs in kinds for column in table.fitted])
    floors = dict(floors or {})
    for column in floors:
        if column and column not in table.fitted:
            raise UserError(
                f"--irreducible names {column!r}, which is not fitted; "
                f"known: {', '.join(table.fitted)}"
            )
    fitted_laws, summaries = {}, {}
    for column in table.fitted:
        for inputs in kinds:
            key = f"{column}~{'+'.join(inputs)}"
            try:
                law = analysis.analyze(
                    key,
                    select_runs.sample(table, column, inputs),
                    resamples=resamples,
                    delta=delta,
                    floor=floors.get(column, floors.get("")),
                )
            except select_runs.Refused as reason:
                summaries[key] = analysis.refusal(inputs, str(reason))
                continue
            fitted_laws[key], summaries[key] = law, law.summary
    cost = frontier.cost(table)
    result: dict[str, Any] = {"laws": summaries, "frontier": {}, "isoflop": {}}
    curves_by_column = {}
    if "compute" in table.columns:
        for column in table.fitted:
            curves_by_column[column] = curves = frontier.curves(table, column)
            edge = frontier.envelope(curves)
            if edge is not None:
                result["frontier"][column] = {
                    "compute": edge.compute,
                    "loss": edge.loss,
                    "params": edge.params,
                    "curve": list(edge.owner),
                    "selection": edge.selection,
                }
            if len({curve.params for curve in curves}) >= select_runs.MIN_SIZES and any(
                len(c.compute) > 1 for c in curves
            ):
                result["isoflop"][column] = frontier.isoflop(curves)
    if cost is not None:
        result["flops_per_token"] = {
            "A": math.exp(cost.intercept),
            "exponent": cost.slope,
            "scatter": cost.scatter,
        }
    result["predictions"] = [p for at in predict for p in prediction.predict(fitted_laws, cost, at)]
    result["warnings"] = list(table.notes)
    result["dropped"] = [{"row": row, "reason": reason} for row, reason in table.dropped]
    pictures = plots.all_figures(fitted_laws, curves_by_column, result)
    for levels in result["isoflop"].values():
        del levels["levels"]
    return result, pictures


def fit_power(
    table: Table,
    y: str,
    x: str,
    *,
    sigma: str | None = None,
    group: str | None = None,
    predict: Sequence[Mapping[str, float]] = (),
) -> tuple[dict, dict]:
    """Fits the law y = A x^exponent to two columns, over all rows or one group at a time.

    Args:
      sigma: column with the standard deviation of log y.
      group: column whose values divide the rows into groups.
      predict: values of x at which y is predicted.

    Returns:
      The content of fit.json, and the plots by file name.

    Raises:
      UserError: a column is missing or has no positive numbers.
    """
    columns = [name for name in (y, x, sigma) if name]
    for name in columns + ([group] if group else []):
        table[name]  # raises UserError for a missing column
    _require_rows(table, [tuple(columns)])
    complete_rows = table.complete(*columns)
    result: dict[str, Any] = {
        "laws": {},
        "predictions": [],
        "warnings": list(table.notes),
        "dropped": [{"row": row, "reason": reason} for row, reason in table.dropped],
    }
    curves = {}
    parts = {f"{y}~{x}": complete_rows}
    if group:
        parts = {
            f"{y}~{x}[{value}]": complete_rows.where(complete_rows[group] == value)
            for value in dict.fromkeys(complete_rows[group])
        }
    for key, part in parts.items():
        notes = []
        try:
            law = power.fit(part[x], part[y], part[sigma] if sigma else None)
        except UserError as reason:
            result["laws"][key] = {
                "form": "A * x**exponent",
                "exponent": {"value": None, "ci95": [None, None]},
                "n_runs": len(part),
                "warnings": [f"refused: {reason}"],
            }
            continue
        decades = float(np.log10(part[x].max() / part[x].min()))
        if len(part) < select_runs.MIN_SIZES:
            notes.append(f"few-sizes: {len(part)} points; {select_runs.MIN_SIZES} are wanted")
        if decades < select_runs.MIN_DECADES:
            notes.append(
                f"short-range: {x} spans {decades:.2f} decades; "
                f"an exponent wants {select_runs.MIN_DECADES}"
            )
        if law.chi2 is not None and not 1 / 3 < law.chi2 < 3:
            notes.append(
                f"stated-noise: the scatter's variance is {law.chi2:.2g} of what {sigma} states"
            )
        low, high = law.exponent_ci95
        result["laws"][key] = {
            "form": "A * x**exponent",
            "A": {"value": math.exp(law.log_a), "ci95": law.a_ci95},
            "exponent": {"value": law.exponent, "ci95": [low, high]},
            "alpha": {"value": -law.exponent, "ci95": [-high, -low]},
            "interval_method": "Student's t, scatter's scale",
            "pearson": law.pearson,
            "chi2": law.chi2,
            "n_runs": len(part),
            "warnings": notes,
        }
        curves[key] = (part[x], part[y], part[sigma] if sigma else None, law)
        for at in predict:
            if set(at) != {x}:
                raise UserError(f"--predict {','.join(at)}: the law {y}~{x} takes {x}")
            center, ends = law.predict(at[x])
            predicted = {y: {"value": center, "ci95": ends}}
            result["predictions"].append({"law": key, "at": dict(at), **predicted, "warnings": []})
    return result, {"power.png": plots.power_laws(curves, y, x)} if curves else {}


def _require_rows(table: Table, laws: Sequence[tuple[str, ...]]):
    """Raises UserError if no row has positive numbers in all columns of some law.

    It states the first reasons.
    """
    if any(len(table.complete(*columns)) for columns in laws):
        return
    reasons = [f"{row}: {reason}" for row, reason in table.dropped]
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    required = " or ".join(dict.fromkeys(", ".join(columns) for columns in laws))
    raise UserError(
        f"no row can be fitted: a law needs rows with positive numbers as {required}"
        + (f" ({'; '.join(reasons[:3])}{more})" if reasons else "")
    )


def write(out: str, result: dict, pictures: Mapping[str, Any], source: str):
    """Writes report.md, the PNGs and fit.json.

    fit.json is written last, so that its presence means that everything is written.

    Raises:
      UserError: the directory cannot be written.
    """
    directory = epath.Path(out)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures.items():
            (directory / name).write_bytes(plots.png(figure))
        atomic.write(directory / "report.md", markdown(plain(result), list(pictures), source))
        atomic.write(
            directory / "fit.json", json.dumps(plain(result), indent=2, allow_nan=False) + "\n"
        )
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error


def plain(value: Any) -> Any:
    """Returns nested lists and dicts as JSON takes them; non-finite numbers become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(result: dict, pictures: list[str], source: str) -> str:
    """Returns the text of report.md for the content of fit.json."""
    lines = [
        f"# Power-law fits of {epath.Path(source).name}",
        "",
        "Values with 95 % intervals, both of one estimator, which each law names below; loss in "
        "the units of its column, compute in FLOPs.",
        "",
        "| law | parameters | runs | hold-out error (naive) | Pearson |",
        "|---|---|---|---|---|",
    ]
    for key, law in result["laws"].items():
        values = ", ".join(f"{name} {_with_interval(law[name])}" for name in _parameter_names(law))
        error = holdout_text(law) if law.get("holdout") else "-"
        pearson = _format_number(law.get("pearson"))
        name = key.replace("|", chr(92) + "|")
        lines.append(f"| {name} | {values} | {law['n_runs']} | {error} | {pearson} |")
    lines += [
        "",
        "Pearson is that of the linearized law and weak evidence: E is chosen to make it large.",
        "",
    ]
    for key, law in result["laws"].items():
        notes = [f"- {note}" for note in law["warnings"]]
        if law.get("huber"):
            notes.append(f"- estimator: {law['estimator']}; intervals by {law['interval_method']}")
            notes.append(f"- by {_huber_text(law['huber'])}")
        if law.get("alpha_given_E"):
            pairs = ", ".join(
                f"{_format_number(a)} at E = {_format_number(e)}" for e, a in law["alpha_given_E"]
            )
            notes.append(f"- the exponent depends on E: {pairs}")
        if law.get("selection"):
            notes.append(f"- points: {law['selection']}")
        if notes:
            lines += [f"## {key}", "", *notes, ""]
    for column, iso in result.get("isoflop", {}).items():
        lines += [f"## IsoFLOP minima of {column}", ""]
        lines += [
            f"- {m['compute']:.3g} FLOPs: {m['params']:.3g} parameters, loss {m['loss']:.4g}"
            for m in iso["minima"]
        ]
        lines += [f"- {r['compute']:.3g} FLOPs: refused, {r['reason']}" for r in iso["refused"]]
        if iso["exponent"]:
            lines.append(
                f"- optimal parameters rise as compute to the {_with_interval(iso['exponent'])}"
            )
        lines.append("")
    if result["predictions"]:
        lines += [
            "## Predictions",
            "",
            *(f"- {line}" for line in prediction_lines(result["predictions"])),
            "",
        ]
    for title, items in (
        ("Warnings", result["warnings"]),
        ("Dropped", [f"{d['row']}: {d['reason']}" for d in result["dropped"]]),
    ):
        if items:
            lines += [f"## {title}", "", *(f"- {item}" for item in items), ""]
    lines += [line for name in pictures for line in (f"![{name}]({name})", "")]
    return "\n".join(lines)


def _huber_text(huber: Mapping) -> str:
    values = ", ".join(
        f"{name} {_format_number(value)}" for name, value in huber.items() if name != "delta"
    )
    return f"Huber's loss at {huber['delta']:g}, as in the literature, without intervals: {values}"


def prediction_lines(predictions: Sequence[dict]) -> list[str]:
    """Returns one line per prediction, for a terminal or report.md."""
    lines = []
    for p in predictions:
        at = ", ".join(f"{name} {value:.4g}" for name, value in p["at"].items())
        parts = []
        for name, value in p.items():
            if isinstance(value, Mapping) and "value" in value:
                run = value.get("new_run95")
                new = (
                    f", a new run {_format_number(run[0])} to {_format_number(run[1])}"
                    if run and run[0] is not None
                    else ""
                )
                parts.append(f"{name.replace('_', ' ')} {_with_interval(value)}{new}")
        lines.append(
            f"{p['law']} at {at}: {'; '.join(parts)}"
            + "".join(f" ({note})" for note in p["warnings"])
        )
    return lines


def terminal_lines(result: dict) -> list[str]:
    """Returns the laws, warnings and predictions as brief lines for a terminal."""
    result = plain(result)
    lines = []
    for key, law in result["laws"].items():
        refused = law["warnings"] and law["warnings"][0].startswith("refused")
        values = ", ".join(f"{name} {_with_interval(law[name])}" for name in _parameter_names(law))
        lines.append(f"{key}: {'refused' if refused else values}")
        lines += [f"  {note}" for note in law["warnings"]]
    return [*lines, *result["warnings"], *prediction_lines(result["predictions"])]


def _parameter_names(law: Mapping) -> list[str]:
    return [
        name
        for name in ("E", "A", "alpha", "B", "beta", "exponent")
        if name in law and not (name == "alpha" and "exponent" in law)
    ]


def holdout_text(law: Mapping) -> str:
    """Returns the mean errors of the law and of the naive prediction on the left-out points."""
    holdout = law["holdout"]
    text = f"{law['holdout_relative_error']:.2%} ({holdout['naive_relative_error']:.2%})"
    with contextlib.suppress(TypeError):
        text += f", {holdout['error_over_drop']:.2f} of the drop"
    return text


def _format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _with_interval(entry: Mapping) -> str:
    ends = entry.get("ci95")
    return _format_number(entry["value"]) + (
        f" [{_format_number(ends[0])}, {_format_number(ends[1])}]"
        if ends and ends[0] is not None
        else ""
    )
