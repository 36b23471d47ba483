"""Trains all runs of a config's get_sweep(): submits, polls and restarts them until all end.

Finished runs are skipped and live ones are attached to, so the command may be killed (also by
Ctrl-C) and started again at any time; the runs continue meanwhile. `--stop` asks them to save and
end. `var-jax status D` shows their progress.

example:
  var-jax sweep --config configs/scaling.py:fashion --config.data.tokens_dir=runs/fashion/tokens \\
      --workdir runs/scaling --backend local --dry-run
"""

import argparse
import functools
import math
import sys
from typing import TYPE_CHECKING

from var_jax.cli import sweep_family
from var_jax.cli.args import add_config_argument, read_config
from var_jax.config import key_patterns
from var_jax.config.strict import require

if TYPE_CHECKING:
    from var_jax.sweep.driver import Sweep


def add_arguments(parser: argparse.ArgumentParser):
    add_config_argument(parser)
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="D",
        help="directory of the sweep; each run has the workdir D/ID",
    )
    parser.add_argument(
        "--backend",
        choices=("local", "slurm", "jobset"),
        default="local",
        help="scheduler that starts the runs (default local: processes on this machine)",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the backend, such as partition=tpu; may be repeated",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="number of runs at a time; 0 for no limit (default: 1 for local, else no limit)",
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=5,
        metavar="N",
        help="number of restarts after which a failing run is given up; preemptions with progress "
        "do not count (default 5)",
    )
    parser.add_argument(
        "--retry", action="store_true", help="start runs again that were given up or refused"
    )
    parser.add_argument(
        "--interval",
        type=float,
        default=10.0,
        metavar="S",
        help="seconds between two polls of the runs (default 10)",
    )
    parser.add_argument(
        "--stop", action="store_true", help="ask the live runs to save and end, and exit"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the runs, print their FLOPs, cost and commands, and start nothing",
    )
    parser.add_argument(
        "--chip", default="v5p", help="chip whose hours --dry-run estimates (default v5p)"
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        help="share of the chip's peak that training is assumed to reach (default 0.4)",
    )
    parser.add_argument(
        "--price",
        type=float,
        default=0.0,
        help="price of a chip-hour; adds a cost column to --dry-run",
    )


def run(args: argparse.Namespace) -> int:
    for name in ("jobs", "max_restarts"):
        require(
            (getattr(args, name) or 0) >= 0,
            f"--{name.replace('_', '-')}",
            getattr(args, name),
            "0 or more",
        )
    require(0 < args.interval < math.inf, "--interval", args.interval, "above 0, and finite")
    require(0 <= args.price < math.inf, "--price", args.price, "0 or more, and finite")
    import jax

    from var_jax.sweep import backend, driver, plan, preflight, run_state

    jax.config.update("jax_platforms", "cpu")  # the accelerators are for the runs
    options = [part.partition("=") for part in args.option]
    for key, equals, value in options:
        require(
            bool(key and equals), "--option", repr(f"{key}{equals}{value}"), "of the form KEY=VALUE"
        )
    engine = backend.make(args.backend, {key: value for key, _, value in options})
    resolve = functools.cache(lambda flags: read_config(args.config, flags))
    planned = plan.expand(sweep_family.read(args.config), resolve, args.workdir, args.overrides)
    jobs = engine.max_live_runs if args.jobs is None else args.jobs
    sweep = driver.Sweep(
        planned, args.config, args.workdir, args.backend, engine, jobs, args.max_restarts
    )
    in_bucket = "://" in args.workdir
    if not in_bucket:
        driver.require_directory(args.workdir)
    if args.dry_run:
        preflight.check_keys(planned, args.workdir)
        if preflight.without_tokenizer(planned):
            notes = [preflight.NO_TOKENIZER]
        elif in_bucket:  # which need not be reached for a plan
            notes = preflight.check_starts(
                planned, None, on_this_machine=args.backend == "local", devices_are_free=True
            )
        else:
            notes = _check_starts(sweep, retry=args.retry)
        print("\n".join(plan.lines(planned, chip=args.chip, mfu=args.mfu, price=args.price)))
        if text := engine.render(driver.commands(sweep)):
            print(text)
        trained = dict.fromkeys(run.config.trainable for run in planned)
        notes = [*notes, *filter(None, map(key_patterns.counted_flops, trained))]
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        return 0
    run_state.require_reachable(args.workdir)
    if args.stop:
        asked = driver.stop(sweep)
        print(f"asked {len(asked)} runs to save and end{': ' if asked else ''}{', '.join(asked)}")
        return 0
    engine.check(args.workdir)
    preflight.check_keys(planned, args.workdir)
    _check_starts(sweep, retry=args.retry)
    driver.write_plan(sweep, args.overrides)
    try:
        given_up = driver.drive(
            sweep,
            interval=args.interval,
            retry=args.retry,
            report=functools.partial(print, flush=True),
        )
    except KeyboardInterrupt:
        print(
            "var-jax: interrupted; live runs go on: the same command attaches to them, with --stop "
            "it ends them",
            file=sys.stderr,
        )
        return 130
    print(f"{len(planned) - len(given_up)} of {len(planned)} runs are done")
    for id, reason in given_up.items():
        print(
            f"var-jax: run {id} in {args.workdir} was given up: {reason}; "
            "put it right and give the command again with --retry",
            file=sys.stderr,
        )
    return 1 if given_up else 0


def _check_starts(sweep: "Sweep", *, retry: bool) -> list[str]:
    """Checks the runs that would be started; returns what is left to them."""
    from var_jax.sweep import preflight, run_state

    observed = {run.id: sweep.observe(run.id) for run in sweep.runs}

    def to_start(id: str) -> bool:
        run = observed[id]
        given_up = not retry and run_state.give_up_reason(run, sweep.max_restarts)
        return run.state == "new" or not (run.live or run.state == "done" or given_up)

    return preflight.check_starts(
        [run for run in sweep.runs if to_start(run.id)],
        sweep.workdir,
        on_this_machine=sweep.backend == "local",
        devices_are_free=not any(state.live for state in observed.values()),
    )
