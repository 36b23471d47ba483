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
  var-jax evaluate --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz \\
      --features inception --weights classify_image_graph_def.pb --json report.json
  var-jax evaluate --samples samples.npz --reference imagenet2012:validation \\
      --features dinov2:dinov2_vitl14_pretrain.pth clip:clip-vit-large-patch14-336.safetensors
  var-jax evaluate --reference imagenet2012:train --size 256 --features inception \\
      --weights classify_image_graph_def.pb --save-statistics train256.npz

A reference FILE.npz with mu and sigma (and mu_s and sigma_s, for sFID) gives the Fréchet distance
by these, and by its arr_0 only precision and recall: the protocol of published figures, named
"adm" in the report if the features are Inception's. --save-statistics writes such a file.

The Fréchet distance is called FID only when measured by Inception v3. The intervals (ci95) of a
sample set are the noise of drawing as many images again; the floor is the distance of real images
to real images, at the counts printed next to it. Reconstructions are paired with the reference, so
that their distance has neither floor nor interval: real_against_real, the distance of two disjoint
halves of the reference, is printed next to it only for comparison.
"""

import argparse
import json
import os
import re
from typing import get_args

from var_jax.cli import feature_options, models
from var_jax.cli.adapters import add_adapter_argument, with_adapters
from var_jax.cli.args import require_apart
from var_jax.config.sections import Resize, current_resize_name
from var_jax.config.strict import require
from var_jax.errors import UserError
from var_jax.evaluate.report_lines import lines
from var_jax.io import atomic


def add_arguments(parser: argparse.ArgumentParser):
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--samples", metavar="F", help="sampled images to measure")
    what.add_argument(
        "--model",
        metavar="DIR",
        help="model directory or training workdir (its averaged weights) whose reconstructions of "
        "the reference are measured",
    )
    what.add_argument(
        "--save-statistics",
        metavar="F.npz",
        help="write the mean and covariance of the reference's features, and some of its images, "
        "to this file, which --reference takes",
    )
    parser.add_argument(
        "--reference",
        required=True,
        metavar="F",
        help="real images to compare with; with --samples also FILE.npz of their statistics",
    )
    parser.add_argument(
        "--size",
        metavar="N",
        help="with --save-statistics: size of the images, 256 or HEIGHTxWIDTH, of three channels, "
        "or HEIGHTxWIDTHxCHANNELS (default: that of the first image, which all must have)",
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
    add_adapter_argument(parser)
    add_image_arguments(parser, "the reference", "crop; for a workdir, as in its training")
    feature_options.add_feature_arguments(parser, several=True)
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
        help="measure only this many of the samples, or without samples of the reference, chosen "
        "by the seed (default: all)",
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
    """Adds the options that say where images come from and how they are resized."""
    parser.add_argument(
        "--resize",
        type=current_resize_name,
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


def run(args: argparse.Namespace) -> int:
    require(args.seed >= 0, "--seed", args.seed, "0 or more")
    _require_options_of_mode(args)
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
    outputs = ("json", "picture", "save_statistics")
    require_apart(
        {_flag(name): getattr(args, name) for name in outputs},
        {_flag(name): getattr(args, name) for name in inputs} | feature_options.files(args),
    )
    from etils import epath

    if args.json:
        if epath.Path(args.json).is_dir():
            raise UserError(
                f"cannot write the report {args.json!r}: it is a directory; name a file, such as "
                "report.json"
            )
        require_writable(args.json, "the report")
    if args.picture:
        require_writable(args.picture, "the picture")
    models.fetch(args)
    image_options = {
        "resize": args.resize or trained_on(args.model) or "crop",
        "data_dir": args.data_dir,
        "source_dir": args.source_dir,
        "seed": args.seed,
    }
    if args.save_statistics is not None:
        report = _statistics(args, image_options)
    elif args.samples is not None:
        report = _samples(args, image_options)
    else:
        report = _reconstructions(args, image_options)
    report = {"command": args.command_line, **report}
    if args.json:
        atomic.save(
            epath.Path(args.json), json.dumps(report, indent=1, ensure_ascii=False), "the report"
        )
    print("\n".join(lines(report)))
    return 0


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _require_options_of_mode(args: argparse.Namespace):
    """Raises UserError for an option that the kind of evaluation has no use for."""
    options = {
        "samples": ("floor", "agreement", "resamples", "cache"),
        "model": (
            "picture",
            "perceptual",
            "perceptual_weights",
            "perceptual_heads",
            "cache",
            "adapter",
        ),
        "save_statistics": ("size",),
    }
    (mode,) = (name for name in options if getattr(args, name) is not None)
    for name in dict.fromkeys(name for names in options.values() for name in names):
        takers = [_flag(taker) for taker, names in options.items() if name in names]
        require(
            name in options[mode] or getattr(args, name) in (None, []),
            _flag(name),
            f"given with {_flag(mode)}",
            f"given with {' or '.join(takers)}",
        )


def trained_on(model: str | None) -> str | None:
    """Returns the resizing mode of the images that a workdir's run trains on; None elsewhere."""
    from var_jax.evaluate import training_overlap

    data = None if model is None else training_overlap.data_of(model)
    name = data.get("resize") if data else None
    return current_resize_name(name) if isinstance(name, str) else None


def _samples(args: argparse.Namespace, image_options: dict) -> dict:
    from var_jax.evaluate import (
        against_statistics,
        image_sets,
        reference_statistics,
        samples,
    )

    sample_images = image_sets.open_images(args.samples, num=args.num, **image_options)
    image_options["shape"] = sample_images.shape
    statistics = None
    if reference_statistics.holds_statistics(args.reference):
        statistics = reference_statistics.read(args.reference)
        reference = None
        if statistics.has_images:
            reference = image_sets.open_images_of_statistics(
                args.reference, sample_images.shape[:2]
            )
    else:
        reference = image_sets.open_images(args.reference, **image_options)
    floor = image_sets.open_images(args.floor, **image_options) if args.floor else None
    network, *further = feature_options.load_all(args)
    if statistics is not None:
        statistics.require_network(network)
    training = image_sets.open_labeled(args.agreement, **image_options) if args.agreement else None
    # Before the features, which take longer: labels may be missing.
    agreement = samples.agreement(sample_images, training, reference) if training else None
    measure_options = {
        "seed": args.seed,
        "resamples": samples.RESAMPLES if args.resamples is None else args.resamples,
        "cache": args.cache,
        "floor": floor,
        "further": further,
    }
    if statistics is not None:
        report = against_statistics.evaluate(
            sample_images, statistics, reference, network, **measure_options
        )
    else:
        assert reference is not None
        report = samples.evaluate(sample_images, reference, network, **measure_options)
    if agreement:
        report["metrics"]["agreement"] = agreement
    return report


def _statistics(args: argparse.Namespace, image_options: dict) -> dict:
    """Writes the statistics of a reference, and returns the report of it."""
    from etils import epath

    from var_jax.evaluate import image_sets, samples, statistics_writer

    require(
        args.save_statistics.endswith(".npz"),
        "--save-statistics",
        args.save_statistics,
        "a file that ends in .npz",
    )
    require_writable(args.save_statistics, "the statistics")
    shape = None if args.size is None else _read_size(args.size)
    reference = image_sets.open_images(args.reference, shape=shape, num=args.num, **image_options)
    feature_options.require_one(args, "--save-statistics")
    (network,) = feature_options.load_all(args)
    out = epath.Path(args.save_statistics).expanduser()
    report = statistics_writer.write(network, reference, out, seed=args.seed)
    few = samples.too_few_warnings(reference, network)
    return {"saved_to": args.save_statistics, "seed": args.seed, **report, "warnings": few}


def _read_size(text: str):
    """Returns the (height, width, channels) that "256", "256x192" or "256x192x1" stands for.

    Raises:
      UserError: the text is none of these.
    """
    match = re.fullmatch(r"([1-9][0-9]*)(?:x([1-9][0-9]*))?(?:x([1-9][0-9]*))?", text, re.ASCII)
    require(match, "--size", repr(text), "such as 256, 256x192 or 256x192x1")
    assert match is not None
    height, width, channels = match.groups()
    require(channels in (None, "1", "3"), "--size", repr(text), "of 1 or 3 channels")
    return int(height), int(width or height), int(channels or 3)


def _reconstructions(args: argparse.Namespace, image_options: dict) -> dict:
    from var_jax import Pipeline
    from var_jax.evaluate import image_sets, reconstruction, training_overlap
    from var_jax.io import pictures
    from var_jax.pretrained import perceptual

    place = pictures.place(args.picture) if args.picture else None
    # Adapters leave the tokenizer as it is; those of another model are refused all the same.
    model = with_adapters(Pipeline.from_pretrained(args.model), args.adapter).tokenizer_alone()
    reference = image_sets.open_images(
        args.reference, shape=model.config.tokenizer.image_shape, num=args.num, **image_options
    )
    network, *further = feature_options.load_all(args)
    distance = (
        None
        if args.perceptual == "none"
        else perceptual.load(
            args.perceptual or "efficientnet",
            args.perceptual_weights or "",
            args.perceptual_heads or "",
        )
    )
    report = reconstruction.evaluate(
        model, reference, network, distance, cache=args.cache, further=further
    )
    if place is not None:
        first = next(reference.read(reconstruction.PICTURED_IMAGES)).images
        pictures.save_png(place, reconstruction.picture(model, first))
    if seen := training_overlap.warning(args.model, args.reference, args.source_dir):
        report["warnings"].append(seen)
    adapters = {"adapters": [list(adapter) for adapter in args.adapter]} if args.adapter else {}
    if adapters:
        report["warnings"].append(
            "adapters change no reconstruction, as they leave the tokenizer as it is: to measure "
            "an adapted model, var-jax generate --adapter, and evaluate --samples"
        )
    return {
        "model": args.addresses.get("model", args.model),
        **adapters,
        "seed": args.seed,
        **report,
    }


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
