"""The tables and the picture of the editing study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from var_jax.io import pictures
from var_jax.studies.held_out import PICTURED
from var_jax.studies.measured_rows import Rows, format_metric
from var_jax.studies.regions import ANOTHER, TASKS

if TYPE_CHECKING:
    from var_jax.studies.editing import Editor

HIDDEN = 127  # level of the region in pictures
NOTES = (
    "The edited images are drawn from the reference by the seed, and compared with the others of "
    "it: the row 'truth' is real images against real images at the same counts, the floor of every "
    "row of its task.",
    "from scale K: the first K scales are the image's own everywhere, and tell the model something "
    "of what is to be filled; the mean and the nearest image see kept pixels alone, and so does "
    "the model from scale 0.",
    "kept: mean absolute difference of kept pixels from the image, in levels of 0 to 255: of the "
    "pixels put back (composited), and of the model's own on the first images. region: Fréchet "
    "distance of the filled region alone. filled: mean absolute difference of the filled pixels "
    "from the image's own.",
    "All but kept.uncomposited is of composited images. New content is asked for by the image's "
    f"own label, in '{ANOTHER}' by the next one. region.label: whether a classifier of that "
    "region, which sees nothing else, finds the wanted class.",
)
HEADS = (
    "Fréchet distance",
    "Fréchet distance of the filled region",
    "shows the target class",
    "filled region shows it",
    "shows the original class",
    "error of filled pixels",
    "error of kept pixels",
)


def row_name(task: str, method: str | int) -> str:
    """Returns the name of a row in the study's file."""
    return f"{task}: {f'model, from scale {method}' if isinstance(method, int) else method}"


def markdown(rows: Rows) -> str:
    """Returns one table per task."""
    about = rows.about
    lines = [
        f"Each row compares {about['num']} images, edited with the preset {about['preset']}, with "
        f"{about['reference']['count']} other images of the same split by features of "
        f"{about['features']['network']}, with 95 % intervals. 'shows' is the share that a "
        "classifier assigns to the class. Errors are mean absolute differences in levels of 0 to "
        "255; those of kept pixels are without putting the originals back, which makes them 0."
    ]
    for task in TASKS:
        task_rows = {
            name.partition(": ")[2]: row
            for name, row in rows.rows.items()
            if name.startswith(f"{task}: ")
        }
        if not task_rows:
            continue
        region = next(iter(task_rows.values()))["region"]
        lines += [
            "",
            f"**{task}**: {region['filled_share']:.1%} filled; the region alone: "
            f"{region['alone']}.",
            "",
            f"| {task} | {' | '.join(HEADS)} |",
            "|---" * (len(HEADS) + 1) + "|",
        ]
        for method, row in task_rows.items():
            cells = [
                format_metric(row["frechet_distance"]),
                format_metric(row["region"]),
                f"{row['wanted_label']['value']:.3f}",
                f"{row['region']['label']['value']:.3f}",
                f"{row['original_label']['value']:.3f}",
            ]
            for difference in (row["filled"], row["kept"]["uncomposited"]):
                cells.append("" if difference is None else format_metric(difference))
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(editor: Editor, keep_scales: int) -> Image.Image:
    """Returns a picture of the first images of each task.

    It shows the original, the masked image, the model's fill by two seeds, the mean and the nearest
    image.
    """
    titles = ["original", "masked", "model", "other seed", "mean", "nearest"]
    blocks = []
    for task in TASKS:
        images = editor.held_out.images[:PICTURED]
        keep = editor.region(task).pixels[..., None]
        columns = [
            images,
            np.where(keep, images, np.uint8(HIDDEN)),
            editor.fill(task, keep_scales, seed=editor.seed, count=PICTURED),
            editor.fill(task, keep_scales, seed=editor.seed ^ 1, count=PICTURED),
            editor.fill(task, "mean", count=PICTURED),
            editor.fill(task, "nearest", count=PICTURED),
        ]
        blocks.append(pictures.strip(list(np.stack(columns, axis=1)), titles))
    return pictures.titled_blocks(blocks, TASKS, columns=2)
