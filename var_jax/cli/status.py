"""Shows the progress of a sweep or of a single run: state, steps, time left, MFU, losses, restarts.

The training loss is that of the last logged step, the held-out loss that of the last evaluation.
"evaluating" is a run that has taken its last step and measures the held-out images. The line below
the table divides the wall time since the first start: steps, waiting for data, evaluation,
checkpoints, compilation, and what restarts cost.

--against published also compares a run with a public log of VAR-d16 on ImageNet: it prints the
log's rows beside the run's, and draws both. Cross-entropy depends on the codes and the scales, so
that a run with others is refused.

example:
  var-jax status runs/sweep
  var-jax status runs/d16 --against published --out d16.png
"""

import argparse

from etils import epath

from var_jax.config.strict import require

PICTURE = "against_published.png"


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("directory", metavar="D", help="directory of a sweep, or workdir of a run")
    parser.add_argument(
        "--against",
        choices=("published",),
        help="compare a run's losses and accuracies with a public log of VAR-d16",
    )
    parser.add_argument(
        "--out", metavar="F.png", help=f"with --against: the picture (default: D/{PICTURE})"
    )


def run(args: argparse.Namespace) -> int:
    from var_jax.sweep import status

    require(args.out is None or bool(args.against), "--out", args.out, "given with --against")
    rows = status.read(args.directory)
    if not args.against:
        print("\n".join(status.lines(rows)))
        return 0
    from var_jax.io import atomic
    from var_jax.sweep import against_published

    comparison = against_published.Comparison(args.directory)
    print("\n".join([*status.lines(rows), *comparison.lines()]))
    path = epath.Path(args.out) if args.out else epath.Path(args.directory) / PICTURE
    atomic.save(path, [comparison.picture()], "the picture")
    print(f"picture: {path}")
    return 0
