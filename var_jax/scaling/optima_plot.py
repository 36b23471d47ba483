"""Plots the losses against learning rate and batch size, and their optima against size."""

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from var_jax.scaling import plot_ticks, plots

LABELS = {"learning_rate": "peak learning rate", "batch_size": "images per step"}
MOST_LABELS = 12
AGAINST = {"learning_rate": ("params", "tokens", "compute"), "batch_size": ("tokens", "compute")}


def figure(optima: Mapping) -> Figure:
    """Plots an entry "optima" of fit.json: a row of panels per setting that was varied."""
    names = [name for name in LABELS if optima.get(name)]
    result, axes = plots.panels(len(names), 2, "Best learning rate and batch size", gap=2.3)
    for (left, right), name in zip(axes, names, strict=True):
        _losses(left, optima[name], name, optima["column"])
        _optima(right, optima, name)
    return result


def _losses(ax: Axes, entries: list[Mapping], name: str, column: str):
    # Where the best rate of every batch is refused, no batch has a loss.
    entries = [entry for entry in entries if entry["runs"]]
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(entries)))
    for entry, color in zip(entries, colors, strict=True):
        values, losses = np.array([[v, np.nan if y is None else y] for v, y in entry["runs"]]).T
        inputs = [entry[key] for key in ("params", "tokens", "batch_size") if key in entry]
        label = ", ".join(f"{value:.3g}" for value in inputs)
        label = label if len(entries) <= MOST_LABELS else None
        ax.plot(values, losses, "-o", ms=3, lw=0.8, color=color, label=label)
        if "refused" not in entry:
            ax.plot(entry[f"best_{name}"], entry["loss"], "k*", ms=8)
    ax.set(xscale="log", xlabel=LABELS[name], ylabel=column)
    if 0 < len(entries) <= MOST_LABELS:
        ax.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1), title="params, tokens")
    plot_ticks.place(ax)


def _optima(ax: Axes, optima: Mapping, name: str):
    points = [entry for entry in optima[name] if "refused" not in entry]
    against = next((key for key in AGAINST[name] if all(key in p for p in points)), None)
    ax.set(ylabel=f"best {LABELS[name]}")
    if not points or against is None:
        ax.set(title="no optimum inside what was run")
        return
    x = np.array([point[against] for point in points])
    y = np.array([point[f"best_{name}"] for point in points])
    ax.plot(x, y, "k*", ms=8)
    for key, law in optima["laws"].items():
        values = [law[part]["value"] for part in law if isinstance(law[part], Mapping)]
        if key.split("~")[0] != name or against not in law["inputs"] or None in values:
            continue
        # One line per optimum's other inputs would hide the points: they are the law's own values.
        logs = np.log([[point[part] for part in law["inputs"]] for point in points])
        ax.plot(x, values[0] * np.exp(logs @ values[1:]), "x", color=plots.FIT, label=f"law {key}")
    ax.set(xscale="log", yscale="log", xlabel=plots.UNITS[against])
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7)
    plot_ticks.place(ax)
