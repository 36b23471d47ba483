"""A study's commands end it, except those that may fail, and then only by a run that failed."""

import subprocess
from types import SimpleNamespace

import pytest

from var_jax.studies import command_rows


def test_seconds_are_those_of_a_whole_file_alone(tmp_path):
    """Samples that were begun, which lie beside the file until it is whole, or are whole, are made
    in less time than all of them take."""
    out = tmp_path / "samples.npz"
    seconds = command_rows.seconds_to_make(out, lambda: None)
    assert seconds is not None and seconds >= 0
    (tmp_path / "samples.npz.partial").mkdir()
    assert command_rows.seconds_to_make(out, lambda: None) is None
    (tmp_path / "samples.npz.partial").rmdir()
    out.touch()
    assert command_rows.seconds_to_make(out, lambda: None) is None


@pytest.mark.parametrize(
    ("code", "may_fail", "result"),
    [(0, False, True), (0, True, True), (1, True, False)],
    ids=["well", "well_although_it_may_fail", "diverged"],
)
def test_command_tells_whether_it_ended_well(monkeypatch, code, may_fail, result):
    """A run that diverged is a row of its study; exit code 1 is that of a run that failed."""
    monkeypatch.setattr(subprocess, "run", lambda command: SimpleNamespace(returncode=code))
    assert command_rows.var_jax("train", may_fail=may_fail) is result


@pytest.mark.parametrize(("code", "may_fail"), [(1, False), (2, True), (75, True), (130, True)])
def test_command_ends_its_study_by_its_own_code(monkeypatch, code, may_fail):
    """A mistake, a preemption or an interruption says nothing of a run's quality, so that no row
    is made of it."""
    monkeypatch.setattr(subprocess, "run", lambda command: SimpleNamespace(returncode=code))
    with pytest.raises(SystemExit) as ended:
        command_rows.var_jax("train", may_fail=may_fail)
    assert ended.value.code == code
