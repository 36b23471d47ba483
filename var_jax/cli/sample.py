"""Samples a grid of images: one class per column, titled with the class name.

example:
  var-jax sample --model runs/quickstart --labels 0-9 --num 100 --out samples.png
  var-jax sample --model models/d30 --labels 207,250 --preset pretty --strip scales.png \\
      --gif scales.gif --out dogs.png
  var-jax sample --model models/d30 --then models/d16 --keep-scales 7 --labels 0-9 \\
      --dtype bfloat16 --out fast.png
  var-jax sample --model models/d16 --adapter runs/mug=0.8 --labels mug --num 8 --out mugs.png
  var-jax sample --model models/d16 --refiner runs/refiner --labels 207 --out refined.png
  var-jax sample --model models/d16 --labels 207 --cfg 0,0,1,1,2,2,3,3,0,0 \\
      --temperature 1.2:0.9 --out schedules.png
"""

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from var_jax.cli import models
from var_jax.cli.adapters import (
    WeightedAdapter,
    add_adapter_argument,
    read_class_names,
    warn_of_learned_guidance,
    with_adapters,
)
from var_jax.cli.args import require_apart
from var_jax.config.strict import require
from var_jax.sampling import labels as class_labels
from var_jax.sampling import settings

if TYPE_CHECKING:
    from var_jax import Pipeline

log = logging.getLogger(__name__)

SCHEDULES = """Of a model of next-scale prediction, cfg, top-k, top-p and temperature each take
  NUMBER      the same at every scale; for cfg the value at the last scale, to which guidance rises
              linearly from 0 at the first scale, as published
  FIRST:LAST  a linear ramp over the scales; --cfg 2:2 is guidance of 2 at every scale
  A,B,C,...   one number per scale, coarse to fine"""


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="model directory or training workdir"
    )
    parser.add_argument("--labels", required=True, help=class_labels.HELP)
    parser.add_argument(
        "--num",
        type=int,
        default=0,
        help="number of images; labels repeat in order (default: one image per label)",
    )
    parser.add_argument(
        "--out", required=True, metavar="F.png", help="the grid, one class per column"
    )
    parser.add_argument(
        "--strip",
        metavar="F.png",
        help="also save every image after each scale, one row per image; best with a small --num",
    )
    parser.add_argument(
        "--gif", metavar="F.gif", help="also save an animation of the grid, scale by scale"
    )
    add_adapter_argument(parser)
    add_refiner_argument(parser)
    add_partner_arguments(parser)
    add_dtype_argument(parser)
    add_sampling_arguments(parser)


def add_refiner_argument(parser: argparse.ArgumentParser):
    """Adds the option of a logit refiner."""
    parser.add_argument(
        "--refiner",
        metavar="DIR",
        help="a logit refiner of the model, which samples the tokens of a scale one after the "
        "other: better images in more time",
    )


def add_partner_arguments(parser: argparse.ArgumentParser):
    """Adds the options of a second model that samples the last scales."""
    parser.add_argument(
        "--then",
        metavar="DIR",
        help="a smaller model with the same tokenizer, which samples the last scales: they have "
        "the most tokens, and a small model is good enough for them",
    )
    parser.add_argument(
        "--keep-scales",
        "--from-scale",
        type=int,
        metavar="K",
        help="number of leading scales that --model samples before --then continues",
    )


def check_partner_arguments(args: argparse.Namespace):
    """Raises UserError if only one of --then and --keep-scales is given."""
    require(
        (args.then is None) == (args.keep_scales is None),
        "--keep-scales",
        args.keep_scales,
        "given together with --then",
    )


def add_dtype_argument(parser: argparse.ArgumentParser):
    """Adds the option for the dtype that models compute in."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "int8"),
        help="type that the models compute in (default: as in their configs); int8: bfloat16, with "
        "the transformer's weight matrices in int8",
    )


def add_sampling_arguments(parser: argparse.ArgumentParser):
    """Adds the options of the sampling settings, which several commands share."""
    group = parser.add_argument_group("sampling", SCHEDULES)
    described = "; ".join(
        f"{name}: {', '.join(f'{k} {v}' for k, v in preset.items() if v is not False)}"
        for name, preset in settings.PRESETS.items()
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the random draws; the same seed gives the same images (default 0)",
    )
    group.add_argument(
        "--preset",
        choices=tuple(settings.PRESETS),
        default="fid",
        help=f"defaults for the options below (default fid; {described})",
    )
    group.add_argument(
        "--cfg",
        type=_schedule(float),
        metavar="SCHEDULE",
        help="classifier-free guidance; 0 for none",
    )
    group.add_argument(
        "--top-k",
        type=_schedule(int),
        metavar="SCHEDULE",
        help="sample only from this many of the likeliest codes; 0 for all",
    )
    group.add_argument(
        "--top-p",
        type=_schedule(float),
        metavar="SCHEDULE",
        help="sample only from the likeliest codes, of those that top-k leaves, that together hold "
        "this probability; 0 or 1 for all",
    )
    group.add_argument(
        "--temperature",
        type=_schedule(float),
        metavar="SCHEDULE",
        help="divisor of the logits: below 1 for likelier codes, above 1 for more varied ones",
    )
    group.add_argument(
        "--negative-labels",
        metavar="L",
        help='classes that guidance leads away from, in place of "no class": 3, or several with '
        "weights, 3=2,5=1",
    )
    group.add_argument(
        "--ssg",
        type=_schedule(float),
        metavar="SCHEDULE",
        help="scaled spatial guidance: move away from what the previous scale alone would predict, "
        "which sharpens details without a further pass; 0 for none",
    )
    group.add_argument(
        "--smooth",
        action=argparse.BooleanOptionalAction,
        help="mix the code vectors by their probabilities: smoother images, not for computing FID",
    )
    group.add_argument(
        "--steps", type=int, metavar="N", help="passes of a model of masked prediction or diffusion"
    )
    group.add_argument(
        "--noise",
        type=float,
        metavar="X",
        help="factor on the noise in a masked model's choice of the tokens that it keeps; it falls "
        "to 0 at the last pass",
    )
    group.add_argument(
        "--solver", metavar="NAME", help="how a diffusion model goes from noise to images"
    )


def sampling_arguments(args: argparse.Namespace) -> dict:
    """Returns the sampling arguments of `Pipeline.sample`.

    They are the seed, the preset, the negative labels, and the command line's overrides.

    Raises:
      UserError: there is no such model, or it has none of the negative labels.
    """
    overrides = {}
    for name in settings.Settings.__annotations__:
        value = getattr(args, name)
        if value is not None:
            overrides[name] = value
    if args.negative_labels is not None:
        names = read_class_names(args.model, args.adapter)
        overrides["negative_labels"] = class_labels.parse_weighted(args.negative_labels, names)
    return {"seed": args.seed, "preset": args.preset, **overrides}


def read_labels(args: argparse.Namespace) -> list[int]:
    """Returns the class ids of `--labels`, by the class names of the model with its adapters.

    Raises:
      UserError: there is no model, or it has no such class.
    """
    return class_labels.parse(args.labels, read_class_names(args.model, args.adapter))


def load(
    directory: str,
    dtype: str | None,
    adapters: Sequence[WeightedAdapter] = (),
    refiner: str | None = None,
) -> "Pipeline":
    """Returns a model on all devices of this machine, in `dtype` (None: the config's dtype).

    Raises:
      UserError: there is no such model, or an adapter or the refiner is not of it.
    """
    import jax

    from var_jax import Pipeline

    model = with_adapters(Pipeline.from_pretrained(directory), adapters)
    if refiner is not None:
        own, model = model, model.with_refiner(refiner)
        log.info("%s", _cost(own, model))
    model = model.astype(dtype) if dtype else model
    return model.spread() if jax.local_device_count() > 1 else model


def _cost(own: "Pipeline", refined: "Pipeline") -> str:
    """Returns what a refiner adds to the model's own passes and FLOPs, in one line."""
    from var_jax.sampling import sampler_registry

    passes, work = [], []
    for model in (own, refined):
        sampler = sampler_registry.find(model.config)
        prepared = sampler.benchmark_settings(model.config, 0.0)
        passes.append(sampler.sequential_passes(model.config, prepared))
        work.append(sampler.generation_flops(model.config, prepared))
    return (
        f"the refiner adds {passes[1] - passes[0]} passes to the model's {passes[0]} per image, "
        f"and {work[1] / work[0] - 1:.0%} to its FLOPs"
    )


def load_partners(args: argparse.Namespace) -> tuple:
    """Returns the model and the one that continues from it (None without --then)."""
    model = load(args.model, args.dtype, args.adapter, args.refiner)
    warn_of_learned_guidance(args.adapter, args.cfg)
    return model, None if args.then is None else load(args.then, args.dtype)


def run(args: argparse.Namespace) -> int:
    from var_jax.io import pictures

    # Outputs and labels are checked before the model is loaded.
    require_apart({"--out": args.out, "--strip": args.strip, "--gif": args.gif})
    out_path = pictures.place(args.out)
    strip_path = None if args.strip is None else pictures.place(args.strip)
    gif_path = None if args.gif is None else pictures.place(args.gif)
    max_images = class_labels.MAX_LABELS
    require(0 <= args.num <= max_images, "--num", args.num, f"from 0 to {max_images}")
    check_partner_arguments(args)
    models.fetch(args)
    labels = read_labels(args)

    model, then = load_partners(args)
    for flag, value in (("--strip", args.strip), ("--gif", args.gif)):
        if value:
            model.require_by_scale(flag, value)
    image_labels = [labels[i % len(labels)] for i in range(args.num or len(labels))]
    return_steps = bool(strip_path or gif_path)
    sampled = model.sample(
        image_labels,
        return_steps=return_steps,
        as_uint8=True,
        then=then,
        keep_scales=args.keep_scales,
        **sampling_arguments(args),
    )
    images, steps = sampled if return_steps else (sampled, None)

    columns = min(len(labels), len(image_labels))
    names, classes = model.class_names, model.config.transformer.num_classes
    titles = []
    for label in image_labels:
        title = class_labels.title(label, names, classes)
        titles.append(pictures.title(title, str(label)))
    for warning in class_labels.warnings(args.labels, labels, names, num_classes=classes):
        log.warning("%s", warning)

    def grid(images):
        return pictures.grid(images, columns=columns, titles=titles[:columns])

    pictures.save_png(out_path, grid(images))
    if strip_path:
        scales = pictures.scale_titles(model.config.tokenizer.scales)
        picture = pictures.strip(list(steps), column_titles=scales, row_titles=titles)
        pictures.save_png(strip_path, picture)
    if gif_path:
        pictures.save_gif(gif_path, [grid(steps[:, k]) for k in range(steps.shape[1])])
    paths = ", ".join(str(path) for path in (args.out, args.strip, args.gif) if path)
    print(f"{len(images)} images in {paths}")
    description = class_labels.describe(image_labels, names, classes)
    if description:
        print(f"classes: {description}")
    return 0


def _schedule(kind: type):
    def parse(text: str) -> settings.Schedule:
        try:
            return settings.parse(text, kind)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse
