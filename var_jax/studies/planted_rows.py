"""Rows of studies of planted laws: their options, and a file in which measured rows are kept."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from var_jax.errors import Parser


def add_arguments(parser: Parser, *, sweeps: int, seed: int):
    """Adds the options that these studies have.

    Args:
      sweeps: default number of sweeps of each law.
      seed: default seed of the noise.
    """
    parser.add_argument(
        "--sweeps", type=int, default=sweeps, help=f"of each law (default {sweeps})"
    )
    parser.add_argument("--seed", type=int, default=seed, help=f"of the noise (default {seed})")
    parser.add_argument("--only", default="", help="laws whose name contains this")
    parser.add_argument(
        "--rows",
        type=epath.Path,
        help="JSONL file that keeps each row, so that a study that was interrupted goes on where "
        "it was",
    )


def measured(
    args: argparse.Namespace,
    cases: Iterator[tuple[str, Mapping[str, Any]]],
    measure: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Returns the rows of the cases that --only names, from the file where it has them.

    Args:
      cases: the name of each case, and the entries by which its row is known.
      measure: what measures the other entries of a row from those.
    """
    known = []
    if args.rows is not None and args.rows.exists():
        known = [json.loads(line) for line in args.rows.read_text().splitlines()]
    for name, entries in cases:
        if args.only not in name:
            continue
        asked = {**entries, "sweeps": args.sweeps, "seed": args.seed}
        row = next((row for row in known if asked.items() <= row.items()), None)
        if row is None:
            row = {**asked, **measure(asked)}
            if args.rows is not None:
                with args.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        yield row
