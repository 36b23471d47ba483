"""Records of a run, a JSON object per line: `metrics.jsonl`, and what a run in a bucket has not
merged into it yet.

Nothing can be appended to an object of a bucket. There a run writes its records in parts,
`metrics/BEGIN-END.jsonl`, of which it makes fewer and larger ones as it goes, and one
`metrics.jsonl` when it starts and when it is done.
"""

import json
from concurrent.futures import ThreadPoolExecutor

from etils import epath

FILE, PARTS = "metrics.jsonl", "metrics"
TRIES = 3
READERS = 16  # parts that are read at once: each takes an object store tens of milliseconds


def in_bucket(path: epath.PathLike) -> bool:
    return "://" in str(path)


def part_path(run: epath.Path, begin: int, end: int) -> epath.Path:
    """Returns where the records `begin` to `end` (exclusive) of one start of a run lie."""
    return run / PARTS / f"{begin:09d}-{end:09d}.jsonl"


def parts(run: epath.Path) -> list[epath.Path]:
    """Returns the parts that there are, by their first record."""
    try:
        return sorted(path for path in (run / PARTS).iterdir() if path.suffix == ".jsonl")
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_lines(run: epath.Path) -> list[str]:
    """Returns the lines of a run's records in their order, of each step and split the first.

    Lines that are no records, as a crash may leave the last one, are among them.

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


def _read(run: epath.Path) -> list[str]:
    # In this order: a run writes what it merged before it deletes what that was merged from.
    listed = parts(run)
    file = run / FILE
    texts = [] if listed and not file.exists() else [file.read_text()]
    with ThreadPoolExecutor(READERS) as pool:
        texts += pool.map(lambda path: path.read_text(), listed)
    return [line for text in texts for line in text.splitlines()]


def key(line: str) -> tuple[int, str] | None:
    """Returns the step and split of a record, or None of a line that is none."""
    try:
        record = json.loads(line)
        return record["step"], record["split"]
    except (ValueError, KeyError, TypeError):
        return None


def _unique(lines: list[str]) -> list[str]:
    found, kept = set(), []
    for line in lines:
        name = key(line)
        if name is None or name not in found:
            kept.append(line)
        if name is not None:
            found.add(name)
    return kept
