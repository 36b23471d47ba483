"""Compiles a config's train or sample step for a TPU slice, without a TPU.

It reports whether the step fits into the chips' memory, and the highest speed that it can have.

It needs no TPU, no data and no weights, but the TPU compiler: pip install 'var-jax[aot]'. If
tokenizer_dir is given, the sizes of that tokenizer count. The exit code is 0 if the step fits, and
1 if it does not. With --topology here the train step is compiled for the devices of this machine.
With --save it is kept for `var-jax train --executable`, which then does not compile it.

--search tries settings that change no result but how fast a step can be. With --json F, the
programs that it has compiled are kept in F.tried, and the same command goes on from there.

example:
  var-jax aot --config configs/imagenet256.py:d16 --topology v5e:16x16 --json d16.json
  var-jax aot --config configs/imagenet256.py:d30 --topology v5p:4x4x8 --step sample --json d30.json
  var-jax aot --config configs/imagenet256.py:d24 --topology v6e:16x16 --search --json d24.json
  var-jax aot --config configs/digits.py:d2 --topology here --save d2.executable
"""

from __future__ import annotations

import argparse
import functools
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
from var_jax.errors import UserError
from var_jax.io import atomic

if TYPE_CHECKING:
    import jax

    from var_jax.perf import aot
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
        "v5e:2x2, v5e:16x16 or v5p:4x4x8; or here: the devices of this machine",
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
    parser.add_argument(
        "--save",
        metavar="F",
        help="write the compiled train step to this file, if it fits, for `var-jax train "
        "--executable F` on these devices with the same versions and settings",
    )


def run(args: argparse.Namespace) -> int:
    require(args.images is None or args.images >= 1, "--images", args.images, "at least 1")
    require(not args.search or args.step == "train", "--search", "given", "used with --step train")
    most = args.compilations
    require(most is None or args.search, "--compilations", most, "given with --search")
    require(most is None or most >= 1, "--compilations", most, "at least 1")
    require_existing_directory("--json", args.json)
    require_existing_directory("--save", args.save)
    local = args.topology == "here"
    require(
        args.step == "train" or not (local or args.save),
        "--step",
        args.step,
        "train with --save or --topology here",
    )
    require(
        not args.search or not (local or args.save),
        "--search",
        "given",
        "used without --save and --topology here; save the step with the settings that it names",
    )
    import jax

    if not local:
        # Nothing runs; a TPU of this host must not be taken. Reading a config may use JAX already.
        jax.config.update("jax_platforms", "cpu")
    config = read_sized_config(args.config, args.overrides)
    from var_jax.perf import aot_lines, aot_report, attached, tpu_slices

    tpu_slice = None if local else tpu_slices.named(args.topology)
    if args.search and tpu_slice is not None:
        return _search(args, config, tpu_slice)
    named = "one machine" if local else args.topology
    devices = jax.device_count() if tpu_slice is None else len(tpu_slice.devices)
    keep = functools.partial(_save, args.save, named) if args.save else None
    with long_work.reported(
        f"compiling the {args.step} step of the {config.stage} of {args.config} for {devices} "
        f"devices of {named}, which takes minutes for a large model"
    ):
        if tpu_slice is None:
            figures = attached.report(config, keep)
        else:
            figures = aot_report.report(config, tpu_slice, args.step, args.images, keep=keep)
    print("\n".join((aot_lines if tpu_slice else attached).lines(figures)))
    _write(args.json, figures)
    fits = figures.get("fits", True)
    if args.save and fits and "overrides" in figures:
        raise UserError(
            "nothing is saved, as what auto chooses does not fit; add "
            f"{aot_lines.override_flags(figures)}"
        )
    if args.save and fits:
        print(f"saved     {args.save}")
    return 0 if fits else 1


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
    return 0 if figures["fits"] else 1


def _write(path: str | None, figures: Mapping[str, Any]):
    """Writes figures to the file that an option names, if it does."""
    if path:
        atomic.save(epath.Path(path), json.dumps(figures, indent=1), "the figures")


def _save(path: str, devices: str, step: aot.Step, compiled: jax.stages.Compiled):
    from var_jax.train import saved_step

    saved_step.save(path, compiled, step.objective.config, step.mesh, devices)
