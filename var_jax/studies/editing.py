"""Measures edits of held-out images: in-painting, out-painting, and a change of class.

`python -m var_jax.studies.editing --model D --reference fashion_mnist_idx:test --resize pad --out
DIR` writes `editing.json`, the tables `editing.md` and `editing.png`; rows that are already in the
file are not measured again. The model's fills are compared with the truth and with two that need no
model: the mean of the training images, and the pixels of the training image that is nearest in the
kept region.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int, UInt8

from var_jax import Pipeline
from var_jax.config.scales import Scales
from var_jax.config.strict import require
from var_jax.errors import Parser
from var_jax.evaluate import scores
from var_jax.evaluate.classifier import Classifier, agreement, pixel_classifier
from var_jax.evaluate.features import features_of
from var_jax.evaluate.samples import Distance
from var_jax.io import atomic, pictures
from var_jax.io.pictures import to_uint8
from var_jax.ops.normalize import normalize_images
from var_jax.sampling import edit_mask, settings, validate
from var_jax.sampling.kept_scales import published_keep_scales
from var_jax.studies import baselines, editing_report, held_out, study_command
from var_jax.studies.held_out import HeldOut, Labeled
from var_jax.studies.measured_rows import Rows
from var_jax.studies.regions import ANOTHER, TASKS, Region, cut_set, keep_mask

EDITED_AT_ONCE = 512  # images that are edited at once
UNCOMPOSITED = 256  # images that are also edited without putting kept pixels back


@dataclasses.dataclass(frozen=True)
class Editor:
    """Edits held-out images by a model and by baselines.

    Attributes:
      held_out: the images to edit.
      training: the images that baselines fill from.
      seed: seed of the model's edits.
      preset: sampling preset of the model's edits.
    """

    model: Pipeline
    held_out: Labeled
    training: Labeled
    seed: int
    preset: str

    def region(self, task: str) -> Region:
        """Returns the region that a task fills."""
        tokenizer = self.model.config.tokenizer
        keep = keep_mask(task, tokenizer.scales.finest)
        return Region(keep, edit_mask.kept_pixels(tokenizer, keep))

    def target_labels(self, task: str) -> Int[np.ndarray, " n"]:
        """Returns the class that each image's new content is to have."""
        classes = validate.transformer(self.model.config).num_classes
        labels = self.held_out.labels
        return (labels + 1) % classes if task == ANOTHER else labels

    def fill(
        self, task: str, method: str | int, *, seed: int | None = None, count: int | None = None
    ) -> UInt8[np.ndarray, "n H W c"]:
        """Returns images with the task's region filled, and kept pixels as they were.

        Args:
          method: "truth", "mean", "nearest", or how many leading scales the model keeps.
          seed: seeds the model's edits; by default the study's seed.
          count: number of leading images to fill; None for all.
        """
        images, _ = self.held_out
        images = images[:count]
        if method == "truth":
            return images
        if isinstance(method, int):
            return to_uint8(self._edit(task, method, seed=seed, count=count))
        region = self.region(task)
        training, training_labels = self.training
        if method == "mean":
            source = baselines.mean_image(training)
        elif task == ANOTHER:
            labels = self.target_labels(task)[:count]
            index = baselines.nearest_of_class(
                images, labels, training, training_labels, region.pixels
            )
            source = training[index]
        else:
            source = training[baselines.nearest(images, training, region.pixels)]
        return np.where(region.pixels[..., None], images, source)

    def reconstruction_error(self, task: str, keep_scales: int) -> dict[str, Any]:
        """Returns the error of the model's own kept pixels, with no pixels put back."""
        edited = self._edit(task, keep_scales, count=UNCOMPOSITED, composite=False)
        levels = np.clip(edited, 0, 1) * 255
        return masked_mae(levels, self.held_out.images[:UNCOMPOSITED], self.region(task).pixels)

    def _edit(
        self,
        task: str,
        keep_scales: int,
        *,
        seed: int | None = None,
        count: int | None = None,
        composite: bool = True,
    ) -> Float[np.ndarray, "n H W c"]:
        """Returns the model's edits in [0, 1].

        They are made in parts, each with a seed of its own, because the first image of every call
        to the model has the same key.
        """
        images = self.held_out.images[:count]
        labels = self.target_labels(task)[:count]
        seed = self.seed if seed is None else seed
        parts = []
        for start in range(0, len(images), EDITED_AT_ONCE):
            part_seed = int(np.random.SeedSequence([seed, start]).generate_state(1)[0])
            part = self.model.edit(
                normalize_images(images[start : start + EDITED_AT_ONCE]),
                self.region(task).keep,
                labels[start : start + EDITED_AT_ONCE],
                seed=part_seed,
                composite=composite,
                keep_scales=keep_scales,
                preset=self.preset,
            )
            parts.append(part)
        return np.concatenate(parts)


def masked_mae(a: np.ndarray, b: np.ndarray, mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """Returns the mean absolute difference of images where a mask is True.

    It is in levels of 0 to 255, with the interval of its mean over images.
    """
    difference = np.abs(a[:, mask].astype(np.float64) - b[:, mask])
    per_image = difference.reshape(len(a), -1).mean(axis=1)
    return {
        **scores.mean_with_interval(per_image),
        "largest": float(difference.max()),
        "count": len(a),
    }


class Metrics(NamedTuple):
    """The metrics of the fills of a task.

    Attributes:
      distance: Fréchet distances of images.
      classify: a classifier of images.
      region_distance: Fréchet distances of only the filled region.
      region_classify: a classifier of that region.
    """

    distance: Distance
    classify: Classifier
    region_distance: Distance
    region_classify: Classifier


class Study:
    """Measures rows of the table, one per task and method."""

    def __init__(self, images: HeldOut, editor: Editor):
        self.images, self.editor = images, editor
        self._distance = images.distance_to(images.others)
        training, labels = editor.training
        self._classify = pixel_classifier(training.astype(np.float32) / 255, labels)
        self._metrics: tuple[str, Metrics] | None = None

    def measure(self, task: str, method: str | int) -> dict[str, Any]:
        """Measures the fills of a task by a method, and returns the row of the table."""
        editor, network = self.editor, self.images.network
        metrics = self._metrics_of(task)
        region, targets = editor.region(task), editor.target_labels(task)
        originals, labels = editor.held_out
        images = editor.fill(task, method)
        cut = region.cut(images)
        pixels, cut_pixels = (x.astype(np.float32) / 255 for x in (images, cut))
        uncomposited = None
        if isinstance(method, int):
            uncomposited = editor.reconstruction_error(task, method)
        return {
            "kept": {
                "composited": masked_mae(images, originals, region.pixels),
                "uncomposited": uncomposited,
            },
            "frechet_distance": metrics.distance.of(features_of(network, images)),
            "region": {
                **metrics.region_distance.of(features_of(network, cut)),
                **region.describe(),
                "label": agreement(metrics.region_classify, cut_pixels, targets),
            },
            "wanted_label": agreement(metrics.classify, pixels, targets),
            "original_label": agreement(metrics.classify, pixels, labels),
            "filled": None if task == ANOTHER else masked_mae(images, originals, ~region.pixels),
        }

    def _metrics_of(self, task: str) -> Metrics:
        """Returns a task's metrics, which are kept until the next task's."""
        if self._metrics is None or self._metrics[0] != task:
            region = self.editor.region(task)
            training, labels = self.editor.training
            metrics = Metrics(
                self._distance,
                self._classify,
                self.images.distance_to(cut_set(self.images.others, region)),
                pixel_classifier(region.cut(training).astype(np.float32) / 255, labels),
            )
            self._metrics = (task, metrics)
        return self._metrics[1]


def run(args: argparse.Namespace):
    """Measures the rows that are missing, and writes the tables and the picture."""
    study_command.check_arguments(args)
    require(args.preset in settings.PRESETS, "--preset", args.preset, " or ".join(settings.PRESETS))
    model = Pipeline.from_pretrained(args.model)
    validate.transformer(model.config)
    scales = model.config.tokenizer.scales
    methods = ["truth", "mean", "nearest", *keep_scales_to_compare(scales, args.keep_scales)]
    images = held_out.open_held_out(args, model)
    about = images.describe("editing", "edited", preset=args.preset)

    out = epath.Path(args.out)
    rows = Rows(out / "editing.json", about, editing_report.NOTES)
    requested = {
        editing_report.row_name(task, method): (task, method)
        for task in TASKS
        for method in methods
    }
    missing = rows.missing(list(requested))
    if missing or not (out / "editing.png").exists():
        editor = Editor(
            model.spread(),
            images.load(images.chosen),
            images.load(images.training),
            args.seed,
            args.preset,
        )
        if missing:
            measured = Study(images, editor)
            rows.fill(missing, lambda name: measured.measure(*requested[name]))
        pictured = _published_keep_scales(scales)
        if args.keep_scales:
            pictured = int(args.keep_scales.split(",")[0])
        pictures.save_png(out / "editing.png", editing_report.picture(editor, pictured))
    atomic.save(out / "editing.md", editing_report.markdown(rows), "the tables")


def keep_scales_to_compare(scales: Scales, option: str) -> list[int]:
    """Returns the numbers of kept scales to compare.

    They are those of the option; without it 0, the published rule's and a larger one.

    Raises:
      UserError: the option is not a list of such numbers.
    """
    if not option:
        published = _published_keep_scales(scales)
        larger = min(max(published + 1, len(scales) // 2), len(scales) - 1)
        return sorted({0, published, larger})
    for part in option.split(","):
        require(
            part.isdecimal() and int(part) < len(scales),
            "--keep-scales",
            option,
            f"whole numbers from 0 to {len(scales) - 1}, separated by commas",
        )
    return sorted({int(part) for part in option.split(",")})


def _published_keep_scales(scales: Scales) -> int:
    return min(published_keep_scales(scales), len(scales) - 1)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m var_jax.studies.editing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    study_command.add_arguments(parser)
    parser.add_argument(
        "--keep-scales",
        "--from-scales",
        default="",
        metavar="K,K",
        help="numbers of leading scales that are the image's own (default: 0, the published "
        "rule's, that is the scales of at most 3 tokens, and a larger one)",
    )
    parser.add_argument(
        "--preset",
        default="fid",
        help=f"sampling settings, {' or '.join(settings.PRESETS)} (default fid)",
    )
    return study_command.command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
