"""Tells losses at a constant rate, losses of annealed runs, and those in the middle of a schedule.

A run whose learning rate falls ends lower than a run of constant rate, and in the middle of its
schedule it is higher than a run of that length would end. So rows of these kinds are not points of
one law.

Source: Hägele et al. 2024; Hoffmann et al. 2022, appendix A.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from var_jax.scaling.table_files import cell_number

# Of the rows of a run: by what its schedule says, the last one, or all of a constant rate.
Rows = Literal["auto", "last", "curve"]
PHASE = "phase"  # key of a record, one of the following
CONSTANT, ANNEALED, FALLING, UNKNOWN = "constant", "annealed", "falling", "unknown"
SCHEDULE = "schedule"  # column of a table that names each run's schedule
# Columns that say how far a run has trained; the first one that a table has is used.
PROGRESS = ("tokens", "compute", "step")


def phase_of(config: Mapping, step: float) -> str:
    """Returns in which phase of its schedule a run of a sweep was at a step."""
    optimizer, steps = config.get("optimizer", {}), config.get("steps")
    schedule = optimizer.get("schedule")
    if schedule is None or steps is None:
        return UNKNOWN
    if schedule == "constant":
        return CONSTANT
    if step >= steps:
        return ANNEALED
    is_stable = schedule == "cooldown" and step <= steps - optimizer.get("cooldown_steps", steps)
    return CONSTANT if is_stable else FALLING


def with_phases(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of a file with their phases, by its column `schedule` if it has one.

    The last row of a run whose schedule is not "constant" is annealed, rows before it are not.
    """
    last: dict[Any, float] = {}
    for record in records:
        run, progress = record.get("run"), _progress(record)
        last[run] = max(last.get(run, progress), progress)
    out = []
    for record in records:
        schedule = str(record.get(SCHEDULE) or "").strip().lower()
        if not schedule:
            phase = UNKNOWN
        elif schedule == "constant":
            phase = CONSTANT
        else:
            named = record.get("run") is not None
            is_last = not named or _progress(record) >= last[record.get("run")]
            phase = ANNEALED if is_last else FALLING
        out.append({**record, PHASE: phase})
    return out


def schedules(records: list[dict[str, Any]]) -> str:
    """Returns how many runs of a file have which schedule; "" if none names its own."""
    by_run = {record.get("run"): str(record.get(SCHEDULE) or "").strip() for record in records}
    named = Counter(name for name in by_run.values() if name)
    return ", ".join(f"{count} runs {name}" for name, count in named.items())


def _progress(record: Mapping) -> float:
    numbers = [cell_number(record.get(name)) for name in PROGRESS]
    return next((number for number in numbers if number == number), 0.0)


def choose(
    records: list[dict[str, Any]],
    rows: Rows,
    dropped: list[tuple[str, str]],
    notes: list[str],
) -> tuple[list[dict[str, Any]], str]:
    """Returns the records that are points of one kind of law, and which reading that is.

    "auto" takes annealed losses where there are any, else those of a constant rate, else all.
    "last" takes annealed losses, or the last row of every run where no schedule is known. "curve"
    takes losses at a constant rate, or all where there are none.

    Args:
      records: rows with their phase.
      dropped: the list to which (run, reason) of rows that are left out is appended.
      notes: the list to which warnings are appended.
    """
    phases = Counter(record[PHASE] for record in records)
    points = {(record.get("run"), _progress(record)) for record in records}
    per_run = Counter(run for run, _ in points if run is not None)
    several = max(per_run.values(), default=1) > 1
    if rows == "curve":
        kind = CONSTANT if phases[CONSTANT] else None
    elif phases[ANNEALED] or phases[FALLING]:
        kind = ANNEALED
    elif phases[CONSTANT] and rows == "auto":
        kind = CONSTANT
    else:
        kind = None
    chosen = [r for r in records if kind is None or r[PHASE] in (kind, UNKNOWN)]
    ended = {str(record.get("run")) for record in records if record[PHASE] == ANNEALED}
    left_out: Counter[tuple[str, str]] = Counter()
    mixed = 0
    for record in records:
        run, phase = str(record.get("run")), record[PHASE]
        if kind is None or phase in (kind, UNKNOWN):
            continue
        if kind == CONSTANT:
            reason = "while its rate falls; the others are at a constant rate"
        elif phase == FALLING or run in ended:
            reason = "before the end of its schedule"
        else:
            reason, mixed = "at a constant rate; those of the others have fallen", mixed + 1
        left_out[run, reason] += 1
    dropped += [
        (run, f"{count} validations come {reason}") for (run, reason), count in left_out.items()
    ]
    if mixed:
        notes.append(
            f"mixed-schedules: {mixed} rows of runs at a constant rate are left out, as others are "
            "annealed; --rows curve takes them alone"
        )
    if kind is None and rows == "last" and several:
        chosen = _last_rows(chosen)
    text = _text(kind, rows, several=several)
    if several and kind is None and rows != "last":
        notes.append(
            "curve-rows: rows of a run are taken as its training curve, as no schedule is known; "
            "in the middle of a falling rate they are no points of a law: --rows last takes only "
            "the last row of each run"
        )
    return [{k: v for k, v in record.items() if k != PHASE} for record in chosen], text


def _last_rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last: dict[Any, dict] = {}
    for i, record in enumerate(records):
        run = record.get("run")
        key = (i,) if run is None else run
        if key not in last or _progress(record) >= _progress(last[key]):
            last[key] = record
    return list(last.values())


def _text(kind: str | None, rows: Rows, *, several: bool) -> str:
    """Returns a sentence for a report on the rows that are points."""
    if kind == ANNEALED:
        return "annealed losses: the last row of each run, at the end of its schedule"
    if kind == CONSTANT:
        return "losses at a constant rate: all rows of a run are its training curve"
    if not several:
        return "one row per run"
    if rows == "last":
        return "the last row of each run; its schedule is not known"
    return "all rows of a run, as its training curve; its schedule is not known"
