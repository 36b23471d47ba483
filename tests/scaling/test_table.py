import json
import math
import pathlib

import numpy as np
import pytest

from var_jax.errors import UserError
from var_jax.scaling import table

DATA = pathlib.Path(__file__).parent / "data"


def write(path, text):
    path.write_text(text)
    return str(path)


def test_csv_and_jsonl_say_the_same(tmp_path):
    rows = [{"run": "a", "params": 1e6, "loss": 3.5}, {"run": "b", "params": 2e6, "loss": 3.25}]
    text = "run,params,loss\n" + "".join(f"{r['run']},{r['params']},{r['loss']}\n" for r in rows)
    one = table.read(write(tmp_path / "a.csv", text))
    two = table.read(write(tmp_path / "a.jsonl", "".join(json.dumps(r) + "\n" for r in rows)))
    for name in ("params", "loss"):
        np.testing.assert_array_equal(one[name], two[name])
    assert list(one.run) == list(two.run) == ["a", "b"]
    assert one.fitted == ["loss"]


def test_a_strangers_file_with_lists_of_one_number():
    runs = table.read(str(DATA / "gadre_104.csv"), {"run": "name", "loss": "loss0"})
    assert len(runs) == 104
    assert runs.run[0] == "c4_original-d=1024_l=24_h=8-0.25"
    assert runs["loss"][0] == pytest.approx(4.257023584842682)
    assert runs.fitted == ["loss"]


def test_bad_repeated_and_contradicting_rows_are_named_and_left_out(tmp_path):
    text = "run,params,loss\na,1e6,3\na,1e6,3\nb,2e6,nan\nc,3e6,2.5\nc,3e6,2.7\nd,-4e6,2\ne,5e6,oops\nf,6e6,2.2\n"
    runs = table.read(write(tmp_path / "a.csv", text))
    reasons = dict(runs.dropped)
    assert list(runs.complete("params", "loss").run) == ["a", "f"]
    assert reasons["a"] == "repeats another row"
    assert "contradicts" in reasons["c"]
    assert "loss is 'nan'" in reasons["b"] and "'-4e6'" in reasons["d"] and "'oops'" in reasons["e"]
    assert {note.split(":")[0] for note in runs.notes} == {"bad-rows", "duplicate-rows", "contradicting-rows"}


def test_rows_without_names_are_runs_of_their_own_and_seeds_are_no_duplicates(tmp_path):
    runs = table.read(write(tmp_path / "a.csv", "params,loss\n1e6,3\n1e6,3.01\n1e6,3\n"))
    assert list(runs["loss"]) == [3, 3.01]


def test_finals_are_the_rows_with_the_most_tokens():
    runs = table.build([{"run": r, "tokens": t, "loss": x} for r, t, x in [("a", 2, 3), ("a", 1, 4), ("b", 1, 5)]])
    assert list(runs.finals()["loss"]) == [3, 5]


@pytest.mark.parametrize("name, text, mapping, words", [
    ("a.txt", "x", {}, "neither"), ("a.csv", "", {}, "no runs"), ("a.csv", "run,loss\n", {}, "no runs"),
    ("a.csv", "loss,loss\n1,2\n", {}, "twice"), ("a.csv", "loss,params\n1\n", {}, "line 2"),
    ("a.jsonl", "{}\n[1]\n", {}, "line 2"), ("a.jsonl", "{\n", {}, "line 1"),
    ("a.csv", "name,loss0\na,1\n", {"loss": "los0"}, "did you mean 'loss0'"),
])
def test_a_malformed_file_is_one_line_that_names_it(tmp_path, name, text, mapping, words):
    path = write(tmp_path / name, text)
    with pytest.raises(UserError, match=words) as error:
        table.read(path, mapping)
    assert "\n" not in str(error.value)


def test_a_missing_file_or_binary_one_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        table.read(str(tmp_path / "none.csv"))
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="UTF-8"):
        table.read(str(tmp_path / "b.csv"))


def test_a_sweeps_finished_runs(tmp_path):
    meta = {"params": {"total": 1000, "body": 700}, "tokens_per_step": 10, "flops_per_step": {"exact": 50, "6nd": 60}}
    lines = [{"step": 1, "split": "train", "loss": 9.0},
             {"step": 2, "split": "val", "loss": 4.0, "loss_scale": [1, 2], "accuracy_last": 0.25},
             {"step": 4, "split": "val", "loss": 3.0, "loss_scale": [1, 2], "accuracy_last": 0.5}]
    for name, state in (("r1", "done"), ("r2", "running"), ("r3", "done")):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "status.json").write_text(json.dumps({"state": state}))
        (directory / "meta.json").write_text(json.dumps(meta) if name != "r3" else "{}")
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "notes").mkdir()
    runs = table.read(str(tmp_path))
    assert list(runs.run) == ["r1", "r1"]
    assert runs.fitted == ["err_last", "loss"]
    last = runs.finals()
    assert [last[n][0] for n in ("params", "params_body", "tokens", "compute", "compute_6nd", "loss", "err_last")] == [
        1000, 700, 40, 200, 240, 3.0, 0.5]
    reasons = dict(runs.dropped)
    assert "running" in reasons["r2"] and "cannot be read" in reasons["r3"]


def finished(directory, lines, schedule=None, steps=4):
    directory.mkdir()
    meta = {"params": {"total": 1000, "body": 700}, "tokens_per_step": 10, "flops_per_step": 50}
    (directory / "meta.json").write_text(json.dumps(meta))
    (directory / "status.json").write_text('{"state": "done"}')
    (directory / "metrics.jsonl").write_text("\n".join(line if isinstance(line, str) else json.dumps(line)
                                                       for line in lines))
    if schedule:
        (directory / "config.json").write_text(json.dumps({"steps": steps, "optimizer": {"schedule": schedule}}))


def test_lines_that_are_no_records_of_a_step_are_skipped_by_name(tmp_path):
    good = {"step": 4, "split": "val", "loss": 3.0}
    bad = [{"split": "val", "loss": 4.0}, [1, 2], "7", "{cut", '{"step": null}', '{"step": "4"}']
    finished(tmp_path / "a", [*bad, good])
    runs = table.read(str(tmp_path))
    assert list(runs["loss"]) == [3.0]
    assert runs.notes == ("bad-rows: 6 lines of metrics.jsonl are no JSON objects with a step and are left out",)
    assert [reason.split(" is no")[0] for _, reason in runs.dropped] == [f"metrics.jsonl line {i}" for i in range(1, 7)]


def test_a_loss_that_is_recorded_under_two_names_is_fitted_once(tmp_path):
    finished(tmp_path / "a", [{"step": 4, "split": "val", "loss": 3.0, "loss_mean": 3.0, "loss_last": 3.5,
                               "accuracy_mean": 0.25, "accuracy_last": 0.5}])
    assert sorted(table.read(str(tmp_path)).fitted) == ["err_last", "err_mean", "loss", "loss_last"]


def test_a_run_that_cools_down_gives_its_end_alone(tmp_path):
    lines = [{"step": step, "split": "val", "loss": 9.0 - step} for step in (1, 2, 3, 4)]
    finished(tmp_path / "cooled", lines, "cooldown")
    finished(tmp_path / "cosine", lines, "cosine")
    finished(tmp_path / "unfinished", lines[:3], "cooldown")
    runs = table.read(str(tmp_path))
    assert list(runs.run) == ["cooled"] + ["cosine"] * 4
    assert runs["loss"][0] == 5.0 and runs["tokens"][0] == 40
    reasons = dict(runs.dropped)
    assert reasons["cooled"].startswith("3 validations") and reasons["unfinished"].startswith("3 validations")


def test_numbers_that_are_none():
    assert math.isnan(table.build([{"run": "a", "loss": None}, {"run": "b", "loss": 1}])["loss"][0])
