"""Records of a run, one JSON object per line: `metrics.jsonl`, and its parts in a bucket.

Nothing can be appended to an object of a bucket. There a run writes its records in parts,
`metrics/BEGIN-END.jsonl`, which it merges into fewer and larger ones as it goes, and into one
`metrics.jsonl` when it starts and when it is done.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from etils import epath

# The states that a run itself reports in status.json.
ReportedState = Literal["running", "done", "preempted", "failed"]

FILE, PARTS = "metrics.jsonl", "metrics"
TRIES = 3
READERS = 16  # parts read at once: an object store takes tens of milliseconds for each


def in_bucket(path: epath.PathLike) -> bool:
    """Returns whether a path is in a bucket."""
    return "://" in str(path)


def part_path(run: epath.Path, start: int, stop: int) -> epath.Path:
    """Returns the file of the records `start` to `stop` (exclusive) of one start of a run."""
    return run / PARTS / f"{start:09d}-{stop:09d}.jsonl"


def parts(run: epath.Path) -> list[epath.Path]:
    """Returns the existing parts, ordered by their first record."""
    try:
        return sorted(path for path in (run / PARTS).iterdir() if path.suffix == ".jsonl")
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_lines(run: epath.Path) -> list[str]:
    """Returns the lines of a run's records in their order, the first of each step and split.

    They include lines that are no records, such as a last line that a crash cut off.

    Raises:
      OSError: there are no records, or they cannot be read.
    """
    for left in reversed(range(TRIES)):
        try:
            return _unique(_read(run))
        except FileNotFoundError:  # the run has merged parts meanwhile
            if not left:
                raise
    raise AssertionError


def last_held_out(run: epath.Path) -> dict[str, Any] | None:
    """Returns the record of a run's last evaluation on held-out images; None if there is none."""
    try:
        lines = read_lines(run)
    except OSError:  # no run, or none that has logged
        return None
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:  # a line that a crash cut off
            continue
        if isinstance(record, dict) and record.get("split") == "val":
            return record
    return None


def _read(run: epath.Path) -> list[str]:
    # In this order: a run writes the merged file before it deletes the parts.
    listed = parts(run)
    file = run / FILE
    texts = [] if listed and not file.exists() else [file.read_text()]
    with ThreadPoolExecutor(READERS) as pool:
        texts += pool.map(lambda path: path.read_text(), listed)
    return [line for text in texts for line in text.splitlines()]


def key(line: str) -> tuple[int, str] | None:
    """Returns the step and split of a record, or None for a line that is no record."""
    try:
        record = json.loads(line)
        return record["step"], record["split"]
    except (ValueError, KeyError, TypeError):
        return None


def _unique(lines: list[str]) -> list[str]:
    keys, unique = set(), []
    for line in lines:
        line_key = key(line)
        if line_key is None or line_key not in keys:
            unique.append(line)
        if line_key is not None:
            keys.add(line_key)
    return unique
