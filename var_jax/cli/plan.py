"""Shows what a run will cost, before it starts: memory, FLOPs, hours, disk, and expected losses.

FLOPs and parameters are exact. Memory is an estimate from shapes; for a TPU slice, `var-jax aot`
asks the compiler. Hours follow from the share of the chips' peak that is assumed (--mfu): nothing
is run. The exit code is 0 also where the run does not fit.

example:
  var-jax plan --config configs/imagenet256.py:d16 --chip v5e:16x16
  var-jax plan --config configs/imagenet256.py:d30 --chip h200:8 --mfu 0.35 --json d30.json
"""

import argparse
import json
import shlex

from etils import epath

from var_jax.cli import long_work
from var_jax.cli.args import (
    add_config_argument,
    read_sized_config,
    require_existing_directory,
)
from var_jax.config.strict import require
from var_jax.devices import chips
from var_jax.errors import UserError
from var_jax.io import atomic


def add_arguments(parser: argparse.ArgumentParser):
    add_config_argument(parser)
    parser.add_argument(
        "--chip",
        metavar="NAME[:N|:SHAPE]",
        help="chips that it will run on, such as h200, h200:8 or v5e:16x16; one of "
        f"{', '.join(chips.CHIPS)} (default: none, for memory and FLOPs alone)",
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=chips.ASSUMED_MFU,
        help="share of the chips' peak that training reaches: an assumption, which `var-jax bench "
        f"train` measures (default {chips.ASSUMED_MFU})",
    )
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="training images of the data set, for epochs and the token cache (default: those of "
        "the token cache or of a known data set)",
    )
    parser.add_argument("--json", metavar="F", help="also write the figures to this file")


def run(args: argparse.Namespace) -> int:
    import jax

    # Nothing runs; a chip of this host must not be taken. Reading a config may use JAX already.
    jax.config.update("jax_platforms", "cpu")
    require(0 < args.mfu <= 1, "--mfu", args.mfu, "above 0 and at most 1")
    require(args.images is None or args.images >= 1, "--images", args.images, "at least 1")
    require_existing_directory("--json", args.json)
    chip, count = chips.several(args.chip) if args.chip is not None else (None, 1)
    config = read_sized_config(args.config, args.overrides)
    from var_jax.perf import cost_lines, run_costs

    with long_work.reported(f"tracing the {config.stage}'s step of {args.config}, in seconds"):
        figures = run_costs.report(config, chip, count, args.mfu, args.images)
    figures = {"config": args.config, **figures}
    print("\n".join(cost_lines.lines(figures)))
    shape = (args.chip or "").partition(":")[2]
    if chip is not None and _is_slice(topology := f"{chip.name}:{shape}"):
        words = ["--config", args.config, "--topology", topology, *args.overrides]
        print(f"the compiler's own figures: var-jax aot {shlex.join(words)}")
    if args.json:
        atomic.save(epath.Path(args.json), json.dumps(figures, indent=1), "the figures")
    return 0


def _is_slice(topology: str) -> bool:
    """Returns whether the TPU compiler is installed and knows a slice."""
    from var_jax.perf import tpu_slices

    try:
        tpu_slices.named(topology)
    except UserError:
        return False
    return True
