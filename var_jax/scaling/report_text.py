"""The text of a fit: report.md, and the lines that the command prints."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from var_jax.scaling import forms_text, next_runs, optima_text, solver

# What each plot shows, which report.md has below it.
CAPTIONS = {
    "laws_params.png": "Points are runs, the line is the most likely law, and the band its 95 % "
    "interval at each size, which is that of the predictions too. On the right is what is left "
    "above E, where the law is a straight line.",
    "laws_compute.png": "Points are the runs or the frontier, the line is the most likely law, and "
    "the band, for a law with intervals, its 95 % interval at each compute, which is that of the "
    "predictions too. On the right is what is left above E, where the law is a straight line.",
    "laws_joint.png": "On the left points are runs and lines the most likely law, one color per "
    "size. On the right a law that describes all runs has its points on the dotted line.",
    "frontier.png": "Lines are the loss of each run or size against its compute. The law of "
    "compute is fitted to the squares, their lower envelope.",
    "isoflop.png": "On the left each line is the loss of all sizes at one compute, with a star at "
    "its minimum. On the right are those minima and the power law of the optimal size.",
    "residuals.png": "How far each run lies off its law, in percent. A pattern, such as a bow, "
    "says that the law has the wrong form.",
    "bootstrap.png": "Dots are the law of resampled runs, the cross is the reported law with its "
    "95 % intervals, where it has them. A long thin cloud says that E and the exponent are hardly "
    "told apart.",
    "optima.png": "On the left each line is the loss of one size, token budget and batch against "
    "the setting, with a star at the parabola's minimum. On the right are those minima, and as "
    "crosses the laws at the same inputs.",
    "power.png": "Points are the rows of the table, and lines the fitted power laws.",
}


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
        "Values with 95 % intervals, both of one estimator, which each law names below. Losses are "
        "in the units of their columns, columns that start with err are error rates, and compute "
        "is in FLOPs.",
        "",
        "| law | parameters | runs | hold-out error (naive) | Pearson |",
        "|---|---|---|---|---|",
    ]
    for key, law in result["laws"].items():
        values = law_text(law)
        error = holdout_text(law) if law.get("holdout") else "-"
        pearson = _format_number(law.get("pearson"))
        name = key.replace("|", chr(92) + "|")
        runs = "-" if law["n_runs"] is None else law["n_runs"]
        lines.append(f"| {name} | {values} | {runs} | {error} | {pearson} |")
    lines += [
        "",
        "Pearson is that of the linearized law and weak evidence: E is chosen to make it large.",
        "",
    ]
    if result.get("checklist"):
        lines += ["## Checklist", "", "| question | answer |", "|---|---|"]
        for question, answer in result["checklist"].items():
            lines.append(f"| {question} | {answer.replace('|', chr(92) + '|')} |")
        lines.append("")
    for key, law in result["laws"].items():
        notes = [f"- {note}" for note in law["warnings"]]
        if law.get("huber"):
            notes.append(f"- estimator: {law['estimator']}; intervals by {law['interval_method']}")
            notes.append(f"- by {_huber_text(law['huber'])}")
        if law.get("by_joint_law"):
            notes.append(f"- the joint law's own frontier: {_joint_frontier(law)}")
        if law.get("selection"):
            notes.append(f"- points: {law['selection']}")
        if law.get("holdout_missing"):
            notes.append(f"- no hold-out: {law['holdout_missing']}")
        if notes:
            lines += [f"## {key}", "", *notes, ""]
        if law.get("sensitivity"):
            lines += _sensitivity_table(law)
        lines += forms_text.form_lines(law)
    if "optima" in result:
        lines += optima_text.report_lines(result["optima"])
    for column, iso in result.get("isoflop", {}).items():
        lines += [f"## IsoFLOP minima of {column}", ""]
        lines += [
            f"- {m['compute']:.3g} FLOPs: {m['params']:.3g} parameters, "
            f"{quantity_name(column)} {m['loss']:.4g}{_bias_text(m)}"
            for m in iso["minima"]
        ]
        lines += [f"- {r['compute']:.3g} FLOPs: refused, {r['reason']}" for r in iso["refused"]]
        lines += [f"- {note}" for note in iso.get("warnings", ())]
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
    if "next" in result:
        first, *runs = next_lines(result["next"])
        notes = [line for note in result["next"]["warnings"] for line in (f"**{note}.**", "")]
        lines += ["## Next runs", "", *notes, f"{first[0].upper()}{first[1:]}.", ""]
        lines += [*(f"- {line.strip()}" for line in runs), ""]
    for title, items in (
        ("Warnings", result["warnings"]),
        ("Dropped", [f"{d['row']}: {d['reason']}" for d in result["dropped"]]),
    ):
        if items:
            lines += [f"## {title}", "", *(f"- {item}" for item in items), ""]
    for name in pictures:
        lines += [f"![{name}]({name})", "", CAPTIONS[name], ""]
    return "\n".join(lines)


def _sensitivity_table(law: Mapping) -> list[str]:
    """Returns the lines of a table of the law's exponents under other choices."""
    names = [name for name in law["sensitivity"][0] if name != "choice"]
    head = " | ".join(names)
    lines = [f"| choice | {head} |", "|---|" + "---|" * len(names)]
    rows = list(law["sensitivity"])
    if law.get("alpha_given_E"):
        # The first is E = 0, which the table has, and the value itself is its first row.
        value = law["E"]["value"]
        for floor, alpha in law["alpha_given_E"]:
            if floor and floor != value:
                end = "lower" if floor < value else "upper"
                choice = f"E at the {end} end of its interval"
                rows.append({"choice": choice, "E": floor, "alpha": alpha})
    for row in rows:
        values = " | ".join(_format_number(row[name]) for name in names)
        lines.append(f"| {row['choice']} | {values} |")
    return [*lines, ""]


def _bias_text(minimum: Mapping) -> str:
    """Returns the text of the parabola's own minimum, if the reported one is corrected."""
    if minimum.get("bias") is None:
        return ""
    return f" (parabola {minimum['parabola_params']:.3g}, {minimum['bias']:+.1%})"


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
                label = name.replace("_", " ")
                if name == "loss":
                    label = quantity_name(p["law"])
                parts.append(f"{label} {_with_interval(value)}{new}")
        lines.append(
            f"{p['law']}{_of_form(p)} at {at}: {'; '.join(parts)}"
            + "".join(f" ({note})" for note in p["warnings"])
        )
    return lines


def _of_form(entry: Mapping) -> str:
    """Returns the form that a prediction or a plan is of, where it is not that of the law."""
    name = entry.get("form", "joint")
    return "" if name == "joint" else f" of the form {name}"


def terminal_lines(result: dict) -> list[str]:
    """Returns the laws, warnings and predictions as brief lines for a terminal."""
    result = plain(result)
    lines = []
    for key, law in result["laws"].items():
        lines.append(f"{key}: {law_text(law)}")
        lines += [f"  {note}" for note in law["warnings"]]
        if law.get("by_joint_law"):
            lines.append(f"  the joint law's own frontier: {_joint_frontier(law)}")
        if law.get("best_form"):
            lines.append(f"  forms: {law['best_form']['statement']}")
    if "optima" in result:
        lines += optima_text.law_lines(result["optima"])
    lines += [*result["warnings"], *prediction_lines(result["predictions"])]
    if "next" in result:
        lines += [*result["next"]["warnings"], *next_lines(result["next"])]
    return lines


def next_lines(plan: Mapping) -> list[str]:
    """Returns the next runs, a line each, as overrides for `get_sweep` where they are known."""
    at = ", ".join(f"{name} {value:.4g}" for name, value in plan["target"].items())
    law = f"{plan['law']}{_of_form(plan)}"
    if not plan["runs"]:
        return [f"no next runs for {law} at {at}"]
    lines = [
        f"next runs within {plan['budget']:.3g} FLOPs, of up to {next_runs.FARTHER:g} times the "
        f"longest run's tokens, for {law} at {at}: its standard error becomes "
        f"{plan['standard_error_ratio']:.2f} times today's"
    ]
    for run in plan["runs"]:
        like = f"as run {run['like']}"
        if "between" in run:
            like = "between runs " + " and ".join(end["run"] for end in run["between"])
        text = f"{run['params']:.4g} parameters {like}, {run['tokens']:.3g} tokens"
        if "overrides" in run:
            text = str(run["overrides"])
        lines.append(f"  {text} ({run['compute']:.3g} FLOPs)")
    return lines


def quantity_name(column: str) -> str:
    """Returns what a fitted column, or the law of one, is called in a text."""
    return "error rate" if column.startswith("err") else "loss"


def law_text(law: Mapping) -> str:
    """Returns the law's parameters with their intervals, or that the runs do not determine them."""
    names = _parameter_names(law)
    if law["warnings"] and law["warnings"][0].startswith("refused"):
        return "refused"
    if law.get("undetermined"):
        remedies = " and ".join(dict.fromkeys(law["undetermined"].values()))
        values = ", ".join(f"{name} {_with_interval_if_closed(name, law[name])}" for name in names)
        return f"undetermined: {remedies} (most likely {values})"
    return ", ".join(f"{name} {_with_interval(law[name])}" for name in names)


def _with_interval_if_closed(name: str, entry: Mapping) -> str:
    """Returns a value with its interval, without it if that of an amplitude or not closed.

    An amplitude is that at an input of 1, so its interval only repeats that of the exponent, over
    many more decades.
    """
    low, high = solver.ALPHA_RANGE
    ends = entry["ci95"]
    closed = name == "E" or (ends[0] is not None and low * 1.01 < ends[0] and ends[1] < high * 0.99)
    return _with_interval(entry) if closed and name not in "AB" else _format_number(entry["value"])


def _parameter_names(law: Mapping) -> list[str]:
    return [
        name
        for name in ("E", "A", "alpha", "B", "beta", "exponent")
        if name in law and not (name == "alpha" and "exponent" in law)
    ]


def _joint_frontier(law: Mapping) -> str:
    return ", ".join(
        f"{name} {_with_interval(entry)}" for name, entry in law["by_joint_law"].items()
    )


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
