"""Trains the stage that the config names, and resumes by itself from what the workdir holds.

example:
  var-jax train --config configs/digits.py:tokenizer --workdir runs/tokenizer
  var-jax train --config configs/digits.py:d2 --config.tokenizer_dir=runs/tokenizer --workdir runs/d2
"""

import argparse
import sys

from var_jax.cli.configs import add_config_argument, read_config


def add_arguments(parser: argparse.ArgumentParser):
    add_config_argument(parser)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where checkpoints, metrics and samples go")


def run(args: argparse.Namespace) -> int:
    config = read_config(args.config, args.overrides)
    from var_jax.train.loop import Diverged, train

    try:
        train(config, args.workdir)
    except Diverged as error:
        print(f"var-jax: {error}", file=sys.stderr)
        return 1
    return 0
