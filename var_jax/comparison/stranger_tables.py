"""Reads runs of any project from a CSV or JSON table, for a comparison of objectives."""

import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from var_jax.comparison.compared_run import (
    AXES,
    DESCRIPTIONS,
    TRAINING,
    ComparedRun,
    Measured,
)
from var_jax.errors import UserError, did_you_mean
from var_jax.scaling import table_files

REQUIRED = ("objective", "run", TRAINING)
TEXTS = ("objective", "run", "tokenizer")
LOW, HIGH = "_low", "_high"
READERS = {
    ".csv": table_files.csv_records,
    ".tsv": table_files.csv_records,
    ".json": table_files.json_records,
    ".jsonl": table_files.jsonl_records,
}


def read(source: epath.Path, dropped: list[tuple[str, str]]) -> list[tuple[ComparedRun, Any]]:
    """Returns the runs of a table, each with its seed (None without one).

    Columns that hold numbers and have no other meaning are qualities. The ends of the 95 % interval
    of `frechet_distance` are in `frechet_distance_low` and `frechet_distance_high`.

    Args:
      dropped: the list to which (row, reason) of every row that is left out is appended.

    Raises:
      UserError: the table cannot be read, lacks a column or has no quality, or an interval does not
        contain its value.
    """
    reader = READERS.get(source.suffix.lower())
    if reader is None:
        raise UserError(
            f"{source} is no table: its name must end in {', '.join(READERS)}; a sweep is given by "
            "its directory"
        )
    records = reader(source)
    columns = list(dict.fromkeys(name for record in records for name in record))
    if not records:
        raise UserError(f"{source} has no rows; it must have one for each run")
    if missing := [name for name in REQUIRED if name not in columns]:
        raise UserError(
            f"{source} has no column {missing[0]!r}{did_you_mean(missing[0], columns)}; "
            f"a comparison needs {', '.join(REQUIRED)} and a quality such as frechet_distance"
        )
    qualities = _qualities(records, columns)
    if not qualities:
        raise UserError(
            f"{source} has no column of a quality with a finite number, such as frechet_distance; "
            f"it has {', '.join(columns)}"
        )
    for name in qualities:
        for end, other in ((LOW, HIGH), (HIGH, LOW)):
            if f"{name}{end}" in columns and f"{name}{other}" not in columns:
                raise UserError(
                    f"{source} has the column {name}{end} without {name}{other}; an interval has "
                    "both"
                )
    runs = []
    for number, record in enumerate(records, start=1):
        run = _run(source, number, record, qualities, dropped)
        if run is not None:
            runs.append((run, record.get("seed")))
    return runs


def _qualities(records: list[dict], columns: list[str]) -> list[str]:
    """Returns the columns that hold qualities."""
    ends = {f"{name}{end}" for name in columns for end in (LOW, HIGH)}
    others = {*AXES, *DESCRIPTIONS, *TEXTS, *ends}
    return [
        name
        for name in columns
        if name not in others
        and any(math.isfinite(table_files.cell_number(record.get(name))) for record in records)
    ]


def _run(
    source: epath.Path,
    number: int,
    record: Mapping[str, Any],
    qualities: list[str],
    dropped: list[tuple[str, str]],
) -> ComparedRun | None:
    """Returns the run of a row; None, with a reason in `dropped`, if nothing can be drawn of it."""
    objective, name, tokenizer = (_text(record.get(column)) for column in TEXTS)
    row = f"{source.name} row {number}"
    if not (objective and name):
        dropped.append((row, "it names no objective or no run"))
        return None
    costs = {}
    for axis in AXES:
        value = table_files.cell_number(record.get(axis))
        if math.isfinite(value) and value > 0:
            costs[axis] = value
    if TRAINING not in costs:
        stated = f"{record.get(TRAINING)!r:.40}"
        dropped.append((row, f"{TRAINING} is {stated}, not a positive number"))
        return None
    measured = {}
    for quality in qualities:
        value, low, high = (
            table_files.cell_number(record.get(f"{quality}{end}")) for end in ("", LOW, HIGH)
        )
        if not math.isfinite(value):
            continue
        has_interval = math.isfinite(low) and math.isfinite(high)
        if has_interval and not low <= value <= high:
            raise UserError(
                f"{row}: the {quality} {value:g} is not within its interval, {low:g} to {high:g}"
            )
        measured[quality] = Measured(value, (low, high) if has_interval else None)
    if not measured:
        dropped.append((row, "it has no quality with a finite number"))
        return None
    params = table_files.cell_number(record.get("params"))
    return ComparedRun(
        objective,
        name,
        costs,
        measured,
        params=params if math.isfinite(params) and params > 0 else None,
        tokenizer=tokenizer,
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
