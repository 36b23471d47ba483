"""Edits images zero-shot: in-painting, out-painting, class editing, and variations.

In-painting generates the mask or box, out-painting keeps it, and a label makes either class
editing. With --keep-scales and no region, variations or finer detail of whole images are generated.

example:
  var-jax edit --model runs/quickstart --image digit.png --box 0.25,0.25,0.75,0.75 --label 3 \\
      --out edited.png
  var-jax edit --model models/d16 --image 'photos/*.jpg' --mask mask.png --keep-scales 4 \\
      --out edited/
  var-jax edit --model models/d16 --image cat.png --keep-scales 4 --label 281 --seed 7 \\
      --out another_cat.png
  var-jax edit --model models/d16 --image enlarged.png --resize stretch --keep-scales 8 \\
      --out finer.png

A mask is black and white of any format and depth, or white (or one color) painted on a transparent
page, or the image itself with a transparent hole; one that could mean two things is refused. A mask
as large as its image goes through the same --resize; one of another size is stretched over the
model's view. Images are turned upright by their EXIF orientation, and composited on white where
they are transparent. Kept pixels are put back as they were (--no-composite shows the tokenizer's
reconstruction there, as published).
"""

import argparse
import logging
import os
from pathlib import PurePath
from typing import get_args

import numpy as np
from etils import epath

from var_jax.cli import models
from var_jax.cli.adapters import (
    add_adapter_argument,
    read_class_names,
    warn_of_learned_guidance,
)
from var_jax.cli.args import require_apart
from var_jax.cli.images import box_mask, expand, parse_box, read_image, read_mask
from var_jax.cli.sample import (
    add_dtype_argument,
    add_refiner_argument,
    add_sampling_arguments,
    load,
    sampling_arguments,
)
from var_jax.config.sections import Resize, current_resize_name
from var_jax.config.strict import require
from var_jax.errors import UserError
from var_jax.sampling import labels as class_labels

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="model directory or training workdir"
    )
    parser.add_argument(
        "--image", required=True, nargs="+", metavar="F", help="image files or globs"
    )
    region = parser.add_mutually_exclusive_group()
    region.add_argument(
        "--mask",
        metavar="F",
        help="picture that is white where new content goes and black elsewhere",
    )
    region.add_argument(
        "--box",
        metavar="y0,x0,y1,x1",
        help="rectangle that gets new content, as fractions of height and width: 0.5,0,1,1 is the "
        "lower half",
    )
    parser.add_argument(
        "--outpaint", action="store_true", help="keep the region and generate everything else"
    )
    parser.add_argument(
        "--keep-scales",
        "--from-scale",
        type=int,
        metavar="K",
        help="number of leading scales that are the image's own everywhere; the more, the closer "
        "new content is to the image (default with a region: the scales of at most 3 tokens). "
        "Without a region, the finer scales are generated: with few scales kept a variation, with "
        "nearly all other fine detail",
    )
    parser.add_argument(
        "--composite",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="put kept pixels back exactly as they were (default)",
    )
    parser.add_argument(
        "--label", help="class of the new content, by name or id as in `sample` (default: no class)"
    )
    parser.add_argument(
        "--resize",
        type=current_resize_name,
        choices=get_args(Resize),
        default="crop",
        help="how an image that is not of the model's size is brought to it (default crop)",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="F.png",
        help="the edited image; for several images or a glob, a directory that gets a PNG of each "
        "image's name",
    )
    add_adapter_argument(parser)
    add_refiner_argument(parser)
    add_dtype_argument(parser)
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from var_jax.io import pictures

    box = None if args.box is None else parse_box(args.box)
    has_region = box is not None or args.mask is not None
    if not has_region and args.keep_scales is None:
        raise UserError("one of --mask, --box and --keep-scales is required")
    if not has_region and args.outpaint:
        raise UserError("--outpaint needs a region: give --mask or --box")
    files = _files(args.image)
    targets = _places(args.out, args.image, files)
    read = {f"--image {file}": file for file in files} | {"--mask": args.mask}
    for target in targets:
        require_apart({"--out": target}, read)
    places = [pictures.place(target) for target in targets]
    models.fetch(args)
    names = read_class_names(args.model, args.adapter)
    label = None if args.label is None else class_labels.parse_one(args.label, names)
    model = load(args.model, args.dtype, args.adapter, args.refiner)
    warn_of_learned_guidance(args.adapter, args.cfg)
    tokenizer = model.config.tokenizer
    images = np.stack([read_image(file, tokenizer, args.resize) for file in files])
    labels = None if label is None else [label] * len(files)
    if not has_region:
        edited = model.vary(
            images, labels, keep_scales=args.keep_scales, **sampling_arguments(args)
        )
    else:
        if box is not None:
            masks = [box_mask(box, tokenizer.scales.finest)] * len(files)
        else:
            masks = [read_mask(str(args.mask), file, tokenizer, args.resize) for file in files]
        regions = np.stack(masks)
        keep = regions if args.outpaint else ~regions
        for image_keep in model.kept_tokens(keep):
            _check(image_keep, args)
        edited = model.edit(
            images,
            keep,
            labels,
            keep_scales=args.keep_scales,
            composite=args.composite,
            **sampling_arguments(args),
        )
    for place, one in zip(places, edited, strict=True):
        pictures.save_png(place, pictures.image(one))
    print(
        f"edited image in {args.out}"
        if len(files) == 1
        else f"{len(files)} edited images in {args.out}"
    )
    if label is not None:
        classes = model.config.transformer.num_classes
        for warning in class_labels.warnings(
            str(args.label), [label], names, num_classes=classes, option="--label"
        ):
            log.warning("%s", warning)
        description = class_labels.describe([label], names, classes)
        if description:
            print(f"class: {description}")
    return 0


def _files(patterns: list[str]) -> list[str]:
    """Returns the image files of names and globs.

    A name without wildcards may be in a bucket; a missing file is reported when it is read.
    """
    files = []
    for pattern in patterns:
        files.extend(expand(pattern) if _has_wildcards(pattern) else [pattern])
    return files


def _has_wildcards(pattern: str) -> bool:
    return bool(set(pattern) & set("*?[")) and not os.path.exists(pattern)


def _places(out: str, patterns: list[str], files: list[str]) -> list[str]:
    """Returns the output path of each image.

    Whether `out` is a directory does not depend on the number of files that a glob matches.

    Raises:
      UserError: two images would be written to one file, or an image would be overwritten.
    """
    globbed = any(_has_wildcards(pattern) for pattern in patterns)
    if (
        len(files) == 1
        and not globbed
        and (not out or not out.endswith("/") and not epath.Path(out).is_dir())
    ):
        return [out]
    if len(files) > 1 or globbed:
        why = f"there are {len(files)} images" if len(files) > 1 else "--image has wildcards"
        require(PurePath(out).suffix != ".png", "--out", out, f"a directory, as {why}")
    names = [f"{PurePath(file).stem}.png" for file in files]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"--image: two images would be written to {out}/{name}; edit them one at a time"
            )
    places = [os.path.join(out, name) for name in names]
    for place in places:
        if any(_same(place, file) for file in files):
            raise UserError(f"--out {out}: {place} is an image to edit; give another directory")
    return places


def _same(a: str, b: str) -> bool:
    return os.path.exists(a) and os.path.exists(b) and os.path.samefile(a, b)


def _check(keep: np.ndarray, args: argparse.Namespace):
    """Raises UserError for a mask with nothing to generate or, with --outpaint, nothing to keep."""
    option = f"--box {args.box!r}" if args.box else f"--mask {args.mask}"
    keeps_some = bool(keep.any())
    keeps_all = bool(keep.all())
    h, w = keep.shape
    token = f"one token of the {h}x{w} grid, 1/{h} of the height by 1/{w} of the width"
    if args.outpaint:
        require(
            keeps_some, option, "less than a token, so that nothing is kept", f"at least {token}"
        )
        require(not keeps_all, option, "the whole image, so that nothing is generated", "smaller")
    require(
        not keeps_all,
        option,
        "less than a token, so that nothing is generated",
        f"at least {token}",
    )
