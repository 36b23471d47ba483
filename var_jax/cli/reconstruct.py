"""Shows originals next to their reconstructions from the first scale, the first two, ... and all.

example:
  var-jax reconstruct --model runs/quickstart --images 'photos/*.jpg' --out reconstructions.png
"""

import argparse
from typing import get_args

from var_jax.cli import models
from var_jax.cli.args import require_apart
from var_jax.cli.images import expand, read_image
from var_jax.config.sections import Resize, current_resize_name


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="model directory or training workdir"
    )
    parser.add_argument("--images", required=True, metavar="GLOB", help="image files")
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
        help="one row per image: the original, then its reconstruction from ever more scales",
    )


def run(args: argparse.Namespace) -> int:
    import numpy as np

    from var_jax import Pipeline
    from var_jax.io import pictures

    place = pictures.place(args.out)
    files = expand(args.images)
    require_apart({"--out": args.out}, {f"--images {file}": file for file in files})
    models.fetch(args)
    model = Pipeline.from_pretrained(args.model)
    images = np.stack([read_image(file, model.config.tokenizer, args.resize) for file in files])
    by_scale = model.reconstruct(images)
    scales = model.config.tokenizer.scales
    pictures.save_png(place, pictures.reconstruction_strip((images + 1) / 2, by_scale, scales))
    error = np.mean((by_scale[-1] - images) ** 2, axis=(1, 2, 3)) / 4
    psnr = np.mean(-10 * np.log10(np.maximum(error, 1e-10)))
    print(f"{len(files)} images in {args.out}; PSNR {psnr:.2f} dB")
    return 0
