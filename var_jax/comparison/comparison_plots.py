"""Plots of the qualities of objectives against what they cost, as matplotlib figures."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from var_jax.comparison import compared_run
from var_jax.comparison.compared_run import AXES, TRAINING, Comparison
from var_jax.comparison.quality_laws import QualityLaw
from var_jax.scaling import plot_ticks, plots
from var_jax.scaling.next_runs import AHEAD

# Shape and color of an objective's points, in the order of the objectives.
MARKERS = "osD^vP*X<>"
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
BETTER = {"lower": "lower is better", "unknown": ""}
# Inches of the legend below the panels, and its names per row and column of panels.
LEGEND_ROW, LEGEND_MARGIN, NAMES_IN_ROW = 0.25, 0.15, 3
WIDE = 3.0  # ratio of the largest to the smallest value from which an axis is logarithmic


def all_figures(
    comparison: Comparison, laws: Mapping[str, Mapping[str, QualityLaw]]
) -> dict[str, Figure]:
    """Returns the figures by file name, one for each axis that any run has."""
    return {
        f"{axis}.png": _against(comparison, axis, laws if axis == TRAINING else {})
        for axis in AXES
        if any(axis in run.costs for run in comparison.runs)
    }


def _against(
    comparison: Comparison, axis: str, laws: Mapping[str, Mapping[str, QualityLaw]]
) -> Figure:
    """Plots every quality against one cost, a panel each, with the laws where there are any."""
    qualities = comparison.qualities
    columns = min(2, len(qualities))
    title = f"Quality against {AXES[axis]}"
    figure, axes = plots.panels(-(-len(qualities) // columns), columns, title)
    for ax in axes.flat[len(qualities) :]:
        ax.set_axis_off()
    for ax, quality in zip(axes.flat, qualities, strict=False):
        for number, objective in enumerate(comparison.objectives):
            runs = [run for run in comparison.of(objective, quality) if axis in run.costs]
            if not runs:
                continue
            runs = sorted(runs, key=lambda run: run.costs[axis])
            x = np.array([run.costs[axis] for run in runs])
            measured = [run.quality[quality] for run in runs]
            values = np.array([one.value for one in measured])
            ends = np.array([one.ci95 or (one.value, one.value) for one in measured])
            ax.errorbar(
                x,
                values,
                yerr=np.abs(ends.T - values),
                ls="",
                ms=5,
                lw=1,
                capsize=2,
                zorder=3,
                **_style(number),
            )
            law = laws.get(quality, {}).get(objective)
            if law is not None and law.law is not None:
                _draw_law(ax, law, _style(number)["color"])
        _finish(ax, comparison, axis, quality)
    _add_legend(figure, comparison, axis, columns)
    return figure


def _add_legend(figure: Figure, comparison: Comparison, axis: str, columns: int):
    """Adds a legend below the panels, where it covers no point, and makes room for it."""
    shown = {run.objective for run in comparison.runs if axis in run.costs}
    handles = [
        Line2D([], [], ls="", ms=6, **_style(number), label=objective)
        for number, objective in enumerate(comparison.objectives)
        if objective in shown
    ]
    in_row = NAMES_IN_ROW * columns
    room = LEGEND_ROW * -(-len(handles) // in_row) + LEGEND_MARGIN
    before = figure.get_figheight()
    after = before + room
    figure.set_figheight(after)
    for ax in figure.axes:
        box = ax.get_position()
        bottom = (box.y0 * before + room) / after
        ax.set_position((box.x0, bottom, box.width, box.height * before / after))
    figure.legend(handles=handles, loc="lower center", ncols=min(in_row, len(handles)), fontsize=9)


def _style(number: int) -> dict[str, Any]:
    """Returns shape and color of the points of an objective, by its place in the comparison."""
    return {"marker": MARKERS[number % len(MARKERS)], "color": COLORS[number % len(COLORS)]}


def _draw_law(ax: Axes, law: QualityLaw, color: str):
    """Plots a law to its prediction, with the band of its 95 % intervals."""
    assert law.law is not None
    start = float(law.law.sample.x[:, 0].min())
    grid = np.geomspace(start, law.summary["prediction"]["train_flops"], 100)
    line = law.law.fit.predict(grid[:, None])
    low, high = plots.law_band(law.law, grid, reducible=False)
    if law.is_share:
        line, low, high = 1 - line, 1 - high, 1 - low
    ax.plot(grid, line, color=color, lw=1)
    ax.fill_between(grid, low, high, color=color, alpha=0.15, lw=0)


def _finish(ax: Axes, comparison: Comparison, axis: str, quality: str):
    """Sets the scales, limits and labels of a panel."""
    runs = [run for run in comparison.runs if quality in run.quality and axis in run.costs]
    values = np.array([run.quality[quality].value for run in runs])
    ends = np.array([end for r in runs for end in r.quality[quality].ci95 or ()] or values)
    is_wide = len(values) and min(values.min(), ends.min()) > 0
    if is_wide and values.max() / values.min() > WIDE:
        ax.set_yscale("log")
        ax.set_ylim(min(values.min(), ends.min()) / 2, max(values.max(), ends.max()) * 1.3)
    elif len(values):
        low, high = min(values.min(), ends.min()), max(values.max(), ends.max())
        margin = 0.5 * max(high - low, 1e-3 * abs(high), 1e-9)
        ax.set_ylim(low - margin, high + margin)
    direction = compared_run.direction(quality)
    better = BETTER.get(direction, "higher is better")
    names = [name for name in comparison.objectives if comparison.of(name, quality)]
    if not compared_run.comparable(comparison, quality, names):
        better = "own tokens: not comparable between objectives"
    ax.set(xscale="log", xlabel=AXES[axis], ylabel=quality, title=better)
    ax.title.set_fontsize(9)
    if axis == TRAINING:
        costs = [run.costs[axis] for run in comparison.runs]
        ax.set_xlim(min(costs) / 1.5, max(costs) * AHEAD * 1.2)
    plot_ticks.place(ax)
