"""Chooses how far to extrapolate a model away from a copy that was tuned on its own samples (Neon,
arXiv 2510.03597).

  python launch/neon.py --base models/d16 --tuned runs/d16_own \\
      --reference imagenet2012:validation --num 10000 --cfg 2.7 --out runs/neon

Each weight W makes the model BASE + W (TUNED - BASE), as `var-jax merge` does: 0 is the base, and
the paper's w is -W. All weights sample the same labels with the same seed. The weight is chosen by
the Fréchet distance to every other image of the reference. The figure to quote is measured apart:
samples of the next seed, against the images in between, which the choice has not seen. A row is
written to OUT/neon.json when it is measured and is not measured again; the table and the picture
are OUT/neon.md and OUT/neon.png.

Guidance matters as much as the weight: the paper's best is stronger than the base's own, so run the
script again with another --cfg and another --out.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from var_jax import Pipeline
from var_jax.cli import feature_options
from var_jax.cli.evaluate import add_image_arguments
from var_jax.cli.sample import add_sampling_arguments, sampling_arguments
from var_jax.config.strict import require
from var_jax.data.image_folder import fingerprint
from var_jax.data.model_fingerprint import model_fingerprint
from var_jax.errors import Parser
from var_jax.evaluate import feature_networks, features, image_sets, reference_cache, sample_plan
from var_jax.evaluate.samples import RESAMPLES, Distance
from var_jax.io import atomic, model_merge, pictures
from var_jax.io.finite import require_finite
from var_jax.studies import study_command
from var_jax.studies.measured_rows import Rows, format_metric

WEIGHTS = (-2.0, -1.5, -1.0, -0.5, 0.0)
SAMPLED_AT_ONCE = 512
CHOICE, FINAL = "choice", "final"  # the halves of the reference
NOTES = (
    "Rows of 'choice' are of one seed and of every other image of the reference; rows of 'final' "
    "of the next seed and of the images in between. Intervals are the noise of drawing as many "
    "samples again, with the reference fixed. Distances of finite sets are biased upwards, by "
    "about as much in every row of one half.",
)


def half(images: image_sets.ImageSet, which: str) -> image_sets.ImageSet:
    """Returns every other image of a set: no image is in both halves, and each has all classes."""
    first = (CHOICE, FINAL).index(which)

    def read(batch_size: int) -> Iterator[image_sets.Batch]:
        place = 0
        for batch in images.read(batch_size):
            rows = np.arange(place, place + len(batch.images)) % 2 == first
            place += len(batch.images)
            labels = None if batch.labels is None else batch.labels[rows]
            if rows.any():
                yield image_sets.Batch(batch.images[rows], labels)

    return dataclasses.replace(
        images,
        name=f"{images.name}, every other image from the {('first', 'second')[first]} on",
        fingerprint=fingerprint([images.fingerprint, which]),
        count=(images.count + 1 - first) // 2,
        read=read,
    )


class Measures:
    """Measures merged models against the halves of a reference.

    Args:
      args: the command line.
      pair: the two models.
    """

    def __init__(self, args: argparse.Namespace, pair: model_merge.Pair):
        self._pair = pair
        base = self._model(0)
        self._sampling = sampling_arguments(args)
        self._plans = {
            which: sample_plan.make_plan(
                base, args.num, **{**self._sampling, "seed": args.seed + i}
            )
            for i, which in enumerate((CHOICE, FINAL))
        }
        self._network = feature_networks.load(args.features, args.weights)
        images = image_sets.open_images(
            args.reference,
            shape=pair.config.tokenizer.image_shape,
            resize=args.resize,
            data_dir=args.data_dir,
            source_dir=args.source_dir,
        )
        require(images.count >= 8, args.reference, f"{images.count} images", "at least 8")
        self._halves = {which: half(images, which) for which in (CHOICE, FINAL)}
        self._distances: dict[str, Distance] = {}
        self._resamples, self._cache = args.resamples, args.cache
        self.about = {
            "plans": {which: plan.settings for which, plan in self._plans.items()},
            "tuned": model_fingerprint(pair.config, pair.tuned),
            "reference": images.described(),
            "features": {"network": self._network.name, "weights": self._network.weights},
            "resamples": args.resamples,
        }

    def _model(self, weight: float) -> Pipeline:
        pair = self._pair
        merged = model_merge.merge(pair.base, pair.tuned, weight)
        require_finite(flatten_dict(merged, sep="/").items(), f"the merge by {weight:g}")
        model = Pipeline(pair.config, merged, pair.class_names)
        return model.spread() if jax.local_device_count() > 1 else model

    def row(self, name: str) -> dict[str, Any]:
        """Returns the distance of a row such as "choice -0.5"."""
        which, weight = name.split()
        if which not in self._distances:
            real = reference_cache.read_or_measure(self._network, self._halves[which], self._cache)
            self._distances[which] = Distance(real, self._resamples, 0)
        model, plan = self._model(float(weight)), self._plans[which]
        collector = features.Collector(self._network)
        with features.progress(plan.num, f"weight {weight}, {which}") as bar:
            for shard in plan.shards(SAMPLED_AT_ONCE):
                labels = plan.label(np.asarray(shard))
                collector.add(
                    model.sample(labels, first_index=shard.start, as_uint8=True, **plan.sampling)
                )
                bar.update(len(shard))
        return {
            "weight": float(weight),
            "half": which,
            "frechet_distance": self._distances[which].of(collector.finish()),
        }


def row_name(which: str, weight: float) -> str:
    return f"{which} {weight:g}"


def chosen(rows: Rows, weights: Sequence[float]) -> float:
    """Returns the weight of the smallest distance to the choosing half; of equals the nearest 0."""
    return min(
        sorted(weights, key=abs),
        key=lambda weight: rows[row_name(CHOICE, weight)]["frechet_distance"]["value"],
    )


def verdict(rows: Rows, weights: Sequence[float], args: argparse.Namespace) -> list[str]:
    """Returns what the rows say, in lines: the chosen weight, its gain, and whether it is noise."""
    best = chosen(rows, weights)
    base = rows[row_name(FINAL, 0)]["frechet_distance"]
    if best == 0:
        return [
            "No weight is better than 0, the base itself: extrapolation did not help here. The "
            f"base's distance, measured apart, is {format_metric(base)}."
        ]
    there = rows[row_name(FINAL, best)]["frechet_distance"]
    lines = [
        f"The chosen weight is {best:g}. Measured apart, its distance is {format_metric(there)}, "
        f"and the base's {format_metric(base)}."
    ]
    if there["value"] >= base["value"]:
        lines.append("Measured apart it is no better than the base: the choice was noise.")
    elif there["ci95"] is None or base["ci95"] is None:
        lines.append("Without resamples, the noise is unknown.")
    elif there["ci95"][1] >= base["ci95"][0]:
        lines.append("The intervals overlap: the gain is within the noise of the samples.")
    else:
        lines.append("The intervals do not overlap: the gain is beyond the noise of the samples.")
    if best in (min(weights), max(weights)):
        lines.append(f"It is the outermost of those tried: try weights beyond {best:g}.")
    command = f"var-jax merge --base {args.base} --tuned {args.tuned} --weight {best:g} --out DIR"
    return [*lines, f"Its model: {command}"]


def table(rows: Rows, weights: Sequence[float]) -> str:
    """Returns the rows that there are as a table, with 95 % intervals."""
    lines = ["| weight | distance, choosing half | distance, measured apart |", "|---|---|---|"]
    for weight in weights:
        cells = [
            format_metric(rows[name]["frechet_distance"]) if name in rows else ""
            for name in (row_name(which, weight) for which in (CHOICE, FINAL))
        ]
        lines.append(f"| {weight:g} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def picture(rows: Rows, weights: Sequence[float]):
    """Returns the distances over the weights, with their intervals."""
    from matplotlib.figure import Figure

    from var_jax.studies.sampling_report import image_of

    figure = Figure(figsize=(5, 3.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for which, mark, text in (
        (CHOICE, "o-", "choosing half"),
        (FINAL, "s", "measured apart"),
    ):
        at = [weight for weight in weights if row_name(which, weight) in rows]
        distances = [rows[row_name(which, weight)]["frechet_distance"] for weight in at]
        ends = np.array([d["ci95"] or [d["value"]] * 2 for d in distances]).T
        values = np.array([d["value"] for d in distances])
        axes.errorbar(at, values, np.abs(ends - values), fmt=mark, capsize=3, label=text)
    axes.set(xlabel="weight of the tuned model", ylabel="Fréchet distance")
    axes.legend()
    return image_of(figure)


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, what in (("--base", "the model"), ("--tuned", "the copy tuned on its samples")):
        parser.add_argument(
            name, required=True, metavar="DIR", help=f"{what}: directory or workdir"
        )
    parser.add_argument(
        "--reference",
        required=True,
        metavar="F",
        help="held-out images, DATASET:SPLIT or as `var-jax evaluate` takes them, for both halves",
    )
    add_image_arguments(parser, "the reference")
    parser.add_argument(
        "--merge-weights",
        nargs="+",
        type=float,
        default=WEIGHTS,
        metavar="W",
        help=f"weights to try beside 0 (default {' '.join(f'{w:g}' for w in WEIGHTS)})",
    )
    parser.add_argument("--num", type=int, default=10_000, help="samples of a row (%(default)s)")
    feature_options.add_feature_arguments(parser)
    parser.add_argument(
        "--resamples",
        type=int,
        default=RESAMPLES,
        help="bootstrap resamples for the intervals, 0 for none (%(default)s)",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="where the reference's features are kept; '' keeps none (default "
        "~/.cache/var_jax/features)",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="directory of the rows, table and picture"
    )
    add_sampling_arguments(parser)
    return study_command.command(parser, run)


def run(args: argparse.Namespace):
    """Measures the rows that are missing, and prints the table and the verdict."""
    study_command.check_arguments(args)
    args.model, args.adapter = args.base, []  # whose class names --negative-labels has
    require(
        all(np.isfinite(args.merge_weights)),
        "--merge-weights",
        args.merge_weights,
        "finite numbers",
    )
    weights = sorted({0.0, *args.merge_weights})
    measures = Measures(args, model_merge.load_pair(args.base, args.tuned))
    out = epath.Path(args.out)
    rows = Rows(out / "neon.json", measures.about, NOTES)
    rows.fill(rows.missing([row_name(CHOICE, weight) for weight in weights]), measures.row)
    final = [row_name(FINAL, weight) for weight in (0.0, chosen(rows, weights))]
    rows.fill(rows.missing(final), measures.row)
    text = "\n\n".join([table(rows, weights), *verdict(rows, weights, args)])
    atomic.save(out / "neon.md", text + "\n", "the table")
    pictures.save_png(out / "neon.png", picture(rows, weights))
    print(text)


if __name__ == "__main__":
    sys.exit(main())
