"""Samples a grid of images, one class per column, titled with its name.

example:
  var-jax sample --model runs/quickstart --labels 0-9 --num 100 --out samples.png
  var-jax sample --model models/d30 --labels 207,250 --preset pretty --strip scales.png --gif scales.gif --out dogs.png
  var-jax sample --model models/d30 --then models/d16 --from-scale 7 --labels 0-9 --dtype bfloat16 --out fast.png
  var-jax sample --model models/d16 --labels 207 --cfg 0,0,1,1,2,2,3,3,0,0 --temperature 1.2:0.9 --out schedules.png
"""

import argparse
import logging

from var_jax.cli.args import require_apart
from var_jax.config.strict import require
from var_jax.sampling import labels as class_labels
from var_jax.sampling import settings

log = logging.getLogger(__name__)

SCHEDULES = """cfg, top-k, top-p and temperature each take
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
        help="number of images; the labels are repeated in turn (default: one image per label)",
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
    add_partner_arguments(parser)
    add_dtype_argument(parser)
    add_sampling_arguments(parser)


def add_partner_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--then",
        metavar="DIR",
        help="a smaller model of the same tokenizer that draws the last "
        "scales, which have the most tokens and need the least",
    )
    parser.add_argument(
        "--from-scale",
        type=int,
        metavar="K",
        help="the first scale that --then draws, counted from 0",
    )


def check_partner_arguments(args: argparse.Namespace):
    require(
        (args.then is None) == (args.from_scale is None),
        "--from-scale",
        args.from_scale,
        "given together with --then",
    )


def add_dtype_argument(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="type that the models compute in (default: as in their configs)",
    )


def add_sampling_arguments(parser: argparse.ArgumentParser):
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
        help=f"values of the options below where they are not given (default fid; {described})",
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
        help="sample from this many of the likeliest codes only; 0 for all",
    )
    group.add_argument(
        "--top-p",
        type=_schedule(float),
        metavar="SCHEDULE",
        help="sample from the likeliest codes that hold this share of the probability only; 0 for "
        "all",
    )
    group.add_argument(
        "--temperature",
        type=_schedule(float),
        metavar="SCHEDULE",
        help="divisor of the logits: below 1 for likelier codes, above 1 for more varied ones",
    )
    group.add_argument(
        "--smooth",
        action=argparse.BooleanOptionalAction,
        help="mix the code vectors by their probabilities: smoother images, not for measuring",
    )


def sampling_arguments(args: argparse.Namespace) -> dict:
    given = {
        name: getattr(args, name) for name in ("cfg", "top_k", "top_p", "temperature", "smooth")
    }
    explicit = {name: value for name, value in given.items() if value is not None}
    return {"seed": args.seed, **settings.settings(args.preset, explicit)}


def read_labels(text: str, model: str) -> list[int]:
    """The class ids that `--labels` means, by the names that a model directory carries.

    Raises:
      UserError: there is no model, or it has no such class.
    """
    from var_jax.io import model_directory

    return class_labels.parse(text, model_directory.class_names(model_directory.existing(model)))


def load(directory: str, dtype: str | None):
    """The model, computing in the given dtype, on all devices of this machine."""
    import jax

    from var_jax import Pipeline

    model = Pipeline.from_pretrained(directory)
    model = model.astype(dtype) if dtype else model
    return model.spread() if jax.local_device_count() > 1 else model


def load_partners(args: argparse.Namespace) -> tuple:
    """The model, and the one that goes on from it (None without --then), both computing in the
    dtype asked for."""
    return load(args.model, args.dtype), None if args.then is None else load(args.then, args.dtype)


def run(args: argparse.Namespace) -> int:
    from var_jax.io import pictures

    require_apart({"--out": args.out, "--strip": args.strip, "--gif": args.gif})
    place = pictures.place(args.out)
    strip, gif = (None if path is None else pictures.place(path) for path in (args.strip, args.gif))
    require(0 <= args.num <= class_labels.MOST, "--num", args.num, f"from 0 to {class_labels.MOST}")
    check_partner_arguments(args)
    labels = read_labels(args.labels, args.model)
    model, then = load_partners(args)
    every = [labels[i % len(labels)] for i in range(args.num or len(labels))]
    wants_steps = bool(strip or gif)
    found = model.sample(
        every,
        return_steps=wants_steps,
        as_uint8=True,
        then=then,
        from_scale=args.from_scale,
        **sampling_arguments(args),
    )
    images, steps = found if wants_steps else (found, None)
    columns = min(len(labels), len(every))
    names, classes = model.class_names, model.config.transformer.num_classes
    every_title = [pictures.title(class_labels.title(x, names, classes), str(x)) for x in every]
    titles = every_title[:columns]
    for remark in class_labels.remarks(args.labels, labels, names, classes):
        log.warning("%s", remark)

    def grid(images):
        return pictures.grid(images, columns=columns, titles=titles)

    pictures.save_png(place, grid(images))
    if strip:
        scales = [f"{h}x{w}" for h, w in model.config.tokenizer.scales.sizes]
        pictures.save_png(
            strip, pictures.strip(list(steps), column_titles=scales, row_titles=every_title)
        )
    if gif:
        pictures.save_gif(gif, [grid(steps[:, k]) for k in range(steps.shape[1])])
    print(
        f"{len(images)} images in {', '.join(str(path) for path in (args.out, args.strip, args.gif) if path)}"
    )
    if described := class_labels.described(every, names, classes):
        print(f"classes: {described}")
    return 0


def _schedule(kind: type):
    def parse(text: str) -> settings.Schedule:
        try:
            return settings.parse(text, kind)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse
