"""Reads the files that tables of runs come in, as rows whose values are not checked yet."""

import csv
import json
import math
from typing import Any

from etils import epath

from var_jax.errors import UserError
from var_jax.io.failed_downloads import refuse_failed_download


def cell_number(value: Any) -> float:
    """Returns a cell as a float, or NaN if it is no number; a list of one number counts as it."""
    if isinstance(value, bool):
        return math.nan
    if isinstance(value, str):
        value = value.strip()
        if value.startswith("[") and value.endswith("]"):
            value = value[1:-1]
    if isinstance(value, list) and len(value) == 1:
        return cell_number(value[0])
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):  # the last of a number of 400 digits
        return math.nan


def csv_records(source: epath.Path) -> list[dict]:
    """Returns the rows of a CSV file with a header, or of a TSV file, as texts by column.

    Raises:
      UserError: it is no such table.
    """
    delimiter = "\t" if source.suffix.lower() == ".tsv" else ","
    try:
        rows = list(csv.reader(file_text(source).splitlines(), delimiter=delimiter))
    except csv.Error as error:
        raise UserError(f"{source} does not read as a table: {error}") from error
    if not rows:
        return []
    header = [name.strip() for name in rows[0]]
    _require_delimiter(
        source, ",".join(rows[0]) if delimiter == "," else "\t".join(rows[0]), delimiter
    )
    if len(set(header)) < len(header):
        raise UserError(f"{source} names a column twice in its header: {', '.join(header)}")
    records = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(
            cell.strip() for cell in row
        ):  # a line of separators only, as spreadsheets write
            continue
        if len(row) != len(header):
            raise UserError(
                f"{source} line {number} has {len(row)} fields; the header has {len(header)}"
            )
        records.append(dict(zip(header, row, strict=True)))
    return records


def _require_delimiter(source: epath.Path, header: str, delimiter: str):
    """Raises UserError if the header uses another separator than the file's suffix implies."""
    counts = {other: header.count(other) for other in ",;\t|"}
    used = max(counts, key=lambda other: (counts[other], other == delimiter))
    if counts[used] > counts[delimiter] == 0:
        needed = "commas" if delimiter == "," else "tabs"
        hint = ": name it .tsv" if used == "\t" else ""
        raise UserError(
            f"{source} separates its columns by {used!r}; a {source.suffix.lower()} file needs "
            f"{needed}, and numbers with decimal points{hint}; save it so"
        )


def jsonl_records(source: epath.Path) -> list[dict]:
    """Returns the objects of a file that has one JSON object per line.

    Raises:
      UserError: a line is no JSON object.
    """
    records = []
    for number, line in enumerate(file_text(source).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise UserError(f"{source} line {number} is not a JSON object")
        records.append(record)
    return records


def file_text(source: epath.Path) -> str:
    """Returns the text of a table's file, without a byte-order mark.

    Raises:
      UserError: it is no text in UTF-8.
    """
    refuse_failed_download(source, "a table")
    try:
        return source.read_text().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 text; save it as UTF-8") from error


def json_records(source: epath.Path) -> list[dict]:
    """Returns the objects of a JSON file that holds a list of them.

    Raises:
      UserError: it holds something else.
    """
    try:
        records = json.loads(file_text(source))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} does not read as JSON: {error}") from error
    if not (isinstance(records, list) and all(isinstance(record, dict) for record in records)):
        raise UserError(f"{source} is not a list of objects, one for each run")
    return records
