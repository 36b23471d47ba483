"""Compiles a config's train or sample step for a TPU slice, without a TPU.

It reports whether the step fits into the chips' memory, and the highest speed that it can have.

It needs no TPU, no data and no weights, but the TPU compiler: pip install 'var-jax[aot]'. If
tokenizer_dir is given, the sizes of that tokenizer count. The exit code is 0 if the step fits, and
1 if it does not.

--search tries settings that change no result but how fast a step can be. With --json F, the
programs that it has compiled are kept in F.tried, and the same command goes on from there.

example:
  var-jax aot --config configs/imagenet256.py:d16 --topology v5e:16x16 --json d16.json
  var-jax aot --config configs/imagenet256.py:d30 --topology v5p:4x4x8 --step sample --json d30.json
  var-jax aot --config configs/imagenet256.py:d24 --topology v6e:16x16 --search --json d24.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etils import epath

from var_jax.cli import long_work
from var_jax.cli.args import (
    add_config_argument,
    read_sized_config,
    require_existing_directory,
)
from var_jax.config.strict import require
from var_jax.config.train import TrainConfig
from var_jax.io import atomic

if TYPE_CHECKING:
    from var_jax.perf.tpu_slices import Slice

COMPILATIONS = 8  # of a search, by default
TRIED = ".tried"  # after the name of the report: what a search has compiled so far


def add_arguments(parser: argparse.ArgumentParser):
    add_config_argument(parser)
    parser.add_argument(
        "--topology",
        required=True,
        metavar="CHIP:SHAPE",
        help="TPU slice: a chip (v5e, v5p, v6e, tpu7x) and the slice's shape in chips, such as "
        "v5e:2x2, v5e:16x16 or v5p:4x4x8",
    )
    parser.add_argument(
        "--step",
        choices=("train", "sample"),
        default="train",
        help="the step to compile (default train)",
    )
    parser.add_argument(
        "--images", type=int, help="images of a sample step over all chips (default: 8 per chip)"
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="compile the train step with several meshes, policies, rematerializations, "
        "microbatches and options of the compiler, and report the one with the shortest bound, "
        "whose settings are in the JSON as overrides; minutes per program",
    )
    parser.add_argument(
        "--compilations",
        type=int,
        metavar="N",
        help="with --search: the largest number of programs to compile (default 8)",
    )
    parser.add_argument("--json", metavar="F", help="also write the figures to this file")


def run(args: argparse.Namespace) -> int:
    import jax

    # Nothing runs; a TPU of this host must not be taken. Reading a config may use JAX already.
    jax.config.update("jax_platforms", "cpu")
    require(args.images is None or args.images >= 1, "--images", args.images, "at least 1")
    require(not args.search or args.step == "train", "--search", "given", "used with --step train")
    most = args.compilations
    require(most is None or args.search, "--compilations", most, "given with --search")
    require(most is None or most >= 1, "--compilations", most, "at least 1")
    require_existing_directory("--json", args.json)
    config = read_sized_config(args.config, args.overrides)
    # Each program is compiled anew, because the compile time is part of the report.
    jax.config.update("jax_enable_compilation_cache", False)
    from var_jax.perf import aot_lines, aot_report, tpu_slices

    tpu_slice = tpu_slices.named(args.topology)
    devices = len(tpu_slice.devices)
    if args.search:
        return _search(args, config, tpu_slice)
    with long_work.reported(
        f"compiling the {args.step} step of the {config.stage} of {args.config} for {devices} "
        f"devices of {args.topology}, which takes minutes for a large model"
    ):
        figures = aot_report.report(config, tpu_slice, args.step, args.images)
    print("\n".join(aot_lines.lines(figures)))
    _write(args.json, figures)
    return 0 if figures["fits"] else 1


def _search(args: argparse.Namespace, config: TrainConfig, tpu_slice: Slice) -> int:
    """Prints the report of the best settings of a search, and those of the next ones."""
    from var_jax.perf import aot_lines, aot_search

    def tell(line: str):
        print(line, file=sys.stderr, flush=True)

    with long_work.reported(f"searching settings of {args.config} for {args.topology}"):
        figures = aot_search.search(
            config,
            tpu_slice,
            tell,
            most=args.compilations or COMPILATIONS,
            tried=epath.Path(f"{args.json}{TRIED}") if args.json else None,
        )
    print("\n".join([*aot_lines.lines(figures), *aot_search.lines(figures)]))
    _write(args.json, figures)
    return 0


def _write(path: str | None, figures: Mapping[str, Any]):
    """Writes figures to the file that an option names, if it does."""
    if path:
        atomic.save(epath.Path(path), json.dumps(figures, indent=1), "the figures")
