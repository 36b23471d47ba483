"""Rows at a constant rate, annealed ones, and those in the middle of a schedule."""

import json

import pytest

from var_jax.errors import UserError
from var_jax.scaling import row_readings, table

COOLDOWN = {"steps": 10, "optimizer": {"schedule": "cooldown", "cooldown_steps": 2}}


@pytest.mark.parametrize(
    "config, step, phase",
    [
        (COOLDOWN, 8, "constant"),
        (COOLDOWN, 9, "falling"),
        (COOLDOWN, 10, "annealed"),
        ({"steps": 10, "optimizer": {"schedule": "cosine"}}, 1, "falling"),
        ({"steps": 10, "optimizer": {"schedule": "lin0"}}, 10, "annealed"),
        ({"steps": 10, "optimizer": {"schedule": "constant"}}, 10, "constant"),
        ({}, 10, "unknown"),
    ],
)
def test_phase_of_a_step_follows_from_the_schedule(config, step, phase):
    """A cooldown is at a constant rate until it begins; other schedules fall until their end."""
    assert row_readings.phase_of(config, step) == phase


def csv(path, rows, schedules=None):
    """A table of rows (run, tokens, loss), with each run's schedule."""
    head = "run,params,tokens,loss" + (",schedule" if schedules else "")
    lines = [head]
    for run, tokens, loss in rows:
        cells = [run, 1e6, tokens, loss, *([schedules[run]] if schedules else [])]
        lines.append(",".join(map(str, cells)))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


ROWS = [(run, tokens, 5 - tokens) for run in "ab" for tokens in (1, 2, 3)]


def test_read_takes_annealed_ends_of_a_schedule_and_says_so(tmp_path):
    """Of runs whose column says cosine, the last rows alone are points; the middle ones are dropped
    with the reason, and another option takes all of them."""
    path = csv(tmp_path / "a.csv", ROWS, {"a": "cosine", "b": "cosine"})
    runs = table.read(path)
    assert list(runs["tokens"]) == [3, 3]
    assert runs.facts["rows"].startswith("annealed losses")
    assert ("a", "2 validations come before the end of its schedule") in runs.dropped
    assert len(table.read(path, rows="curve")) == 6


def test_read_takes_all_rows_of_a_constant_rate(tmp_path):
    """They are a training curve, of which no part ends lower than another run of that length."""
    path = csv(tmp_path / "a.csv", ROWS, {"a": "constant", "b": "constant"})
    runs = table.read(path)
    assert len(runs) == 6 and runs.notes == ()
    assert runs.facts["rows"].startswith("losses at a constant rate")
    assert list(table.read(path, rows="last")["tokens"]) == [3, 3]


def test_read_tells_annealed_runs_from_those_at_a_constant_rate(tmp_path):
    """Runs of both kinds are no points of one law: the annealed ones stay, with a warning, and the
    option takes the others."""
    path = csv(tmp_path / "a.csv", ROWS, {"a": "constant", "b": "cosine"})
    runs = table.read(path)
    assert list(runs.run) == ["b"] and runs.notes[0].startswith("mixed-schedules: 3 rows")
    assert list(table.read(path, rows="curve").run) == ["a"] * 3


def test_read_of_several_rows_without_a_schedule_names_its_reading(tmp_path):
    """Nothing tells whether they are annealed: they are taken as curves, with a warning that names
    the option for last rows."""
    path = csv(tmp_path / "a.csv", ROWS)
    assert "--rows last" in table.read(path).notes[0] and len(table.read(path)) == 6
    last = table.read(path, rows="last")
    assert list(last["tokens"]) == [3, 3] and last.notes == ()


def test_read_takes_the_constant_part_of_cooldowns_by_the_option(tmp_path):
    """A sweep's cooldowns have rows at a constant rate before they fall, which `curve` takes; by
    default the annealed last row is the only one."""
    directory = tmp_path / "r"
    directory.mkdir()
    meta = {"params": {"total": 1000, "body": 700}, "tokens_per_step": 10, "flops_per_step": 50}
    lines = [{"step": step, "split": "val", "loss": 9.0 - step / 10} for step in (4, 8, 9, 10)]
    for name, content in (("meta", meta), ("status", {"state": "done"}), ("config", COOLDOWN)):
        (directory / f"{name}.json").write_text(json.dumps(content))
    (directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert list(table.read(str(tmp_path))["tokens"]) == [100]
    assert list(table.read(str(tmp_path), rows="curve")["tokens"]) == [40, 80]


def test_read_of_runs_that_never_end_their_schedule_is_refused(tmp_path):
    """No row is annealed: the error has the reason."""
    directory = tmp_path / "r"
    directory.mkdir()
    meta = {"params": {"total": 1000, "body": 700}, "tokens_per_step": 10, "flops_per_step": 50}
    record = {"step": 9, "split": "val", "loss": 3.0}
    for name, content in (("meta", meta), ("status", {"state": "done"}), ("config", COOLDOWN)):
        (directory / f"{name}.json").write_text(json.dumps(content))
    (directory / "metrics.jsonl").write_text(json.dumps(record))
    with pytest.raises(UserError, match="no runs.*before the end of its schedule"):
        table.read(str(tmp_path))
