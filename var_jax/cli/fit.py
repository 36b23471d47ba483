"""Power-law fits of a sweep or of any table of runs, with intervals, plots and predictions.

Reads the columns run, params, tokens, compute (FLOPs) and every one that starts with loss or err
from a CSV or JSONL file, or the runs of a sweep's directory; fits E + A x^-alpha against params and
compute, and E + A N^-alpha + B D^-beta jointly. Writes fit.json, report.md and PNGs.

example:
  var-jax fit runs.csv --out fits --map run=name,loss=val_loss --predict params=1e9 \\
      --predict compute=1e21
"""

import argparse
import dataclasses
import importlib
import math
from collections.abc import Sequence

from var_jax.errors import UserError

MAX_RESAMPLES = 1_000_000  # more is a slip that would run for days


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "source", metavar="D|F.csv|F.jsonl", help="a sweep's directory, or a table of runs"
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="directory for fit.json, report.md and the plots",
    )
    parser.add_argument(
        "--resamples",
        type=int,
        default=1000,
        metavar="N",
        help="number of bootstrap resamples over runs; 0 leaves the intervals out (default 1000)",
    )
    parser.add_argument(
        "--map",
        default="",
        metavar="COLUMN=NAME,...",
        help="the file's own NAME of a COLUMN listed above",
    )
    parser.add_argument(
        "--predict",
        action="append",
        default=[],
        metavar="NAME=X[,NAME=X]",
        help="predict the loss at params=1e9, at compute=1e21 (with the optimal size), or at "
        "params=..,tokens=..; may be repeated",
    )
    parser.add_argument(
        "--next",
        default="",
        metavar="FLOPS",
        help="also choose the next runs within this budget: those that narrow the first --predict "
        "of compute or of params and tokens (or that of ten times the largest compute) most",
    )
    parser.add_argument(
        "--sweep",
        default="",
        metavar="CONFIG",
        help="with --next: config of the sweep that the runs are of, of which the next runs become "
        "overrides; a sweep's directory needs none, but has no sizes besides its own",
    )
    parser.add_argument(
        "--fact",
        action="append",
        default=[],
        metavar="TOPIC=TEXT",
        help="what a table does not record, for the report's checklist: how its parameters or its "
        "compute were counted, its learning rates or schedules; may be repeated",
    )
    parser.add_argument(
        "--irreducible",
        default="",
        metavar="E|COLUMN=E,...",
        help="value of E, which is then not fitted; 0 makes a pure power law",
    )
    parser.add_argument(
        "--huber",
        type=float,
        default=1e-3,
        metavar="DELTA",
        help="threshold of the Huber loss of the laws that stand beside the most likely ones "
        "(default 1e-3, as published)",
    )
    parser.add_argument(
        "--rows",
        choices=("auto", "last", "curve"),
        default="auto",
        help="rows of a run that are points: last (annealed losses), curve (all at a constant "
        "rate), or what the schedule says (default auto)",
    )
    parser.add_argument(
        "--forms",
        choices=("first", "all", "none"),
        default="first",
        help="columns whose laws are compared with other forms on held-out largest sizes: the "
        "first, all or none (default first)",
    )
    parser.add_argument(
        "--law", default="", metavar="Y~X", help="fit y = A x^exponent to any two columns instead"
    )
    parser.add_argument(
        "--sigma",
        default=None,
        metavar="COLUMN",
        help="with --law: column of the standard deviations of log y",
    )
    parser.add_argument(
        "--group",
        default=None,
        metavar="COLUMN",
        help="with --law: one law per value of this column",
    )


def run(args: argparse.Namespace) -> int:
    import threadpoolctl

    # Matrices are small, so that further threads of a library would only wait for each other. Only
    # libraries that are loaded are limited.
    importlib.import_module("var_jax.scaling.report")
    with threadpoolctl.threadpool_limits(1):
        return _fit(args)


def _fit(args: argparse.Namespace) -> int:
    from etils import epath

    from var_jax.scaling import report, report_text, sweep_runs, table

    mapping = dict(_pairs(args.map, "--map"))
    columns = list(mapping.values())
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise UserError(f"--map {args.map!r} gives {twice!r} two names; give it one")
    if args.sweep and not args.next:
        raise UserError("--sweep goes with --next FLOPS, whose runs become its overrides")
    predict = [
        {name: _number(value, "--predict") for name, value in _pairs(text, "--predict")}
        for text in args.predict
    ]
    if args.resamples < 0 or args.resamples > MAX_RESAMPLES:
        right = f"0 or more, and at most {MAX_RESAMPLES:,}"
        raise UserError(f"--resamples is {args.resamples}; it must be {right}")
    if not 0 < args.huber < math.inf:
        raise UserError(f"--huber is {args.huber:g}; it must be above 0, and finite")
    if args.law:
        y, _, x = (part.strip() for part in args.law.partition("~"))
        if not (y and x):
            raise UserError(f"--law {args.law!r} is not of the form y~x, such as n~flops")
        if y == x:
            raise UserError(f"--law {args.law!r} has one column on both sides; name two")
        if args.sigma in (y, x):
            raise UserError(
                f"--sigma {args.sigma!r} is a column of --law {args.law!r}; it must be another, "
                f"the standard deviation of log {y}"
            )
        if args.fact:
            raise UserError("--fact does not go with --law, whose report has no checklist")
        if args.next or args.sweep:
            raise UserError("--next does not go with --law, which says nothing of cost")
        if args.irreducible:
            raise UserError("--irreducible does not go with --law, which has no floor")
        columns = tuple(name for name in (y, x, args.sigma) if name)
        groups = (args.group,) if args.group else ()
        runs = table.read(args.source, mapping, columns, groups, rows=args.rows)
        result, pictures = report.fit_power(
            runs, y, x, sigma=args.sigma, group=args.group, predict=predict
        )
    else:
        if args.sigma or args.group:
            raise UserError("--sigma and --group go with --law y~x")
        runs = table.read(args.source, mapping, rows=args.rows)
        runs = dataclasses.replace(runs, facts={**runs.facts, **_facts(args.fact)})
        planned, further = [], {}
        if args.sweep:
            from var_jax.sweep import next_members

            planned = _planned(args.sweep)
            known = runs.columns.get("params", ())
            further = next_members.further_sizes(planned, [float(size) for size in set(known)])
        result, pictures = report.fit_table(
            runs,
            resamples=args.resamples,
            floors=_floors(args.irreducible),
            delta=args.huber,
            predict=predict,
            next_budget=_number(args.next, "--next") if args.next else None,
            next_sizes=tuple(further),
            forms=args.forms,
        )
        proposed = result["next"]["runs"] if "next" in result else []
        if args.sweep:
            new = [(entry["params"], entry["tokens"]) for entry in proposed]
            for entry, member in zip(
                proposed, next_members.members(planned, new, further), strict=True
            ):
                entry["overrides"] = member
        elif epath.Path(args.source).is_dir():
            for entry in proposed:
                entry["overrides"] = sweep_runs.overrides(
                    epath.Path(args.source), entry["like"], entry["tokens"]
                )
    _give_seeds(result.get("next", {}).get("runs", ()))
    report.write(args.out, result, pictures, args.source)
    for line in report_text.terminal_lines(result):
        print(line)
    print(f"fit.json, report.md and {len(pictures)} plots in {args.out}")
    return 0


def _facts(stated: Sequence[str]) -> dict[str, str]:
    from var_jax.scaling import checklist

    facts = {}
    for text in stated:
        topic, _, said = (part.strip() for part in text.partition("="))
        if topic not in checklist.TOPICS or not said:
            raise UserError(
                f"--fact {text!r} is not of the form TOPIC=TEXT, with a topic of "
                f"{', '.join(checklist.TOPICS)}"
            )
        facts[topic] = said
    return facts


def _planned(config: str) -> list:
    """Returns the runs of a sweep's config."""
    from var_jax.cli import sweep_family
    from var_jax.cli.args import read_config
    from var_jax.sweep import plan

    return plan.expand(sweep_family.read(config), lambda flags: read_config(config, flags), "")


def _give_seeds(proposed: Sequence[dict]):
    """Gives each proposed run's overrides a seed of its own.

    Runs of one seed start from the same weights and see images in the same order.
    """
    from var_jax.scaling import next_runs

    for number, entry in enumerate(proposed):
        if entry.get("overrides"):
            entry["overrides"]["seed"] = next_runs.FIRST_SEED + number


def _floors(text: str) -> dict[str, float]:
    if not text:
        return {}
    if "=" not in text:
        return {"": _floor(text)}
    return {name: _floor(value) for name, value in _pairs(text, "--irreducible")}


def _floor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"--irreducible {text!r} is not a number from 0")
    return value


def _pairs(text: str, option: str) -> list[tuple[str, str]]:
    pairs = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise UserError(f"{option} {part!r} is not of the form name=value")
        if name in dict(pairs):
            raise UserError(f"{option} {text!r} gives {name!r} twice; give it once")
        pairs.append((name, value))
    return pairs


def _number(text: str, option: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{option} {text!r} is not a positive number")
    return value
