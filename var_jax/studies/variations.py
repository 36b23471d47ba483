"""Measures images that a model continues from an image's leading scales.

They are finer detail of images that were made small, and variations.

`python -m var_jax.studies.variations --model D --reference fashion_mnist_idx:test --resize pad
--out DIR` writes `continuing.json`, the table `continuing.md` and `continuing.png`; rows that are
already in the file are not measured again. Small images are held-out ones, averaged down and
enlarged again bicubically, which is also the baseline of finer detail; variations keep the leading
scales of the images as they are.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from var_jax import Pipeline
from var_jax.config.strict import require
from var_jax.errors import Parser
from var_jax.evaluate import scores
from var_jax.evaluate.classifier import agreement, pixel_classifier
from var_jax.evaluate.features import features_of
from var_jax.io import atomic, pictures
from var_jax.io.pictures import to_uint8
from var_jax.ops.normalize import normalize_images
from var_jax.ops.resize import resize
from var_jax.sampling import validate
from var_jax.studies import held_out, study_command
from var_jax.studies.held_out import PICTURED, HeldOut, Labeled
from var_jax.studies.measured_rows import Rows, format_metric

Pixels = UInt8[np.ndarray, "n H W c"]
TRUTH, ENLARGED, RECONSTRUCTED = "truth", "enlarged", "enlarged, reconstructed"
NOTES = (
    "Images are drawn from the reference by the seed, and compared with the others of it; 'truth' "
    "is the images themselves. off: mean absolute difference from the image, in levels of 0 to "
    "255. Labels are the images' own.",
)


class Continued(NamedTuple):
    """The images that a model continues from.

    Attributes:
      source: the images whose leading scales are kept, TRUTH or ENLARGED.
      keep_scales: number of leading scales.
    """

    source: str
    keep_scales: int


def continued_rows(num_scales: int) -> dict[str, Continued]:
    """Returns the rows that a model samples, by name."""
    rows = {}
    for k in range(num_scales // 2, num_scales):
        rows[f"enlarged, first {k} scales kept"] = Continued(ENLARGED, k)
    for k in range(1, num_scales):
        rows[f"variation, first {k} kept"] = Continued(TRUTH, k)
    return rows


def enlarged(images: Pixels, factor: int) -> Pixels:
    """Returns images averaged down by a factor and enlarged again bicubically."""
    height, width = images.shape[1:3]
    small = resize(images.astype(np.float32) / 255, (height // factor, width // factor), "area")
    return to_uint8(np.asarray(resize(small, (height, width), "bicubic")))


@dataclasses.dataclass(frozen=True)
class Continuer:
    """Makes the images of each row.

    Attributes:
      sources: images that a model continues, by name.
      labels: their classes.
      rows: the rows that a model samples.
    """

    model: Pipeline
    sources: Mapping[str, Pixels]
    labels: np.ndarray
    rows: Mapping[str, Continued]
    seed: int

    def images(self, name: str, count: int | None = None) -> Pixels:
        """Returns the first images of a row, or all."""
        if name in self.sources:
            return self.sources[name][:count]
        if name == RECONSTRUCTED:
            images = normalize_images(self.sources[ENLARGED][:count])
            return to_uint8((self.model.decode(self.model.encode(images)) + 1) / 2)
        source, keep_scales = self.rows[name]
        images = normalize_images(self.sources[source][:count])
        varied = self.model.vary(
            images, self.labels[:count], keep_scales=keep_scales, seed=self.seed
        )
        return to_uint8(varied)


def run(args: argparse.Namespace):
    """Measures the rows that are missing, and writes the table and the picture."""
    study_command.check_arguments(args)
    model = Pipeline.from_pretrained(args.model)
    validate.transformer(model.config)
    height, width, _ = model.config.tokenizer.image_shape
    require(
        args.factor >= 2 and height % args.factor == 0 and width % args.factor == 0,
        "--factor",
        args.factor,
        f"a divisor of both sides of {height} x {width}, at least 2",
    )
    images = held_out.open_held_out(args, model)
    about = images.describe("continuing", "continued", factor=args.factor)

    out = epath.Path(args.out)
    rows = Rows(out / "continuing.json", about, NOTES)
    continued = continued_rows(len(model.config.tokenizer.scales))
    missing = rows.missing([TRUTH, ENLARGED, RECONSTRUCTED, *continued])
    if missing or not (out / "continuing.png").exists():
        originals, labels = images.load(images.chosen)
        sources = {TRUTH: originals, ENLARGED: enlarged(originals, args.factor)}
        continuer = Continuer(model.spread(), sources, labels, continued, args.seed)
        if missing:
            _measure(rows, missing, images, continuer)
        pictures.save_png(out / "continuing.png", picture(continuer))
    atomic.save(out / "continuing.md", markdown(rows), "the table")


def _measure(rows: Rows, missing: Sequence[str], images: HeldOut, continuer: Continuer):
    """Measures the rows that are missing."""
    training: Labeled = images.load(images.training)
    classify = pixel_classifier(training.images.astype(np.float32) / 255, training.labels)
    distance = images.distance_to(images.others)
    originals, labels = continuer.sources[TRUTH], continuer.labels

    def measure(name: str) -> dict[str, Any]:
        pixels = continuer.images(name)
        difference = np.abs(pixels.astype(np.float64) - originals).mean(axis=(1, 2, 3))
        return {
            "frechet_distance": distance.of(features_of(images.network, pixels)),
            "agreement": agreement(classify, pixels.astype(np.float32) / 255, labels),
            "off": scores.mean_with_interval(difference),
        }

    rows.fill(missing, measure)


def picture(continuer: Continuer) -> Image.Image:
    """Returns a grid of the first held-out images: a column for each row of the table."""
    titles = {TRUTH: "original", ENLARGED: "enlarged"}
    for name, (source, keep_scales) in continuer.rows.items():
        titles[name] = f"{'finer' if source == ENLARGED else 'varied'}, {keep_scales}"
    columns = [continuer.images(name, PICTURED) for name in titles]
    return pictures.strip(list(np.stack(columns, axis=1)), list(titles.values()))


def markdown(rows: Rows) -> str:
    """Returns the table."""
    about = rows.about
    lines = [
        f"Each row compares {about['num']} images with {about['reference']['count']} other images "
        f"of the same split by features of {about['features']['network']}, with 95 % intervals. "
        "Images are sampled with the preset fid; enlarged ones were reduced by a factor of "
        f"{about['factor']} before. 'as labeled' is the share that a classifier assigns to their "
        "label.",
        "",
        "| | Fréchet distance | as labeled | error of pixels, levels |",
        "|---" * 4 + "|",
    ]
    for name, row in rows.rows.items():
        distance = format_metric(row["frechet_distance"])
        agreement_value = f"{row['agreement']['value']:.3f}"
        lines.append(f"| {name} | {distance} | {agreement_value} | {format_metric(row['off'])} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m var_jax.studies.variations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    study_command.add_arguments(parser)
    parser.add_argument(
        "--factor", type=int, default=4, help="that images are made smaller by (default 4)"
    )
    return study_command.command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
