"""Samples a labelled grid of images, one class a column.

example:
  var-jax sample --model runs/quickstart --labels 0-9 --num 100 --out samples.png
"""

import argparse

from var_jax.cli.images import MOST, parse_labels


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory or training workdir")
    parser.add_argument("--labels", required=True, help="class ids, such as 0,1,2 or 0-9")
    parser.add_argument("--num", type=int, default=0, help="images, labels repeated in turn (default: one a label)")
    parser.add_argument("--out", required=True, metavar="F.png")
    add_sampling_arguments(parser)


def add_sampling_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cfg", type=float, default=1.5, help="guidance at the last scale, 0 for none (default 1.5)")
    parser.add_argument("--top-k", type=int, default=900, help="0 for off (default 900)")
    parser.add_argument("--top-p", type=float, default=0.96, help="0 for off (default 0.96)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--smooth", action="store_true", help="mix code vectors: prettier, not for measuring")


def sampling_arguments(args: argparse.Namespace) -> dict:
    return {name: getattr(args, name) for name in ("seed", "cfg", "top_k", "top_p", "temperature", "smooth")}


def run(args: argparse.Namespace) -> int:
    from var_jax import Pipeline, pictures
    from var_jax.config import require

    place = pictures.place(args.out)
    require(0 <= args.num <= MOST, "--num", args.num, f"from 0 to {MOST}")
    labels = parse_labels(args.labels)
    model = Pipeline.from_pretrained(args.model)
    every = [labels[i % len(labels)] for i in range(args.num or len(labels))]
    images = model.sample(every, **sampling_arguments(args))
    columns = min(len(labels), len(every))
    pictures.save_png(place, pictures.grid(images, columns=columns, titles=[str(x) for x in every[:columns]]))
    print(f"{len(images)} images in {args.out}")
    return 0
