"""Progress of a sweep or of a single run: state, steps, time left, MFU, losses, restarts.

The training loss is that of the last logged step, the held-out loss that of the last evaluation.

example:
  var-jax status runs/sweep
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("directory", metavar="D", help="a sweep's directory, or a run's workdir")


def run(args: argparse.Namespace) -> int:
    from var_jax.sweep import status

    print("\n".join(status.lines(status.read(args.directory))))
    return 0
