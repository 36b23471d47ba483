"""Zero-shot in-painting (the mask or box is generated), out-painting (it is kept) and, with a label, class editing.

example:
  var-jax edit --model runs/quickstart --image digit.png --box 0.25,0.25,0.75,0.75 --label 3 --out edited.png
"""

import argparse

import numpy as np

from var_jax.cli.images import box_mask, parse_box, read_image, read_mask
from var_jax.cli.sample import add_sampling_arguments, sampling_arguments
from var_jax.config import require


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory or training workdir")
    parser.add_argument("--image", required=True, metavar="F")
    region = parser.add_mutually_exclusive_group(required=True)
    region.add_argument("--mask", metavar="F", help="picture that is white where new content goes")
    region.add_argument("--box", metavar="y0,x0,y1,x1", help="the same as fractions of height and width")
    parser.add_argument("--outpaint", action="store_true", help="keep the region and generate the rest")
    parser.add_argument("--label", type=int, help="class of the new content (default: no class)")
    parser.add_argument("--resize", choices=("crop", "whole", "pad"), default="crop",
                        help="how the image is brought to the model's size (default crop)")
    parser.add_argument("--out", required=True, metavar="F.png")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from var_jax import Pipeline, pictures

    place = pictures.place(args.out)
    box = parse_box(args.box) if args.box else None
    model = Pipeline.from_pretrained(args.model)
    tokenizer = model.config.tokenizer
    image = read_image(args.image, tokenizer, args.resize)
    region = box_mask(box, tokenizer.scales.finest) if box else read_mask(args.mask, tokenizer.image_shape[:2])
    keep = model.kept_tokens(region if args.outpaint else ~region)
    _check(keep, args)
    edited = model.edit(image[None], keep, None if args.label is None else [args.label],
                        **sampling_arguments(args))
    pictures.save_png(place, pictures.grid(edited, columns=1, scale=1))
    print(f"edited image in {args.out}")
    return 0


def _check(keep: np.ndarray, args: argparse.Namespace):
    """Holds that an edit both generates something and, where a region is to be kept, keeps something."""
    given = f"--box {args.box!r}" if args.box else f"--mask {args.mask}"
    some, everything, (h, w) = bool(keep.any()), bool(keep.all()), keep.shape
    token = f"one token of the {h}x{w} grid, 1/{h} of the height by 1/{w} of the width"
    if args.outpaint:
        require(some, given, "less than a token, so that nothing is kept", f"at least {token}")
        require(not everything, given, "the whole image, so that nothing is generated", "smaller")
    require(not everything, given, "less than a token, so that nothing is generated", f"at least {token}")
