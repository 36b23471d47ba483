"""Reports of `evaluate` as lines for a terminal."""

from typing import Any

# The words for the comparisons of a metric, by their keys in the report.
COMPARISONS = {"floor": "floor", "real_against_real": "for scale, real against real"}


def lines(report: dict[str, Any]) -> list[str]:
    """Returns a line with each figure and one that says how to read it, then usage and notes."""
    out = []
    if place := report.get("saved_to"):
        out.append(
            f"{place}: {', '.join(report['statistics'])} of {report['reference']['count']} images "
            f"by {report['features']['network']}, and {report['images']} of the images"
        )
    for metric in report.get("metrics", {}).values():
        if metric is None:
            continue
        interval = ""
        if metric["ci95"] is not None:
            low, high = metric["ci95"]
            interval = f" ({low:.5g} to {high:.5g})"
        out.append(f"{metric['value']:.5g}{interval}  {metric['name']}{_comparison(metric)}")
        if metric.get("reading"):
            out.append(f"    {metric['reading']}")
    if "usage" in report:
        out.append(
            "codes used by scale  "
            + " ".join(f"{row['usage']:.0%}" for row in report["usage"]["scales"])
            + f", {report['usage']['all']['usage']:.0%} over all scales"
        )
    out += _left_out(report.get("left_out", {}))
    return [*out, *(f"note: {warning}" for warning in report["warnings"])]


def _comparison(metric: dict[str, Any]) -> str:
    """Returns the text after a metric's name: the counts, and the value to compare it with."""
    if on_reference := metric.get("on_reference"):
        return f" of {metric['count']} images, {on_reference['value']:.5g} on the reference"
    text = ""
    if against := metric.get("against"):
        text = f" of {_counts(metric['counts'])} against {against}"
    for key, label in COMPARISONS.items():
        if other := metric.get(key):
            if "against" not in metric:
                text += f" of {_counts(metric['counts'])}"
            text += f", {label} {other['value']:.5g} ({other['what']}, {_counts(other['counts'])})"
    return text


def _counts(counts: list[int | None]) -> str:
    return " and ".join(str(count) for count in counts if count is not None) + " images"


def _left_out(reasons: dict[str, str]) -> list[str]:
    """Returns a line for each reason, with the names of the metrics that it keeps out."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [f"left out: {', '.join(names[reason])}: {reason}" for reason in names]
