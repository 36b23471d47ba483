"""The picture of a run's losses and accuracies drawn beside those of the published log."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from var_jax.scaling import published_log

PUBLISHED: dict[str, Any] = {"color": "black", "marker": "o", "ms": 4, "lw": 0.8, "zorder": 3}
LAST_SCALE: dict[str, Any] = {"ls": "--"}
RUN = "tab:blue"


class Point(NamedTuple):
    """A record of a run: passes over ImageNet's number of images, and the value there."""

    passes: float
    value: float


def figure(name: str, curves: Mapping[str, Sequence[Point]]) -> Figure:
    """Returns the figure: losses on the left, accuracies on the right.

    Args:
      name: the run's, for the legend.
      curves: its records, each in the order of its steps: "loss" of training; "held_out_loss",
        "held_out_loss_last", "accuracy" and "accuracy_last" (0 to 1) of evaluations. Empty ones
        are not drawn.
    """
    result = Figure(figsize=(10.5, 4.3), layout="constrained")
    result.suptitle(
        f"{name} and a public log of VAR-d{published_log.DEPTH} on ImageNet", fontsize=11
    )
    left, right = result.subplots(1, 2)
    training, held_out = published_log.TRAINING, published_log.VALIDATION
    # The mean over an epoch stands at its middle, where a run's own curve is near it.
    middles = [row.epoch + 0.5 for row in training]
    left.plot(middles, [row.loss for row in training], label="log, training", **PUBLISHED)
    left.plot(*_columns(held_out, "loss"), label="log, validation", **{**PUBLISHED, "mfc": "white"})
    left.plot(
        *_columns(held_out, "loss_last"),
        label="log, validation, last scale",
        **{**PUBLISHED, **LAST_SCALE, "mfc": "white"},
    )
    right.plot(*_columns(held_out, "accuracy", 100), label="log, validation", **PUBLISHED)
    right.plot(
        *_columns(held_out, "accuracy_last", 100),
        label="log, validation, last scale",
        **{**PUBLISHED, **LAST_SCALE, "mfc": "white"},
    )
    held_out_style = {"marker": "s", "ms": 3}
    last_style = {**held_out_style, **LAST_SCALE}
    _curve(left, curves["loss"], f"{name}, training", 1, {"lw": 1.0})
    _curve(left, curves["held_out_loss"], f"{name}, held-out", 1, held_out_style)
    _curve(left, curves["held_out_loss_last"], f"{name}, held-out, last scale", 1, last_style)
    _curve(right, curves["accuracy"], f"{name}, held-out", 100, held_out_style)
    _curve(right, curves["accuracy_last"], f"{name}, held-out, last scale", 100, last_style)
    left.set(title="cross-entropy", ylabel="nats per token")
    right.set(title="accuracy of the likeliest code", ylabel="% of tokens", ylim=(0, None))
    for ax in (left, right):
        ax.set(xscale="log", xlabel=f"passes over {published_log.IMAGES:,} images")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    return result


def _columns(rows: Sequence, name: str, factor: float = 1) -> tuple[list[float], list[float]]:
    """Returns passes and values of the log's rows."""
    return [row.passes for row in rows], [factor * getattr(row, name) for row in rows]


def _curve(ax: Axes, points: Sequence[Point], label: str, factor: float, style: Mapping[str, Any]):
    """Draws a run's records, if there are any."""
    if points:
        values = [factor * point.value for point in points]
        ax.plot([point.passes for point in points], values, color=RUN, label=label, **style)
