"""Trains both stages of a config, samples a grid, and reports how good they are.

example:
  var-jax quickstart --config configs/digits.py --workdir runs/quickstart
  var-jax quickstart --config configs/rivals.py:next_token \\
      --tokenizer-config configs/rivals.py:tokenizer_next_token --workdir runs/next_token
"""

import argparse

from var_jax.cli.args import read_config
from var_jax.config.strict import require


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="a config with both stages, by its path or name: FILE:tokenizer, and FILE for the "
        "transformer",
    )
    parser.add_argument(
        "--tokenizer-config",
        metavar="FILE:ARG",
        help="the tokenizer's config, where it is not FILE:tokenizer",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="directory for the model, samples and report",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=1000,
        help="number of samples that the report measures (default 1000)",
    )


def run(args: argparse.Namespace) -> int:
    require(args.samples >= 1, "--samples", args.samples, "at least 1")
    file = args.config.partition(":")[0]
    tokenizer_config = args.tokenizer_config or f"{file}:tokenizer"
    tokenizer, transformer = (
        read_config(tokenizer_config, args.overrides),
        read_config(args.config, args.overrides),
    )
    from var_jax.config import idle_keys
    from var_jax.studies import quickstart

    tokenizer, transformer = (idle_keys.reset(config) for config in (tokenizer, transformer))

    report = quickstart.run(
        tokenizer, transformer, args.workdir, args.samples, command=args.command_line
    )
    print("\n".join(quickstart.lines(report)))
    return 0
