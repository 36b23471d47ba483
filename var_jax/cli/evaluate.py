"""Measures a set of samples, or a tokenizer's reconstructions, against real images.

Images are FILE.npz (arr_0, uint8, of (images, height, width, channels), as `generate` writes it), a
directory of image files or of class folders, such as the one that a run trained on, or
DATASET:SPLIT as a training config names them. The reference is brought to the size of the samples,
or of the model.

example:
  var-jax evaluate --samples samples.npz --reference photos --json report.json
  var-jax evaluate --model runs/tokenizer --reference photos/test --picture reconstruction.png
  var-jax evaluate --samples samples.npz --reference fashion_mnist_idx:test --resize pad \\
      --json report.json
  var-jax evaluate --samples samples.npz --reference imagenet2012:validation --features inception \\
      --weights pt_inception-2015-12-05-6726825d.pth --json report.json
  var-jax evaluate --model runs/tokenizer --reference digits:test --json report.json \\
      --picture rec.png

The Fréchet distance is called FID only when measured by Inception v3. The intervals (ci95) of a
sample set are the noise of drawing as many images again; the floor is the distance of real images
to real images, at the counts printed next to it. Reconstructions are paired with the reference, so
that their distance has neither floor nor interval: real_against_real, the distance of two disjoint
halves of the reference, is printed next to it only for comparison.
"""

import argparse
import json
import os
from typing import get_args

from var_jax.cli.args import require_apart
from var_jax.config.sections import Resize, current_resize
from var_jax.config.strict import require
from var_jax.errors import UserError
from var_jax.io import atomic

# The words for the comparisons of a metric, by their keys in the report.
COMPARISONS = {"floor": "floor", "real_against_real": "for scale, real against real"}


def add_arguments(parser: argparse.ArgumentParser):
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--samples", metavar="F", help="sampled images to measure")
    what.add_argument(
        "--model",
        metavar="DIR",
        help="model directory or training workdir (its averaged weights) whose reconstructions of "
        "the reference are measured",
    )
    parser.add_argument(
        "--reference", required=True, metavar="F", help="real images to compare with"
    )
    parser.add_argument("--json", metavar="F", help="also write the full report to this file")
    parser.add_argument(
        "--picture",
        metavar="F.png",
        help="with --model: originals next to reconstructions by scale",
    )
    parser.add_argument(
        "--floor",
        metavar="F",
        help="with --samples: other real images, such as the training split, whose distance from "
        "the reference is the floor (default: two halves of the reference)",
    )
    parser.add_argument(
        "--agreement",
        metavar="F",
        help="with --samples that have labels: labeled training images, such as the folder that a "
        "run trained on, to fit a classifier on; it reports the share of samples that show "
        "their class",
    )
    add_image_arguments(parser, "the reference", "crop; for a workdir, as in its training")
    add_feature_arguments(parser)
    parser.add_argument(
        "--perceptual",
        choices=("efficientnet", "lpips", "none"),
        help="with --model: network of the perceptual distance (default efficientnet)",
    )
    parser.add_argument(
        "--perceptual-weights", metavar="F", help="weights of the perceptual distance's network"
    )
    parser.add_argument("--perceptual-heads", metavar="F", help="linear layers of lpips")
    parser.add_argument(
        "--num",
        type=int,
        default=0,
        help="measure only this many of the samples, or with --model of the reference, chosen by "
        "the seed (default: all)",
    )
    parser.add_argument(
        "--resamples",
        type=int,
        help="with --samples: number of bootstrap resamples for the intervals (default 20)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the choice of --num, of the halves and of the resamples (default 0)",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="where the reference's features are kept; '' keeps none (default "
        "~/.cache/var_jax/features)",
    )


def add_image_arguments(parser: argparse._ActionsContainer, whose: str, default: str = "crop"):
    parser.add_argument(
        "--resize",
        type=current_resize,
        choices=get_args(Resize),
        default="crop" if default == "crop" else None,
        help=f"how images of {whose} are brought to size, as data.resize in training; images of "
        f"that size are taken as they are (default {default})",
    )
    parser.add_argument(
        "--data-dir",
        default="",
        metavar="DIR",
        help="directory of prepared data sets, as data.data_dir",
    )
    parser.add_argument(
        "--source-dir",
        default="",
        metavar="DIR",
        help="directory of a data set's raw files, as data.source_dir",
    )


def add_feature_arguments(parser: argparse._ActionsContainer):
    parser.add_argument(
        "--features",
        choices=("efficientnet", "inception"),
        default="efficientnet",
        help="network that images are compared by (default efficientnet, at 64 pixels)",
    )
    parser.add_argument(
        "--weights", default="", metavar="PATH", help="its weights; inception needs them"
    )


def run(args: argparse.Namespace) -> int:
    require(args.seed >= 0, "--seed", args.seed, "0 or more")
    # Options of the other kind of evaluation are refused.
    given_option, other_option = "--samples", "--model"
    other_names = ("picture", "perceptual", "perceptual_weights", "perceptual_heads")
    if args.samples is None:
        given_option, other_option = other_option, given_option
        other_names = ("floor", "agreement", "resamples")
    for name in other_names:
        require(
            getattr(args, name) is None,
            f"--{name.replace('_', '-')}",
            f"given with {given_option}",
            f"given with {other_option}",
        )
    require(
        args.perceptual != "none" or not args.perceptual_weights,
        "--perceptual-weights",
        "given with --perceptual none",
        "given with a distance",
    )
    require(
        args.perceptual == "lpips" or not args.perceptual_heads,
        "--perceptual-heads",
        "given without lpips",
        "given with --perceptual lpips",
    )
    inputs = ("samples", "reference", "floor", "weights", "perceptual_weights", "perceptual_heads")
    require_apart(
        {"--json": args.json, "--picture": args.picture},
        {f"--{name.replace('_', '-')}": getattr(args, name) for name in inputs},
    )
    from etils import epath

    from var_jax.evaluate.image_sets import open_images

    if args.json:
        if epath.Path(args.json).is_dir():
            raise UserError(
                f"cannot write the report {args.json!r}: it is a directory; name a file, such as "
                "report.json"
            )
        require_writable(args.json, "the report")
    if args.picture:
        require_writable(args.picture, "the picture")
    image_options = {
        "resize": args.resize or trained_on(args.model) or "crop",
        "data_dir": args.data_dir,
        "source_dir": args.source_dir,
        "seed": args.seed,
    }
    report = (
        _samples(args, image_options)
        if args.model is None
        else _reconstructions(args, image_options, open_images)
    )
    if args.json:
        atomic.save(
            epath.Path(args.json), json.dumps(report, indent=1, ensure_ascii=False), "the report"
        )
    print("\n".join(lines(report)))
    return 0


def trained_on(model: str | None) -> str | None:
    """Returns the resizing of a workdir's images; None for any other directory."""
    from var_jax.evaluate import training_images

    data = None if model is None else training_images.data_of(model)
    name = data.get("resize") if data else None
    return current_resize(name) if isinstance(name, str) else None


def _samples(args: argparse.Namespace, image_options: dict) -> dict:
    from var_jax.evaluate import features, samples
    from var_jax.evaluate.image_sets import open_images, open_labelled

    sample_images = open_images(args.samples, num=args.num, **image_options)
    reference = open_images(args.reference, shape=sample_images.shape, **image_options)
    floor = (
        open_images(args.floor, shape=sample_images.shape, **image_options) if args.floor else None
    )
    network = features.load(args.features, args.weights)
    resamples = samples.RESAMPLES if args.resamples is None else args.resamples
    training = (
        open_labelled(args.agreement, shape=sample_images.shape, **image_options)
        if args.agreement
        else None
    )
    # Before the features, which take longer: labels may be missing.
    agreement = samples.agreement(sample_images, training, reference) if training else None
    report = samples.evaluate(
        sample_images,
        reference,
        network,
        seed=args.seed,
        resamples=resamples,
        cache=args.cache,
        floor=floor,
    )
    if agreement:
        report["metrics"]["agreement"] = agreement
    return report


def _reconstructions(args: argparse.Namespace, image_options: dict, open_images) -> dict:
    from var_jax import Pipeline
    from var_jax.evaluate import features, reconstruction, training_images
    from var_jax.io import pictures
    from var_jax.pretrained import perceptual

    place = pictures.place(args.picture) if args.picture else None
    model = Pipeline.from_pretrained(args.model)
    reference = open_images(
        args.reference, shape=model.config.tokenizer.image_shape, num=args.num, **image_options
    )
    network = features.load(args.features, args.weights)
    distance = (
        None
        if args.perceptual == "none"
        else perceptual.load(
            args.perceptual or "efficientnet",
            args.perceptual_weights or "",
            args.perceptual_heads or "",
        )
    )
    report = reconstruction.evaluate(model, reference, network, distance, cache=args.cache)
    if place is not None:
        first = next(reference.read(reconstruction.PICTURED)).images
        pictures.save_png(place, reconstruction.picture(model, first))
    if seen := training_images.warning(args.model, args.reference, args.source_dir):
        report["warnings"].append(seen)
    return {"model": args.model, "seed": args.seed, **report}


def require_writable(path: str, what: str):
    """Checks that a file's directory exists or can be created, and can be written to.

    Call it before the work.

    Raises:
      UserError: the file cannot be written.
    """
    if "://" in path:
        return
    above = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if os.path.isdir(path):
        raise UserError(f"cannot write {what} {path!r}: it is a directory; name a file")
    if not os.path.isdir(above):
        raise UserError(f"cannot write {what} {path}: {above} is a file, not a directory")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {what} {path}: no permission to write in {above}")


def _counts(metric: dict) -> str:
    first, second = metric["counts"]
    return f"{first} and {second} images"


def lines(report: dict) -> list[str]:
    """Returns the report for a terminal.

    It has a line with each figure and one that says how to read it, then usage and notes.
    """
    out = []
    for metric in report["metrics"].values():
        if metric is None:
            continue
        interval = ""
        if metric["ci95"] is not None:
            low, high = metric["ci95"]
            interval = f" ({low:.5g} to {high:.5g})"
        comparison = ""
        for key, label in COMPARISONS.items():
            if other := metric.get(key):
                comparison += (
                    f" of {_counts(metric)}, {label} {other['value']:.5g} "
                    f"({other['what']}, {_counts(other)})"
                )
        if on_reference := metric.get("on_reference"):
            comparison = (
                f" of {metric['count']} images, {on_reference['value']:.5g} on the reference"
            )
        out.append(f"{metric['value']:.5g}{interval}  {metric['name']}{comparison}")
        if metric.get("reading"):
            out.append(f"    {metric['reading']}")
    if "usage" in report:
        out.append(
            "codes used by scale  "
            + " ".join(f"{row['usage']:.0%}" for row in report["usage"]["scales"])
            + f", {report['usage']['all']['usage']:.0%} over all scales"
        )
    return [*out, *(f"note: {warning}" for warning in report["warnings"])]
