"""Shows the progress of a sweep or of a single run: state, steps, time left, MFU, losses, restarts.

The training loss is that of the last logged step, the held-out loss that of the last evaluation.
"evaluating" is a run that has taken its last step and measures the held-out images. The line below
the table divides the wall time since the first start: steps, waiting for data, evaluation,
checkpoints, compilation, and what restarts cost.

example:
  var-jax status runs/sweep
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("directory", metavar="D", help="directory of a sweep, or workdir of a run")


def run(args: argparse.Namespace) -> int:
    from var_jax.sweep import status

    print("\n".join(status.lines(status.read(args.directory))))
    return 0
