"""The command line of the studies: options that they share, their checks, and exit codes."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_args

from var_jax.config.sections import Resize, current_resize_name
from var_jax.config.strict import require
from var_jax.errors import USER_ERROR_EXIT_CODE, Parser, UserError
from var_jax.evaluate import samples


def command(
    parser: Parser, run: Callable[[argparse.Namespace], None], argv: Sequence[str] | None = None
) -> int:
    """Runs a study as a command.

    Returns:
      The exit code: 0 done, 2 the user's mistake (one line on stderr), 130 interrupted.
    """
    try:
        run(parser.parse_args(argv))
    except UserError as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def add_arguments(parser: Parser):
    """Adds the options that all studies of a model have."""
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="model directory or training workdir"
    )
    parser.add_argument(
        "--reference", required=True, metavar="DATASET:SPLIT", help="held-out images"
    )
    parser.add_argument(
        "--training",
        default="",
        metavar="DATASET:SPLIT",
        help="training images, with labels (default: the reference's data set, split train)",
    )
    parser.add_argument(
        "--resize",
        type=current_resize_name,
        choices=get_args(Resize),
        default="crop",
        help="how images are brought to the model's size, as in training (default crop)",
    )
    parser.add_argument(
        "--data-dir",
        default="",
        metavar="DIR",
        help="directory of prepared data sets, as data.data_dir",
    )
    parser.add_argument(
        "--source-dir",
        default="",
        metavar="DIR",
        help="raw files of a data set, as data.source_dir",
    )
    parser.add_argument("--num", type=int, default=2000, help="images per row (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resamples",
        type=int,
        default=samples.RESAMPLES,
        help=f"bootstrap resamples for intervals, 0 for none (default {samples.RESAMPLES})",
    )
    parser.add_argument(
        "--weights",
        default="",
        metavar="PATH",
        help="weights of EfficientNet-Lite0 (default: those in the package)",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="cache of the reference's features, '' for none (default ~/.cache/var_jax/features)",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="directory of the JSON, the tables and the picture; rows that are there are kept",
    )


def check_arguments(args: argparse.Namespace):
    """Checks options before anything is loaded.

    Raises:
      UserError: a number is out of range.
    """
    require(args.num >= 4, "--num", args.num, "at least 4")
    require(0 <= args.seed < 2**32, "--seed", args.seed, "from 0 to 4294967295")
    require(
        args.resamples == 0 or args.resamples >= 2,
        "--resamples",
        args.resamples,
        "0, for no intervals, or at least 2",
    )


def image_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Returns keyword arguments of `open_images`, for the reference and the training images."""
    return {"resize": args.resize, "data_dir": args.data_dir, "source_dir": args.source_dir}


def training_name(args: argparse.Namespace) -> str:
    """Returns `--training`, or the training split of the reference's data set.

    Raises:
      UserError: `--training` is not given, and the reference is not of a data set.
    """
    if args.training:
        return args.training
    name, colon, _ = args.reference.partition(":")
    require(
        bool(colon) and "/" not in name,
        "--training",
        f"not given, and {args.reference} of no data set",
        "given, as DATASET:SPLIT",
    )
    return f"{name}:train"
