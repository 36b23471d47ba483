"""The package's log on stderr: what normally happens is no warning."""

import logging

import pytest

from var_jax.cli import log


@pytest.mark.parametrize(
    ("name", "level", "line"),
    [
        ("var_jax.data.sources", logging.INFO, "copying 3 files"),
        ("var_jax.data.sources", logging.WARNING, "warning: copying 3 files"),
        ("orbax", logging.WARNING, "warning: orbax: copying 3 files"),
    ],
)
def test_stderr_tells_notes_from_warnings(name, level, line, capsys):
    """Notes stand alone, warnings say that they are, and another library's say whose they are."""
    log.Stderr().emit(logging.LogRecord(name, level, "file.py", 1, "copying %d files", (3,), None))
    assert capsys.readouterr().err == f"{line}\n"
