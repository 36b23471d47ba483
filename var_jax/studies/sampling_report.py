"""The tables and the picture of the sampling settings study."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from var_jax.io import atomic, pictures
from var_jax.studies.compared_settings import BASE, PANELS, THEN, Entry, base_row, entries
from var_jax.studies.measured_rows import Rows, format_metric

REAL, SPEED = "real images", "speed"
NOTES = (
    "Every row is of the same labels, each class in turn, and of the same seed: image i of two "
    "rows differs by the settings alone. cfg 1.5 is guidance that rises from 0 at the first scale "
    "to 1.5 at the last, 1.5:1.5 is 1.5 at every scale; of any setting A:B goes from A at the "
    "first scale to B at the last. top_k of the vocabulary or more is off.",
    "'real images' are as many training images against the same reference: what no sampler can be "
    "expected to beat. Its agreement is the classifier's on the reference, as the classifier was "
    "fitted on the training images.",
    "Fréchet distances of finite sets are biased upwards, by about as much in every row of as many "
    "images.",
)


class Interval(NamedTuple):
    """The ends of a metric's interval, the value among them."""

    low: float
    high: float


def write(rows: Rows, vocab: int, scales: int, out: epath.Path):
    """Writes tables and a picture of all rows that are measured so far."""
    measured = [entry for entry in entries(PANELS, vocab, scales) if entry.row in rows]
    # A panel in which only the base is measured, which is in every panel, would say nothing.
    counts = collections.Counter(entry.panel for entry in measured)
    measured = [entry for entry in measured if counts[entry.panel] > 1]
    base = base_row(vocab, scales)
    atomic.save(out / "effects.md", markdown(rows, measured, base), "the tables")
    pictures.save_png(out / "effects.png", picture(rows, measured, base))


def markdown(rows: Rows, measured: Sequence[Entry], base: str) -> str:
    """Returns one table per panel, with the base in bold."""
    about, real = rows.about, rows[REAL]
    lines = [
        f"Each row compares {about['num']} samples with the {about['reference']['count']} images "
        f"of {about['reference']['name']} by features of {about['features']['network']}, with "
        "95 % intervals. As many training images in place of samples have a Fréchet distance of "
        f"{format_metric(real['frechet_distance'])}, a precision of "
        f"{real['precision']['value']:.3f} and a recall of {real['recall']['value']:.3f}. 'as "
        "labeled' is the share of samples that a classifier assigns to their label; it is right "
        f"on {real['agreement']['value']:.3f} of the reference. The preset {BASE}, the base of "
        "the comparison, is bold."
    ]
    speeds = rows[SPEED]["contenders"] if SPEED in rows else {}
    for panel in _panels(measured):
        heads = [
            "sampled by" if panel == THEN else panel,
            "Fréchet distance",
            "precision",
            "recall",
            "as labeled",
        ]
        if speeds:
            heads += ["images/s", "relative speed"]
        lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for entry in measured:
            if entry.panel != panel:
                continue
            row = rows[entry.row]
            cells = [
                f"**{entry.label}**" if entry.row == base else entry.label,
                format_metric(row["frechet_distance"]),
            ]
            for name in ("precision", "recall", "agreement"):
                cells.append(f"{row[name]['value']:.3f}")
            if speeds:
                speed = speeds.get(entry.row)
                cells.append(f"{speed['images_per_second']:.1f}" if speed else "")
                cells.append(f"{speed['ratio']:.2f}" if speed else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(rows: Rows, measured: Sequence[Entry], base: str) -> Image.Image:
    """Returns one panel per setting.

    The Fréchet distance is above, on an axis of its own, and the agreement with the labels below.

    The base is a star, and the classifier's agreement on real images a dotted line.
    """
    panels = _panels(measured)
    columns = min(4, len(panels))
    bands = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 4.4 * bands), dpi=110, layout="constrained")
    axes = figure.subplots(2 * bands, columns, squeeze=False, height_ratios=(2, 1) * bands)
    agreements = [_interval(rows[REAL]["agreement"])]
    agreements += [_interval(rows[entry.row]["agreement"]) for entry in measured]
    low = min(interval.low for interval in agreements)
    high = max(interval.high for interval in agreements)
    for i in range(columns * bands):
        above, below = (
            axes[2 * (i // columns), i % columns],
            axes[2 * (i // columns) + 1, i % columns],
        )
        if i >= len(panels):
            above.set_axis_off()
            below.set_axis_off()
            continue
        entries_of_panel = [entry for entry in measured if entry.panel == panels[i]]
        labels = [entry.label for entry in entries_of_panel]
        _plot(above, rows, entries_of_panel, "frechet_distance", base)
        above.set_title("sampled by" if panels[i] == THEN else panels[i], fontsize=10)
        _set_labels(above, [""] * len(labels), tilted=_are_long(labels))
        below.axhline(rows[REAL]["agreement"]["value"], color="tab:gray", ls=":", lw=1)
        _plot(below, rows, entries_of_panel, "agreement", base)
        below.set_ylim(low - 0.02, high + 0.02)
        _set_labels(below, labels, tilted=_are_long(labels))
        if i % columns == 0:
            above.set_ylabel("Fréchet distance", fontsize=9)
            below.set_ylabel("as labeled", fontsize=9)
    figure.suptitle(
        f"{rows.about['features']['network']}, {rows.about['num']} samples per row; star: the "
        f"base, preset {BASE}; as many real images: Fréchet distance "
        f"{rows[REAL]['frechet_distance']['value']:.1f}, agreement dotted",
        fontsize=10,
    )
    return image_of(figure)


def _plot(ax: Axes, rows: Rows, measured: Sequence[Entry], metric: str, base: str):
    """Plots a metric of entries side by side, with intervals."""
    for x, entry in enumerate(measured):
        value = rows[entry.row][metric]["value"]
        low, high = _interval(rows[entry.row][metric])
        is_base = entry.row == base
        ax.errorbar(
            x,
            value,
            [[value - low], [high - value]],
            capsize=3,
            color="tab:red" if is_base else "tab:blue",
            marker="*" if is_base else "o",
            ms=11 if is_base else 5,
        )
    ax.set_xlim(-0.5, len(measured) - 0.5)


def _set_labels(ax: Axes, labels: Sequence[str], *, tilted: bool):
    """Writes a label below each entry."""
    rotation = {"rotation": 30, "ha": "right"} if tilted else {}
    ax.set_xticks(range(len(labels)), labels, fontsize=8, **rotation)


def _are_long(labels: Sequence[str]) -> bool:
    lengths = [len(label) for label in labels]
    return max(lengths) > 8 or sum(lengths) > 28


def _panels(measured: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(entry.panel for entry in measured))


def _interval(metric: Mapping[str, Any]) -> Interval:
    value = metric["value"]
    low, high = metric["ci95"] or (value, value)
    return Interval(min(low, value), max(high, value))


def image_of(figure: Figure) -> Image.Image:
    """Returns a matplotlib figure as a picture."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
