"""Draws samples at several weights of an adapter with a new class, and away from classes.

  python launch/adapters_pictures.py --model runs/adapters_study/base \\
      --adapter runs/adapters_study/lora_0.256_0 --labels bag,Dress,Sneaker \\
      --away Dress=bag,Sneaker=bag --cfg 3 --out docs/results/adapters

`weights.png` has a block of each class, with a column for each weight and the same seeds in a row.
`negative.png` has a block of each pair in --away: the first class, the same seeds away from the
second, and the second.
"""

import argparse
from pathlib import Path

import numpy as np
from etils import epath
from PIL import Image

from var_jax import Pipeline
from var_jax.io import pictures

WEIGHTS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
ROWS = 8  # seeds


def by_weight(base: Pipeline, adapter: Path, labels: list[str]) -> Image.Image:
    """Returns the samples of each class at each weight."""
    models = [base.with_adapter(adapter, weight) for weight in WEIGHTS]
    titles = [f"{weight:g}" for weight in WEIGHTS]
    blocks = []
    for label in labels:
        columns = [model.sample([label] * ROWS) for model in models]
        blocks.append(pictures.strip(list(np.stack(columns, axis=1)), titles))
    return pictures.titled_blocks(blocks, [f"{label} by weight" for label in labels], len(blocks))


def by_negative_label(model: Pipeline, pairs: list[list[str]], cfg: float) -> Image.Image:
    """Returns the samples of each pair's first class, without and with the second as negative."""
    blocks = []
    for label, away in pairs:
        columns = [
            model.sample([label] * ROWS, cfg=cfg),
            model.sample([label] * ROWS, cfg=cfg, negative_labels=away),
            model.sample([away] * ROWS, cfg=cfg),
        ]
        rows = list(np.stack(columns, axis=1))
        blocks.append(pictures.strip(rows, ["without", "away", away]))
    titles = [f"{label}, away from {away}" for label, away in pairs]
    return pictures.titled_blocks(blocks, titles, len(blocks))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="model directory or workdir")
    parser.add_argument("--adapter", required=True, type=Path, help="workdir of the adapter's run")
    parser.add_argument("--labels", required=True, metavar="A,B", help="names of classes")
    parser.add_argument("--away", required=True, metavar="A=B,C=D", help="pairs of names")
    parser.add_argument("--cfg", type=float, default=1.5, help="with --away (%(default)s)")
    parser.add_argument("--out", required=True, type=epath.Path, help="directory of the pictures")
    args = parser.parse_args()
    base = Pipeline.from_pretrained(args.model)
    pictures.save_png(
        args.out / "weights.png", by_weight(base, args.adapter, args.labels.split(","))
    )
    pairs = [pair.split("=") for pair in args.away.split(",")]
    pictures.save_png(
        args.out / "negative.png",
        by_negative_label(base.with_adapter(args.adapter), pairs, args.cfg),
    )


if __name__ == "__main__":
    main()
