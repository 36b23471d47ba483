"""Merges two models of one configuration: A + W (B - A) of all their weights.

Between 0 and 1 the result lies between the base A and the tuned model B, above 1 it goes beyond B,
and below 0 it goes away from B, which subtracts what B has learned. With W 0 it is A and with W 1
it is B, each to the last bit; for any other W it is computed in float32.

B may be a tokenizer alone whose decoder was tuned, with the encoder and the codes of A's. The
decoders merge, and the transformer is A's.

example:
  var-jax merge --base models/d16 --tuned runs/d16_tuned --weight 0.5 --out models/d16_half
  var-jax merge --base models/d16 --tuned runs/aligned --weight 1 --out models/d16_aligned
"""

import argparse

import numpy as np

from var_jax.cli import models
from var_jax.cli.args import require_apart
from var_jax.config.strict import require


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--base", required=True, metavar="A", help="model directory or training workdir"
    )
    parser.add_argument(
        "--tuned",
        required=True,
        metavar="B",
        help="another of the same configuration and classes, such as one tuned from A, or a "
        "tokenizer whose decoder was tuned",
    )
    parser.add_argument(
        "--weight", required=True, type=float, metavar="W", help="any number, such as 0.5 or -0.5"
    )
    parser.add_argument("--out", required=True, metavar="C", help="directory of the new model")


def run(args: argparse.Namespace) -> int:
    require(
        abs(args.weight) <= float(np.finfo(np.float32).max),  # it multiplies float32 numbers
        "--weight",
        args.weight,
        "a finite number, and no larger than float32's, 3.4e38",
    )
    require_apart({"--out": args.out}, {"--base": args.base, "--tuned": args.tuned})

    from var_jax.io import model_merge

    models.fetch(args)
    model_merge.merge_directories(args.base, args.tuned, args.weight, args.out)
    print(f"written to {args.out}")
    return 0
