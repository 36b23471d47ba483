"""The table of a law's forms in report.md."""

from collections.abc import Mapping

HEAD = (
    "| form | held-out error, largest | of the drop | two largest | scatter of the fit | over that "
    "of repeated runs |",
    "|---|---|---|---|---|---|",
)
METHOD = (
    "Every form is fitted without the largest size, and without the two largest, and predicts what "
    "is left out. Intervals are those of the error under other noise of the same runs, drawn "
    "around the best form. p in the last column is the probability of so large a scatter about a "
    "form that describes the runs; a dash stands for too few repeated runs."
)


def form_lines(law: Mapping) -> list[str]:
    """Returns the lines of report.md that compare the forms of a law, an entry of fit.json."""
    if not law.get("forms"):
        return []
    rows, reasons = [], []
    for name, entry in law["forms"].items():
        if "refused" in entry:
            reasons.append(f"- {name} is not judged: {entry['refused']}")
        if "in_sample" in entry:
            share = entry.get("error_over_drop")
            cells = [
                f"{name}: {entry['form']}",
                _error(entry),
                "-" if share is None else f"{share:.2f}",
                _error(entry["two_largest"]),
                f"{entry['in_sample']:.2%}",
                _repeated(entry["lack_of_fit"]),
            ]
            rows.append("| " + " | ".join(cells) + " |")
    best = law["best_form"]
    statement = "No form could be judged" if best is None else best["statement"]
    return [f"Forms compared: {statement}.", "", *HEAD, *rows, "", METHOD, "", *reasons, ""]


def _error(entry: Mapping) -> str:
    if "holdout_relative_error" not in entry:
        return "-"
    low, high = entry["ci95"]
    return f"{entry['holdout_relative_error']:.2%} [{low:.2%}, {high:.2%}]"


def _repeated(tested: Mapping | None) -> str:
    return (
        "-"
        if tested is None
        else f"{tested['scatter_over_repeated_runs']:.2f}, p {tested['p']:.2g}"
    )
