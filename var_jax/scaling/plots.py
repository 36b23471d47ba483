"""Plots of fitted laws, as matplotlib figures."""

import io
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from var_jax.scaling import frontier, losses, paper_laws, plot_ticks, profile_intervals
from var_jax.scaling.analysis import Law
from var_jax.scaling.power import PowerLaw

UNITS = {"params": "parameters", "tokens": "training tokens", "compute": "training compute (FLOPs)"}
POINT = {"marker": "o", "ms": 4, "ls": "", "color": "black", "zorder": 3}
FIT, BAND, FLOOR = "tab:blue", "tab:blue", "tab:gray"
COMPRESSION = 2  # of PNG files: higher levels take longer than all else that writes a plot's pixels
BAND_POINTS = 13  # inputs at which the intervals of a band are computed
# Margins of a figure, and the space between rows of panels, in inches.
LEFT, RIGHT, TOP, BOTTOM, ROW_GAP = 0.75, 0.2, 0.65, 0.55, 0.95


def png(figure: Figure) -> bytes:
    """Returns the figure as the bytes of a PNG file."""
    for ax in figure.axes:
        # matplotlib looks for room for a title without a given place, which takes a fifth of a
        # plot's time.
        ax.set_title(ax.get_title(), y=1.0)
    buffer = io.BytesIO()
    # Fitting the glyphs to the pixels takes longer than drawing them.
    with rc_context({"text.hinting": "none"}):
        figure.savefig(buffer, format="png", dpi=110, pil_kwargs={"compress_level": COMPRESSION})
    return buffer.getvalue()


def all_figures(
    laws: Mapping[str, Law], curves: Mapping[str, list[frontier.Curve]], result: Mapping
) -> dict[str, Figure]:
    """Returns the figures of an analysis by file name.

    Figures that would have no data are left out.
    """
    figures = {}
    for name in ("params", "compute"):
        single = [law for law in laws.values() if law.sample.inputs == (name,)]
        if single:
            figures[f"laws_{name}.png"] = laws_against_input(single, name)
    joint = [law for law in laws.values() if len(law.sample.inputs) == 2]
    if joint:
        figures["laws_joint.png"] = joint_laws(joint)
    if result["frontier"]:
        figures["frontier.png"] = frontiers(curves, result["frontier"], laws)
    if any(iso["levels"] for iso in result["isoflop"].values()):
        figures["isoflop.png"] = isoflops(result["isoflop"])
    if laws:
        figures["residuals.png"] = residuals(list(laws.values()))
    sampled = [law for law in laws.values() if law.samples is not None]
    if sampled:
        figures["bootstrap.png"] = bootstraps(sampled)
    return figures


def panels(
    rows: int, columns: int, title: str, *, gap: float = 0.85
) -> tuple[Figure, Shaped[np.ndarray, "r c"]]:
    """Returns a figure with a title, and its panels.

    The margins are fixed, because a layout that measures all text doubles the time of a figure.

    Args:
      gap: inches between neighboring panels, for the labels of an axis.
    """
    width = 5.6 * columns
    height = 3.9 * rows + 0.3
    panel_width = (width - LEFT - RIGHT - gap * (columns - 1)) / columns
    panel_height = (height - TOP - BOTTOM - ROW_GAP * (rows - 1)) / rows
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, fontsize=11, y=1 - 0.12 / height, va="top")
    axes = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": LEFT / width,
            "right": 1 - RIGHT / width,
            "bottom": BOTTOM / height,
            "top": 1 - TOP / height,
            "wspace": gap / panel_width,
            "hspace": ROW_GAP / panel_height,
        },
    )
    return figure, axes


def _loss_label(column: str) -> str:
    if column.startswith("err"):
        return f"{column} (error rate, share of tokens)"
    return f"{column} (nats per token)"


def laws_against_input(laws: list[Law], name: str) -> Figure:
    """Plots loss, and loss - E, against one input, with one row of panels per law.

    Each panel shows the runs, the fitted law and the band of its 95 % intervals.
    """
    figure, axes = panels(
        len(laws),
        2,
        f"Most likely E + A x^-alpha against {UNITS[name]}, band of its 95 % intervals",
    )
    for (left, right), law in zip(axes, laws, strict=True):
        x, y = law.sample.x[:, 0], law.sample.y
        e, alpha = law.fit.values["E"], law.fit.values["alpha"]
        grid = np.geomspace(x.min() / 1.3, x.max() * 2, 200)
        line = law.fit.predict(grid[:, None])
        for ax, floor in ((left, 0.0), (right, e)):
            above = y > floor
            label = "runs" if law.sample.runs == len(y) else "points of the frontier"
            ax.plot(x[above], y[above] - floor, label=label, **POINT)
            ax.plot(grid, line - floor, color=FIT, label=f"law, alpha = {alpha:.3g}")
            ax.set(xscale="log", xlabel=UNITS[name])
        for ax, reducible in ((left, False), (right, True)) if law.has_intervals else ():
            ax.fill_between(
                grid, *law_band(law, grid, reducible=reducible), color=BAND, alpha=0.2, lw=0
            )
        left.axhline(e, color=FLOOR, ls=":", label=f"E = {e:.4g}")
        span = max(y.max() - y.min(), 1e-12)
        bottom = max(min(y.min() - 0.5 * span, e - 0.1 * span), y.min() - span)
        title = law.key if law.has_intervals else f"{law.key}, without intervals"
        left.set(title=title, ylabel=_loss_label(law.column), ylim=(bottom, y.max() + 0.15 * span))
        excess = y[y > e] - e
        if len(excess):
            right.set(ylim=(excess.min() / 3, excess.max() * 3))
        right.set(yscale="log", title=f"{law.key}, reducible", ylabel=f"{law.column} - E")
        # A sweep of this package names its loss over all scales `loss`. In any other table that
        # column may hold any loss.
        is_mean_of_scales = law.column == "loss" and any(
            other.column == "loss_last" for other in laws
        )
        column = "loss_mean" if is_mean_of_scales else law.column
        _published(left if column.startswith("err") else right, law, name, column)
        for ax in (left, right):
            ax.legend(fontsize=8)
            plot_ticks.place(ax)
    return figure


def law_band(
    law: Law, grid: Float[np.ndarray, " g"], *, reducible: bool
) -> Float[np.ndarray, "2 g"]:
    """Returns the ends of the law's 95 % intervals over a grid of its input.

    They are profiled at a few points and interpolated between, as they are smooth.
    """
    x = np.geomspace(grid[0], grid[-1], BAND_POINTS)
    ends = profile_intervals.band(law.likelihood, x[:, None], reducible=reducible)
    log_ends = np.log(np.maximum(ends.T, losses.TINY))
    curves = [np.interp(np.log(grid), np.log(x), end) for end in log_ends]
    return np.exp(np.clip(curves, -300, 300))


def _published(ax: Axes, law: Law, name: str, column: str):
    """Plots the law that VAR reports over the range that it shares with the runs, if any."""
    published_low, published_high = paper_laws.FITTED_RANGES[name]
    low = max(law.sample.x[:, 0].min(), published_low)
    high = min(law.sample.x[:, 0].max(), published_high)
    if (column, name) in paper_laws.LAWS and low < high:
        x = np.geomspace(low, high, 50)
        y = paper_laws.evaluate(column, name, x)
        bottom, top = ax.get_ylim()
        if column.startswith("loss") or (y.min() < top and y.max() > bottom):
            ax.plot(x, y, "--", color="tab:red", label="VAR on ImageNet (published)")


def joint_laws(laws: list[Law]) -> Figure:
    """Plots loss against tokens with one color per size, and measured against predicted loss."""
    figure, axes = panels(
        len(laws), 2, "Most likely E + A N^-alpha + B D^-beta over sizes N and tokens D", gap=1.7
    )
    for (left, right), law in zip(axes, laws, strict=True):
        sizes, tokens = law.sample.x.T
        distinct = np.unique(sizes)
        colors = colormaps["viridis"](np.linspace(0, 0.9, len(distinct)))
        grid = np.geomspace(tokens.min(), tokens.max(), 100)
        for size, color in zip(distinct, colors, strict=True):
            rows = sizes == size
            left.plot(tokens[rows], law.sample.y[rows], "o", ms=4, color=color)
            label = f"{size:.3g}" if len(distinct) <= 10 else None
            left.plot(
                grid,
                law.fit.predict(np.stack([np.full_like(grid, size), grid], 1)),
                color=color,
                label=label,
            )
        left.set(
            xscale="log", xlabel=UNITS["tokens"], ylabel=_loss_label(law.column), title=law.key
        )
        if len(distinct) <= 10:
            left.legend(
                title=UNITS["params"],
                fontsize=7,
                title_fontsize=8,
                loc="upper left",
                bbox_to_anchor=(1, 1),
            )
        plot_ticks.place(left)
        predicted = law.fit.predict(law.sample.x)
        right.scatter(predicted, law.sample.y, c=np.log10(sizes), s=16, zorder=3)
        ends = [min(predicted.min(), law.sample.y.min()), max(predicted.max(), law.sample.y.max())]
        right.plot(ends, ends, color=FLOOR, ls=":")
        right.set(
            xlabel=f"{law.column} of the law",
            ylabel=f"{law.column} measured",
            title="measured against the law",
        )
        plot_ticks.place(right)
    return figure


def frontiers(
    curves: Mapping[str, list[frontier.Curve]], results: Mapping, laws: Mapping[str, Law]
) -> Figure:
    """Plots the curves of the runs, their lower envelope and its law, one panel per column."""
    figure, axes = panels(len(results), 1, "Compute-optimal frontier: lower envelope of the curves")
    for ax, (column, edge) in zip(axes[:, 0], results.items(), strict=True):
        ordered = sorted(curves[column], key=lambda c: c.params)
        colors = colormaps["viridis"](np.linspace(0, 0.9, len(ordered)))
        for curve, color in zip(ordered, colors, strict=True):
            label = curve.name if len(ordered) <= 10 else None
            ax.plot(curve.compute, curve.loss, "-o", ms=2.5, lw=0.8, color=color, label=label)
        ax.plot(
            edge["compute"], edge["loss"], "s", ms=4, mfc="none", color="black", label="frontier"
        )
        if law := laws.get(f"{column}~compute"):
            grid = np.geomspace(min(edge["compute"]), max(edge["compute"]) * 2, 100)
            ax.plot(
                grid,
                law.fit.predict(grid[:, None]),
                "--",
                color="tab:red",
                label="law of the frontier",
            )
        ax.set(xscale="log", yscale="log", xlabel=UNITS["compute"], ylabel=_loss_label(column))
        ax.legend(fontsize=7)
        plot_ticks.place(ax)
    return figure


def isoflops(results: Mapping) -> Figure:
    """Plots loss against size at fixed compute, and the optimal size against compute."""
    figure, axes = panels(len(results), 2, "IsoFLOP curves and their minima")
    for (left, right), (column, iso) in zip(axes, results.items(), strict=True):
        colors = colormaps["plasma"](np.linspace(0, 0.85, max(len(iso["levels"]), 1)))
        for (compute, params, level_losses), color in zip(iso["levels"], colors, strict=False):
            left.plot(
                params, level_losses, "-o", ms=3, lw=0.8, color=color, label=f"{compute:.2g} FLOPs"
            )
        minima = iso["minima"]
        left.plot(
            [m["params"] for m in minima], [m["loss"] for m in minima], "k*", ms=9, label="minimum"
        )
        left.set(xscale="log", xlabel=UNITS["params"], ylabel=_loss_label(column), title=column)
        left.legend(fontsize=6, ncols=2)
        right.plot([m["compute"] for m in minima], [m["params"] for m in minima], "k*", ms=9)
        title = f"{len(minima)} minima, {len(iso['refused'])} levels refused"
        if iso["exponent"]:
            grid = np.geomspace(minima[0]["compute"], minima[-1]["compute"], 20)
            right.plot(grid, iso["exponent"]["A"] * grid ** iso["exponent"]["value"], color=FIT)
            title += f", exponent {iso['exponent']['value']:.3f}"
        right.set(
            xscale="log",
            yscale="log",
            xlabel=UNITS["compute"],
            ylabel="optimal parameters",
            title=title,
        )
        plot_ticks.place(left)
        plot_ticks.place(right)
    return figure


def residuals(laws: list[Law]) -> Figure:
    """Plots each law's residuals in percent against its first input."""
    columns = min(3, len(laws))
    figure, axes = panels(
        -(-len(laws) // columns), columns, "Residuals: measured over the most likely law, less 1"
    )
    for ax in axes.flat[len(laws) :]:
        ax.set_axis_off()
    for ax, law in zip(axes.flat, laws, strict=False):
        off = 100 * (law.sample.y / law.fit.predict(law.sample.x) - 1)
        ax.plot(law.sample.x[:, 0], off, **POINT)
        ax.axhline(0, color=FLOOR, ls=":")
        ax.set(
            xscale="log", xlabel=UNITS[law.sample.inputs[0]], ylabel="residual (%)", title=law.key
        )
        plot_ticks.place(ax)
    return figure


def bootstraps(laws: list[Law]) -> Figure:
    """Plots bootstrap laws in the plane of E and the exponent, with the reported intervals."""
    columns = min(3, len(laws))
    figure, axes = panels(
        -(-len(laws) // columns),
        columns,
        "Bootstrap over runs: E and alpha, with the most likely values and their 95 % intervals",
    )
    for ax in axes.flat[len(laws) :]:
        ax.set_axis_off()
    for ax, law in zip(axes.flat, laws, strict=False):
        assert law.samples is not None
        ax.plot(law.samples[:, 0], law.samples[:, 2], ".", ms=2, alpha=0.4, color=FIT)
        values = [law.summary[name]["value"] for name in ("E", "alpha")]
        ends = [law.summary[name]["ci95"] for name in ("E", "alpha")]
        errors = [
            [[0], [0]] if low is None else [[max(v - low, 0)], [max(high - v, 0)]]
            for v, (low, high) in zip(values, ends, strict=True)
        ]
        ax.errorbar(
            *([v] for v in values),
            xerr=errors[0],
            yerr=errors[1],
            color="black",
            capsize=3,
            marker="o",
            ms=4,
        )
        shown = np.quantile(law.samples[:, 2], (0.005, 0.995))
        low, high = shown if ends[1][0] is None else ends[1]
        ax.set(
            xlabel=f"E of {law.column}",
            ylabel="alpha",
            title=law.key,
            ylim=(
                min(shown[0], low) * 0.95,
                max(shown[1], min(high, 3 * shown[1])) * 1.05,
            ),
        )
        plot_ticks.place(ax)
    return figure


def power_laws(results: Mapping[str, tuple], y: str, x: str) -> Figure:
    """Plots points and power laws on logarithmic axes, one color per group."""
    figure, ((ax,),) = panels(1, 1, f"{y} = A {x}^exponent")
    figure.set_size_inches(8, 5.5)
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(results)))
    for (key, (at, values, sigma, law)), color in zip(results.items(), colors, strict=True):
        assert isinstance(law, PowerLaw)
        spread = None if sigma is None else [values * -np.expm1(-sigma), values * np.expm1(sigma)]
        ax.errorbar(at, values, yerr=spread, fmt="o", ms=3, lw=0.7, color=color)
        grid = np.geomspace(at.min(), at.max(), 20)
        low, high = law.exponent_ci95
        group = key.partition("[")[2].rstrip("]") or key
        ax.plot(
            grid,
            np.exp(law.log_a) * grid**law.exponent,
            color=color,
            label=f"{group}: {law.exponent:.3f} [{low:.3f}, {high:.3f}]",
        )
    ax.set(xscale="log", yscale="log", xlabel=UNITS.get(x, x), ylabel=UNITS.get(y, y))
    ax.legend(fontsize=8, title="exponent with 95 % interval", title_fontsize=8)
    plot_ticks.place(ax)
    return figure
