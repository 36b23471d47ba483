"""Compiles a config's train or sample step for a TPU slice, without a TPU.

It reports whether the step fits into the chips' memory, and the highest speed that it can have.

It needs no TPU, no data and no weights, but the TPU compiler: pip install 'var-jax[aot]'. If
tokenizer_dir is given, the sizes of that tokenizer count. The exit code is 0 if the step fits, and
1 if it does not.

example:
  var-jax aot --config configs/imagenet256.py:d16 --topology v5e:16x16 --json d16.json
  var-jax aot --config configs/imagenet256.py:d30 --topology v5p:4x4x8 --step sample --json d30.json
"""

import argparse
import json

from etils import epath

from var_jax.cli import long_work
from var_jax.cli.args import (
    add_config_argument,
    read_sized_config,
    require_existing_directory,
)
from var_jax.config.strict import require
from var_jax.io import atomic


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
    parser.add_argument("--json", metavar="F", help="also write the figures to this file")


def run(args: argparse.Namespace) -> int:
    import jax

    # Nothing runs; a TPU of this host must not be taken. Reading a config may use JAX already.
    jax.config.update("jax_platforms", "cpu")
    require(args.images is None or args.images >= 1, "--images", args.images, "at least 1")
    require_existing_directory("--json", args.json)
    config = read_sized_config(args.config, args.overrides)
    # Each program is compiled anew, because the compile time is part of the report.
    jax.config.update("jax_enable_compilation_cache", False)
    from var_jax.perf import aot_report, tpu_slices

    tpu_slice = tpu_slices.named(args.topology)
    devices = len(tpu_slice.devices)
    with long_work.reported(
        f"compiling the {args.step} step of the {config.stage} of {args.config} for {devices} "
        f"devices of {args.topology}, which takes minutes for a large model"
    ):
        figures = aot_report.report(config, tpu_slice, args.step, args.images)
    print("\n".join(aot_report.lines(figures)))
    if args.json:
        atomic.save(epath.Path(args.json), json.dumps(figures, indent=1), "the figures")
    return 0 if figures["fits"] else 1
