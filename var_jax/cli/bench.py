"""Measures the time of sampling or of a training step, and compares it with the roofline.

With `tokens` it compares training from a token cache with training from images; the split is
encoded first, so give a short one.

Sampling is also compared with the time that moving its weights, keys and values would take, and
split into transformer, sampling and decoder.

example:
  var-jax bench sample --config configs/imagenet256.py:d16 --batch 1,8,64
  var-jax bench train --config configs/digits.py --batch 64 --json bench.json
  var-jax bench tokens --config configs/digits.py --config.data.train_split=train[:64]
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from var_jax.cli import long_work
from var_jax.cli.args import add_config_argument, read_sized_config
from var_jax.cli.evaluate import require_writable
from var_jax.config.strict import require
from var_jax.config.train import TrainConfig
from var_jax.io import atomic


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "what",
        choices=("sample", "train", "tokens"),
        help="sample: generation; train: a training step; tokens: training from tokens and from "
        "images",
    )
    add_config_argument(parser)
    parser.add_argument(
        "--batch",
        metavar="N[,N...]",
        help="images per batch (default: 1 for sample, else the config's); several only for "
        "`sample`",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        help="number of measurements, whose median is reported (default 5)",
    )
    parser.add_argument("--json", metavar="F", help="also write the figures to this file")


def run(args: argparse.Namespace) -> int:
    batches = _batches(args.batch) if args.batch else [None]
    require(
        len(batches) == 1 or args.what == "sample",
        "--batch",
        args.batch,
        f"one number for {args.what}",
    )
    require(args.repeats >= 1, "--repeats", args.repeats, "at least 1")
    if args.json:
        require_writable(args.json, "the figures")
    config = read_sized_config(args.config, args.overrides)
    with long_work.reported(
        f"compiling and measuring {args.what} of {args.config}, which takes minutes for a large "
        "model"
    ):
        report, lines = _measure(args, config, batches)
    print("\n".join(lines))
    if args.json:
        atomic.save(Path(args.json), json.dumps(report, indent=1), "the figures")
    return 0


def _measure(
    args: argparse.Namespace, config: TrainConfig, batches: Sequence[int | None]
) -> tuple[dict, list[str]]:
    """Returns the figures, and their lines for a terminal."""
    from var_jax.perf import bench

    if args.what == "tokens":
        report = bench.tokens(config, batches[0], args.repeats)
        lines = bench.token_lines(report)
    elif args.what == "sample":
        reports = [bench.sample(config, batch or 1, args.repeats) for batch in batches]
        report = {"what": "sample", "batches": reports} if len(reports) > 1 else reports[0]
        lines = bench.table(reports) if len(reports) > 1 else bench.lines(report)
    else:
        report = bench.train(config, batches[0], args.repeats)
        lines = bench.lines(report)
    return report, lines


def _batches(text: str) -> list[int]:
    parts = text.split(",")
    right = all(part.strip().isdecimal() and int(part) >= 1 for part in parts)
    require(right, "--batch", text, "a whole number of at least 1, or several such as 1,8,64")
    return [int(part) for part in parts]
