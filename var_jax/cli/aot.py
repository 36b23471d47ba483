"""Compiles a config's train or sample step for a TPU slice that is not there, and tells whether it
fits and how fast it can be at most. Needs no TPU, no data and no tokenizer directory, but the TPU
compiler: pip install 'var-jax[aot]'.

example:
  var-jax aot --config configs/imagenet256.py:d16 --topology v5e:16x16 --json d16.json
  var-jax aot --config configs/imagenet256.py:d30 --topology v5p:4x4x8 --step sample --json d30.json
"""

import argparse
import json
import os

from etils import epath

from var_jax.cli.args import add_config_argument, read_sized_config
from var_jax.config.strict import require
from var_jax.io import atomic


def add_arguments(parser: argparse.ArgumentParser):
    add_config_argument(parser)
    parser.add_argument(
        "--topology",
        required=True,
        metavar="CHIP:SHAPE",
        help="the TPU slice: a chip (v5e, v5p, v6e) and its shape in chips, such as v5e:2x2, "
        "v5e:16x16 or v5p:4x4x8",
    )
    parser.add_argument(
        "--step",
        choices=("train", "sample"),
        default="train",
        help="the step to compile (default train)",
    )
    parser.add_argument(
        "--images", type=int, help="of a sample step, over all chips (default: 8 per chip)"
    )
    parser.add_argument("--json", metavar="F", help="also write the figures here")


def run(args: argparse.Namespace) -> int:
    require(args.images is None or args.images >= 1, "--images", args.images, "at least 1")
    directory = epath.Path(args.json or "").parent
    require(
        "://" in str(directory) or directory.is_dir(),
        "--json",
        args.json,
        "in a directory that exists",
    )
    config = read_sized_config(args.config, args.overrides)
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs; a TPU of this host must not be taken
    import jax

    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # the compile time is part of the report
    from var_jax.perf import aot_report, tpu_slices

    found = aot_report.report(config, tpu_slices.named(args.topology), args.step, args.images)
    print("\n".join(aot_report.lines(found)))
    if args.json:
        atomic.save(epath.Path(args.json), json.dumps(found, indent=1), "the figures")
    return 0 if found["fits"] else 1
