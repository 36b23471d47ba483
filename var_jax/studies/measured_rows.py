"""Rows of a study's measurements.

Rows are saved as soon as they are measured, so that a killed run resumes where it was.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from var_jax.config.strict import differences
from var_jax.errors import UserError
from var_jax.evaluate import features, image_sets
from var_jax.io import atomic
from var_jax.io.json import read_object

ROWS_FORMAT = 1


class Rows:
    """The measured rows of a study by name, in a file that is written anew after each row.

    Args:
      path: the file; its directory is made.
      about: the settings and inputs that the rows depend on. A value of None is not known in this
        run (or was not in an earlier one), and fits any other.
      notes: remarks for a reader of the file.
    Raises:
      UserError: the file holds rows of another study or of other settings, or no rows at all; or it
        cannot be written.
    """

    def __init__(self, path: epath.PathLike, about: Mapping[str, Any], notes: Sequence[str] = ()):
        self.path, self.notes = epath.Path(path), list(notes)
        _make_directory(self.path.parent)
        self.about: dict[str, Any] = json.loads(json.dumps(about))
        self.rows: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            self._read()

    def _read(self):
        """Reads the rows of an earlier run.

        Raises:
          UserError: they are not rows of this study and these settings.
        """
        content = read_object(self.path)
        file_about, rows = content.get("about"), content.get("rows")
        if (
            content.get("format") != ROWS_FORMAT
            or not isinstance(file_about, dict)
            or not isinstance(rows, dict)
        ):
            raise UserError(
                f"{self.path} holds no rows of a study; remove it, or give another --out"
            )
        unknown = {
            key
            for key in self.about.keys() & file_about.keys()
            if None in (self.about[key], file_about[key])
        }
        known_here, known_there = (
            {key: _in_words_of_today(value) for key, value in about.items() if key not in unknown}
            for about in (self.about, file_about)
        )
        # The shortest first: a fingerprint that differs says less than the seed that made it.
        different = sorted(differences(known_here, known_there), key=len)
        if different:
            raise UserError(
                f"{self.path} is of other settings: {'; '.join(different[:4])}; remove it, or give "
                "another --out"
            )
        for key in unknown:
            if file_about[key] is not None:
                self.about[key] = file_about[key]
        self.rows = rows

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self.rows[name]

    def missing(self, names: Sequence[str]) -> list[str]:
        """Returns the names that are not measured yet, each once, in order."""
        return [name for name in dict.fromkeys(names) if name not in self.rows]

    def fill(self, names: Sequence[str], measure: Callable[[str], Mapping[str, Any]]):
        """Measures rows by name, with a progress bar, and keeps each as soon as it is measured.

        Raises:
          UserError: the file cannot be written.
        """
        with features.progress(len(names), "rows", " rows") as bar:
            for name in names:
                bar.set_description(name[:40])
                self.add(name, measure(name))
                bar.update()

    def add(self, name: str, row: Mapping[str, Any]):
        """Keeps a row, in the file too.

        Raises:
          UserError: the file cannot be written.
        """
        self.rows[name] = json.loads(json.dumps(row))
        content = {
            "format": ROWS_FORMAT,
            "about": self.about,
            "notes": self.notes,
            "rows": self.rows,
        }
        atomic.save(self.path, json.dumps(content, indent=1, ensure_ascii=False), "the study")


def _in_words_of_today(value: Any) -> Any:
    """Returns a value of `about` with its text on resizing as this version writes it."""
    if not isinstance(value, Mapping) or not isinstance(value.get("resize"), str):
        return value
    return {**value, "resize": image_sets.current_text(value["resize"])}


def _make_directory(path: epath.Path):
    """Makes a directory, and checks that files can be written there before hours of work."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to {path}: {error.strerror or error}; give another --out"
        ) from error
    if "://" not in str(path) and not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {path}: no permission; give another --out")


def format_metric(metric: Mapping[str, Any], digits: int = 1) -> str:
    """Returns a value with its interval, as tables show them."""
    value = f"{metric['value']:.{digits}f}"
    ends = metric.get("ci95")
    return value if ends is None else f"{value} ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})"
