"""A table of runs, read from a CSV or JSONL file or from the directory of a sweep.

Every row that is not used is listed with the reason.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Shaped

from var_jax.errors import UserError, did_you_mean
from var_jax.scaling import row_readings, sweep_runs, table_files
from var_jax.scaling.row_readings import PROGRESS
from var_jax.scaling.sweep_runs import FITTED

INPUTS = ("params", "tokens", "compute")
# Columns of how a run was trained, which tell runs of one name apart.
SETTINGS = ("learning_rate", "batch_size")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of runs; several rows of one run are its training curve.

    Attributes:
      run: name of the run of each row.
      columns: numbers by column name, NaN where a row has none.
      notes: problems with rows or files, as "name: text".
      dropped: (row, reason) of every row or run that is left out.
      facts: what is known of all runs, such as how their parameters were counted, by topic.
    """

    run: Shaped[np.ndarray, " n"]
    columns: Mapping[str, Float[np.ndarray, " n"]]
    notes: tuple[str, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.run)

    def __getitem__(self, name: str) -> Float[np.ndarray, " n"]:
        if name not in self.columns:
            raise UserError(f"there is no column {name!r}{did_you_mean(name, self.columns)}")
        return self.columns[name]

    @property
    def fitted(self) -> list[str]:
        """Names of the columns that laws are fitted to: `loss`, other losses, then error rates."""
        names = [name for name in self.columns if name.startswith(FITTED)]
        return sorted(names, key=lambda name: (name != "loss", not name.startswith("loss")))

    @property
    def progress(self) -> str | None:
        """Name of the column that says how far a row's run has trained, or None without one."""
        return next(
            (name for name in PROGRESS if np.isfinite(self.columns.get(name, np.nan)).any()), None
        )

    def where(self, rows: Bool[np.ndarray, " n"]) -> "Table":
        """Returns the table of only the given rows."""
        return dataclasses.replace(
            self, run=self.run[rows], columns={k: v[rows] for k, v in self.columns.items()}
        )

    def complete(self, *names: str) -> "Table":
        """Returns the rows in which all of these columns are positive numbers."""
        return self.where(
            np.all([np.isfinite(self[name]) & (self[name] > 0) for name in names], axis=0)
        )

    def finals(self) -> "Table":
        """Returns the last row of every run, by its tokens, compute or step (`PROGRESS`).

        A row without that number sorts before those that have it.
        """
        name = self.progress
        order = (
            np.arange(len(self)) if name is None else np.nan_to_num(self.columns[name], nan=-np.inf)
        )
        last: dict[Any, int] = {}
        for i, run in enumerate(self.run):
            if run not in last or order[i] >= order[last[run]]:
                last[run] = i
        keep = np.zeros(len(self), bool)
        keep[list(last.values())] = True
        return self.where(keep)


def read(
    path: str,
    mapping: Mapping[str, str] | None = None,
    required: tuple[str, ...] = (),
    text: tuple[str, ...] = (),
    rows: row_readings.Rows = "auto",
) -> Table:
    """Reads runs from a CSV file with a header, a JSONL file, or the directory of a sweep.

    Args:
      mapping: the file's column name for each column name of this package.
      required: columns in which bad and repeated rows are reported and left out; by default
        `INPUTS` and those that are `FITTED`.
      text: columns that hold text rather than numbers; they become arrays of objects.
      rows: which rows of a run are points (`row_readings.choose`).

    Raises:
      UserError: the file is missing, empty or malformed, or lacks a column that `mapping` names.
    """
    source = epath.Path(path)
    if not source.exists():
        raise UserError(
            f"{path} does not exist; give a CSV or JSONL file of runs, or a sweep's directory"
        )
    dropped: list[tuple[str, str]] = []
    notes: list[str] = []
    if source.is_dir():
        records = sweep_runs.read_rows(source, dropped, notes)
    elif source.suffix.lower() in (".jsonl", ".ndjson"):
        records = table_files.jsonl_records(source)
    elif source.suffix.lower() in (".csv", ".tsv"):
        records = table_files.csv_records(source)
    else:
        raise UserError(f"{path} is neither .csv, .tsv nor .jsonl, nor a sweep's directory")
    if not records:
        raise UserError(_no_runs(path, dropped))
    records = _renamed(records, dict(mapping or {}), path)
    if not source.is_dir():
        records = row_readings.with_phases(records)
    named = row_readings.schedules(records)
    records, reading = row_readings.choose(records, rows, dropped, notes)
    if not records:
        raise UserError(_no_runs(path, dropped))
    facts = {"rows": reading} | ({"schedules": named} if named else {})
    table = build(records, required, text, dropped, notes)
    if source.is_dir():
        facts |= sweep_runs.describe(source, set(table.run))
    return dataclasses.replace(table, facts=facts)


def _no_runs(path: str, dropped: list[tuple[str, str]]) -> str:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in dropped[:3])
    return f"{path} has no runs{' (' + reasons + ')' if reasons else ''}"


def build(
    records: list[dict[str, Any]],
    required: tuple[str, ...] = (),
    text: tuple[str, ...] = (),
    dropped: list[tuple[str, str]] | None = None,
    notes: list[str] | None = None,
) -> Table:
    """Builds a table from records.

    Unreadable numbers become NaN, with a reason in `dropped`. Equal rows count once, and rows that
    contradict each other are left out. The arguments are those of `read`.
    """
    dropped, notes = list(dropped or []), list(notes or [])
    names = list(dict.fromkeys(name for record in records for name in record))
    run_names = [_run_name(record.get("run")) for record in records]
    run = np.array(
        [name if name else f"row {i + 1}" for i, name in enumerate(run_names)], dtype=object
    )
    run, ignored = _with_settings(run, records)
    notes += [
        f"setting-varies: {name} changes along the rows of a run, which are taken as its training "
        "curve; the column is ignored"
        for name in ignored
    ]
    columns: dict[str, np.ndarray] = {}
    required = tuple(
        n for n in names if (n in required if required else n in INPUTS or n.startswith(FITTED))
    )
    for name in names:
        values = [record.get(name) for record in records]
        if name in text:
            columns[name] = np.array([str(value) for value in values], dtype=object)
        elif name != "run" and name not in ignored:
            numbers = np.array([table_files.cell_number(value) for value in values])
            if name in required or np.isfinite(numbers).any():
                columns[name] = numbers
    for name in required:
        bad = [
            i for i, value in enumerate(columns[name]) if not (math.isfinite(value) and value > 0)
        ]
        for i in bad:
            dropped.append(
                (run[i], f"{name} is {records[i].get(name)!r:.40}, not a positive number")
            )
        if bad:
            notes.append(
                f"bad-rows: {len(bad)} rows have no positive number as {name} "
                "and are left out of its laws"
            )
    compared = [name for name in names if name in (*required, *text)]
    by_step = Table(run, columns).progress == "step" and any(
        name.startswith(FITTED) for name in compared
    )
    if by_step:
        compared.append("step")
        notes.append(
            "step-alone: rows of a run are ordered by step; a law of tokens or compute needs a "
            "column of that name, such as step times the tokens of one step"
        )
    cells = {
        name: [_cell(columns[name][i], record.get(name)) for i, record in enumerate(records)]
        for name in compared
    }
    keep = _without_duplicates(run, cells, dropped, notes, named=any(run_names))
    table = Table(run, columns, tuple(notes), tuple(dropped))
    return table.where(keep)


def _with_settings(
    run: Shaped[np.ndarray, " n"], records: list[dict[str, Any]]
) -> tuple[Shaped[np.ndarray, " n"], list[str]]:
    """Returns the runs' names with rate and batch, and the settings that are none.

    Rows of one name that differ in a setting at the same point are of several runs, whose names
    then have it. Rows that differ in it elsewhere are one run's training curve, whose log has the
    rate of each step, say: it tells no runs apart.
    """
    progress = [
        next((v for n in PROGRESS if math.isfinite(v := table_files.cell_number(r.get(n)))), None)
        for r in records
    ]
    ignored = []
    # A rate may follow the batch, so the batch tells runs apart first.
    for setting in reversed(SETTINGS):
        values = [table_files.cell_number(record.get(setting)) for record in records]
        at_point, of_run = defaultdict(set), defaultdict(set)
        for name, point, value in zip(run, progress, values, strict=True):
            if math.isfinite(value):
                at_point[name, point].add(value)
                of_run[name].add(value)
        several = {name for (name, _), distinct in at_point.items() if len(distinct) > 1}
        if any(len(distinct) > 1 and name not in several for name, distinct in of_run.items()):
            ignored.append(setting)
        run = np.array(
            [
                f"{name} {value:g}" if name in several and math.isfinite(value) else name
                for name, value in zip(run, values, strict=True)
            ],
            dtype=object,
        )
    return run, ignored


def _missing(value: Any) -> bool:
    """Returns whether a cell is empty. Zero and False are not: a run may be named 0."""
    return (
        value is None
        or (isinstance(value, str) and not value.strip())
        or (isinstance(value, float) and math.isnan(value))
    )


def _cell(number: Any, raw: Any) -> Any:
    """Returns the value by which a cell is compared: its number, or its text if it has none.

    NaN is unequal to itself, so rows with an empty cell would never compare equal.
    """
    if isinstance(number, str) or math.isfinite(number):
        return number
    return "" if _missing(raw) else str(raw).strip().lower()


def _without_duplicates(
    run, cells: Mapping[str, list], dropped, notes, *, named: bool
) -> Bool[np.ndarray, " n"]:
    """Returns a mask that keeps one of equal rows and none of contradicting rows.

    Rows contradict each other when they are of one run at one point and differ in a loss or error.

    Args:
      run: each row's run.
      cells: the columns' values.
      dropped: the list to which (run, reason) of each dropped row is appended.
      notes: the list to which warnings are appended.
      named: whether rows name their runs; without names only equal rows are the same point.
    """
    keep = np.ones(len(run), bool)
    point_columns = [name for name in cells if not name.startswith(FITTED)]
    groups: dict[tuple, list[int]] = {}
    for i in range(len(run)):
        point = tuple(cells[name][i] for name in (point_columns if named else cells))
        groups.setdefault((run[i], *point) if named else point, []).append(i)
    num_repeats = num_contradicting = 0
    for rows in groups.values():
        if len(rows) == 1 or not cells:
            continue
        distinct = {tuple(cells[name][i] for name in cells) for i in rows}
        if len(distinct) == 1:
            keep[rows[1:]] = False
            num_repeats += len(rows) - 1
            dropped.extend((run[i], "repeats another row") for i in rows[1:])
        else:
            keep[rows] = False
            num_contradicting += len(rows)
            dropped.extend(
                (run[i], "contradicts another row of the same run at the same point") for i in rows
            )
    if num_repeats:
        notes.append(f"duplicate-rows: {num_repeats} rows repeat others and count once")
    if num_contradicting:
        notes.append(
            f"contradicting-rows: {num_contradicting} rows of one run at one point differ "
            "and are all left out"
        )
    return keep


def _run_name(value: Any) -> str:
    """Returns the name of a run, "" where the cell is empty."""
    if _missing(value):
        return ""
    if isinstance(value, float):
        value += 0.0  # -0.0 becomes 0.0, the same number
    return str(value).strip()


def _renamed(records: list[dict], mapping: dict[str, str], path: str) -> list[dict]:
    known = {name for record in records for name in record}
    for name, source_name in mapping.items():
        if source_name not in known:
            raise UserError(
                f"--map {name}={source_name}: {path} has no column {source_name!r}"
                f"{did_you_mean(source_name, known)}"
            )
    taken = set(mapping) | set(mapping.values())
    return [
        {
            **{name: value for name, value in record.items() if name not in taken},
            **{name: record.get(source_name) for name, source_name in mapping.items()},
        }
        for record in records
    ]
