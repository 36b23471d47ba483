"""Time of sampling or of a training step, beside the time that its FLOPs alone would take on this machine; or, with
`tokens`, of training from a token cache beside training from images (the split is encoded first: give a short one).

example:
  var-jax bench sample --config configs/imagenet256.py:d16
  var-jax bench train --config configs/digits.py --batch 64 --json bench.json
  var-jax bench tokens --config configs/digits.py --config.data.train_split=train[:64]
"""

import argparse
import json
from pathlib import Path

from var_jax.cli.configs import add_config_argument, read_config
from var_jax.config import require


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("what", choices=("sample", "train", "tokens"))
    add_config_argument(parser)
    parser.add_argument("--batch", type=int, help="images at once (default: 1 to sample, else the config's)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements, of which the median counts (default 5)")
    parser.add_argument("--json", metavar="F", help="also write the figures here")


def run(args: argparse.Namespace) -> int:
    require(args.batch is None or args.batch >= 1, "--batch", args.batch, "at least 1")
    require(args.repeats >= 1, "--repeats", args.repeats, "at least 1")
    config = read_config(args.config, args.overrides)
    if args.what == "tokens":
        from var_jax import bench_tokens  # it reads data, for which `sample` and `train` need no library

        report = bench_tokens.measure(config, args.batch, args.repeats)
        lines = bench_tokens.lines(report)
    else:
        from var_jax import bench

        if args.what == "sample":
            report = bench.sample(config, args.batch or 1, args.repeats)
        else:
            report = bench.train(config, args.batch, args.repeats)
        lines = bench.lines(report)
    print("\n".join(lines))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1))
    return 0
