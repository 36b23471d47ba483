"""Fits all laws of a table of runs, and writes fit.json, report.md and the plots."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from etils import epath

from var_jax.errors import UserError, did_you_mean
from var_jax.io import atomic
from var_jax.scaling import (
    analysis,
    checklist,
    compare_forms,
    form_prediction,
    frontier,
    frontier_noise,
    isoflop_bias,
    lack_of_fit,
    laws,
    next_runs,
    optima,
    optima_plot,
    plots,
    power,
    prediction,
    report_text,
    select_runs,
    sensitivity,
    tuned_runs,
)
from var_jax.scaling.form_fit import FittedForm
from var_jax.scaling.report_text import plain
from var_jax.scaling.table import Table

FormsOf = Literal["first", "all", "none"]
LAW_INPUTS = (("params",), ("compute",), ("params", "tokens"))


def fit_table(
    table: Table,
    *,
    resamples: int = 1000,
    floors: Mapping[str, float] | None = None,
    delta: float = laws.DELTA,
    predict: Sequence[Mapping[str, float]] = (),
    next_budget: float | None = None,
    next_sizes: Sequence[float] = (),
    forms: FormsOf = "first",
) -> tuple[dict, dict]:
    """Fits every law that the table's columns allow.

    Args:
      resamples: number of bootstrap resamples of the runs; 0 leaves the bootstrap out.
      floors: fixed values of E by fitted column; the key "" stands for all other columns.
      delta: Huber's constant, in log loss, of the laws in "huber".
      predict: inputs at which the loss is predicted.
      next_budget: training FLOPs for which the next runs are chosen, if any.
      next_sizes: params of further sizes of which configs exist, for the next runs.
      forms: the columns whose laws are compared with other forms: the first one, all or none.

    Returns:
      The content of fit.json, and the plots by file name.

    Raises:
      UserError: the table has no column to fit, or no input to fit against.
    """
    kinds = [inputs for inputs in LAW_INPUTS if set(inputs) <= set(table.columns)]
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
    if len(set(table.run)) == 1:
        raise UserError(
            f"there is one run, {table.run[0]}; a law needs runs of at least "
            f"{select_runs.MIN_SIZES} sizes"
        )
    floors = dict(floors or {})
    for column in floors:
        if column and column not in table.fitted:
            raise UserError(
                f"--irreducible names {column!r}, which is not fitted; "
                f"known: {', '.join(table.fitted)}"
            )
    fitted = [name for name in table.fitted if len(table.complete(name))]
    best_settings = optima.optima(table, fitted[0])
    table = tuned_runs.at_the_best(table)
    fitted_laws, summaries = {}, {}
    better: dict[str, FittedForm] = {}
    for column in fitted:
        for inputs in kinds:
            key = f"{column}~{'+'.join(inputs)}"
            floor = floors.get(column, floors.get(""))
            try:
                law = analysis.analyze(
                    key,
                    select_runs.sample(table, column, inputs),
                    resamples=resamples,
                    delta=delta,
                    floor=floor,
                )
            except select_runs.Refused as reason:
                summaries[key] = analysis.refusal(inputs, str(reason))
                continue
            fitted_laws[key], summaries[key] = law, law.summary
            if forms == "all" or (forms == "first" and column == fitted[0]):
                compared = compare_forms.compare(law, floor)
                law.summary.update(compared.entry)
                if compared.better is not None:
                    better[key] = compared.better
            law.summary["sensitivity"] += sensitivity.other_counting(table, column, inputs, floor)
    cost = frontier.cost(table)
    for column in fitted:
        if law := fitted_laws.get(f"{column}~compute"):
            key = f"{column}~params+tokens"
            frontier_noise.withhold(law, fitted_laws.get(key), cost, has_better_form=key in better)
    result: dict[str, Any] = {"laws": summaries, "frontier": {}, "isoflop": {}}
    curves_by_column = {}
    if "compute" in table.columns:
        for column in fitted:
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
                key = f"{column}~params+tokens"
                joint, reason = fitted_laws.get(key), isoflop_bias.UNCORRECTED
                if joint is not None and lack_of_fit.is_misfit(joint.summary):
                    joint, reason = None, isoflop_bias.MISFIT
                elif key in better:
                    joint, reason = None, isoflop_bias.OTHER_FORM
                determined = joint is not None and "undetermined" not in joint.summary
                result["isoflop"][column] = isoflop_bias.corrected(
                    frontier.isoflop(curves),
                    curves,
                    joint.fit.theta if joint is not None and determined else None,
                    cost,
                    reason,
                )
    if best_settings is not None:
        result["optima"] = best_settings
    if cost is not None:
        result["flops_per_token"] = {
            "A": math.exp(cost.intercept),
            "exponent": cost.slope,
            "scatter": cost.scatter,
        }
    result["predictions"] = [
        entry
        for at in predict
        for entry in (
            *prediction.predict(fitted_laws, cost, at),
            *form_prediction.predict(fitted_laws, better, cost, at),
        )
    ]
    if next_budget is not None:
        key = f"{fitted[0]}~params+tokens"
        joint = fitted_laws.get(key)
        determined = joint is not None and "undetermined" not in joint.summary
        result["next"] = next_runs.plan(
            joint if determined else None, cost, next_budget, predict, better.get(key), next_sizes
        )
    result["warnings"] = [
        *table.notes,
        *(
            f"no-numbers: {name} has no positive number and is not fitted"
            for name in table.fitted
            if name not in fitted
        ),
    ]
    result["dropped"] = [{"row": row, "reason": reason} for row, reason in table.dropped]
    result["checklist"] = checklist.checklist(table, summaries)
    pictures = plots.all_figures(fitted_laws, curves_by_column, result)
    if best_settings is not None:
        pictures["optima.png"] = optima_plot.figure(best_settings)
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
        content = plain(result)
        text = report_text.markdown(content, list(pictures), source)
        atomic.write(directory / "report.md", text)
        atomic.write(directory / "fit.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
