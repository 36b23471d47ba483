"""Tables of runs from CSV and JSONL files and from sweeps: values, defects and refusals."""

import json
import math
import pathlib
import re

import numpy as np
import pytest
from etils import epath

from var_jax.errors import UserError
from var_jax.scaling import sweep_runs, table

DATA = pathlib.Path(__file__).parent / "data"


def write(path, text):
    path.write_text(text)
    return str(path)


def test_read_csv_equals_jsonl(tmp_path):
    """The same rows give the same columns, run names and fitted losses from a CSV file and from a
    JSONL file."""
    rows = [{"run": "a", "params": 1e6, "loss": 3.5}, {"run": "b", "params": 2e6, "loss": 3.25}]
    text = "run,params,loss\n" + "".join(f"{r['run']},{r['params']},{r['loss']}\n" for r in rows)
    one = table.read(write(tmp_path / "a.csv", text))
    two = table.read(write(tmp_path / "a.jsonl", "".join(json.dumps(r) + "\n" for r in rows)))
    for name in ("params", "loss"):
        np.testing.assert_array_equal(one[name], two[name])
    assert list(one.run) == list(two.run) == ["a", "b"]
    assert one.fitted == ["loss"]


def test_read_takes_lists_of_one_number_as_numbers():
    """A published table writes its losses as "[4.257]"."""
    runs = table.read(str(DATA / "gadre_104.csv"), {"run": "name", "loss": "loss0"})
    assert len(runs) == 104
    assert runs.run[0] == "c4_original-d=1024_l=24_h=8-0.25"
    assert runs["loss"][0] == pytest.approx(4.257023584842682)
    assert runs.fitted == ["loss"]


def test_read_names_and_leaves_out_bad_repeated_and_contradicting_rows(tmp_path):
    """Each row that is left out has its reason, and each kind of defect a note."""
    text = (
        "run,params,loss\na,1e6,3\na,1e6,3\nb,2e6,nan\nc,3e6,2.5\nc,3e6,2.7\n"
        "d,-4e6,2\ne,5e6,oops\nf,6e6,2.2\n"
    )
    runs = table.read(write(tmp_path / "a.csv", text))
    reasons = dict(runs.dropped)
    assert list(runs.complete("params", "loss").run) == ["a", "f"]
    assert reasons["a"] == "repeats another row"
    assert "contradicts" in reasons["c"]
    assert "loss is 'nan'" in reasons["b"] and "'-4e6'" in reasons["d"] and "'oops'" in reasons["e"]
    assert {note.split(":")[0] for note in runs.notes} == {
        "bad-rows",
        "duplicate-rows",
        "contradicting-rows",
    }


def test_read_takes_rows_without_names_as_separate_runs(tmp_path):
    """Equal rows are left out, and others of the same size stay."""
    runs = table.read(write(tmp_path / "a.csv", "params,loss\n1e6,3\n1e6,3.01\n1e6,3\n"))
    assert list(runs["loss"]) == [3, 3.01]


def test_finals_are_the_rows_with_the_most_tokens():
    """The final row of a run is the one with the most tokens, even if it is not the last one of the
    table."""
    runs = table.build(
        [{"run": r, "tokens": t, "loss": x} for r, t, x in [("a", 2, 3), ("a", 1, 4), ("b", 1, 5)]]
    )
    assert list(runs.finals()["loss"]) == [3, 5]


@pytest.mark.parametrize(
    "name, text, mapping, words",
    [
        ("a.txt", "x", {}, "neither"),
        ("a.csv", "", {}, "empty file"),
        ("a.csv", "run,loss\n", {}, "no runs"),
        ("a.csv", "loss,loss\n1,2\n", {}, "twice"),
        ("a.csv", "loss,params\n1\n", {}, "line 2"),
        ("a.jsonl", "{}\n[1]\n", {}, "line 2"),
        ("a.jsonl", "{\n", {}, "line 1"),
        ("a.csv", "name,loss0\na,1\n", {"loss": "los0"}, "did you mean 'loss0'"),
    ],
)
def test_read_names_a_malformed_file_in_one_line(tmp_path, name, text, mapping, words):
    """The error has the line or the column, and the nearest known name."""
    path = write(tmp_path / name, text)
    with pytest.raises(UserError, match=words) as error:
        table.read(path, mapping)
    assert "\n" not in str(error.value)


def test_read_names_a_missing_or_binary_file(tmp_path):
    """A file that does not exist and a file that is no text are refused, each with its reason."""
    with pytest.raises(UserError, match="does not exist"):
        table.read(str(tmp_path / "none.csv"))
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="UTF-8"):
        table.read(str(tmp_path / "b.csv"))


def test_read_sweep_takes_finished_runs(tmp_path):
    """A finished run has a row per validation with its sizes, tokens and FLOPs; running and damaged
    ones are named."""
    meta = {
        "params": {"total": 1000, "body": 700},
        "tokens_per_step": 10,
        "flops_per_step": {"exact": 50, "6nd": 60},
    }
    lines = [
        {"step": 1, "split": "train", "loss": 9.0},
        {"step": 2, "split": "val", "loss": 4.0, "loss_scale": [1, 2], "accuracy_last": 0.25},
        {"step": 4, "split": "val", "loss": 3.0, "loss_scale": [1, 2], "accuracy_last": 0.5},
    ]
    for name, state in (("r1", "done"), ("r2", "running"), ("r3", "done")):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "status.json").write_text(json.dumps({"state": state}))
        (directory / "meta.json").write_text(json.dumps(meta) if name != "r3" else "{}")
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "notes").mkdir()
    runs = table.read(str(tmp_path))
    assert list(runs.run) == ["r1", "r1"]
    assert runs.fitted == ["loss", "err_last"]
    last = runs.finals()
    assert [
        last[n][0]
        for n in ("params", "params_body", "tokens", "compute", "compute_6nd", "loss", "err_last")
    ] == [1000, 700, 40, 200, 240, 3.0, 0.5]
    reasons = dict(runs.dropped)
    assert "running" in reasons["r2"] and "cannot be read" in reasons["r3"]
    assert runs.facts["schedules"].startswith("1 runs unknown")
    assert "0 of 1 sizes" in runs.facts["learning rates"]


def finished(directory, lines, schedule=None, steps=4):
    directory.mkdir()
    meta = {"params": {"total": 1000, "body": 700}, "tokens_per_step": 10, "flops_per_step": 50}
    (directory / "meta.json").write_text(json.dumps(meta))
    (directory / "status.json").write_text('{"state": "done"}')
    (directory / "metrics.jsonl").write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    if schedule:
        (directory / "config.json").write_text(
            json.dumps({"steps": steps, "optimizer": {"schedule": schedule}})
        )


def test_read_sweep_names_lines_without_a_step(tmp_path):
    """Six kinds of damaged lines are left out by number, and the good one stays."""
    good = {"step": 4, "split": "val", "loss": 3.0}
    bad = [{"split": "val", "loss": 4.0}, [1, 2], "7", "{cut", '{"step": null}', '{"step": "4"}']
    finished(tmp_path / "a", [*bad, good])
    runs = table.read(str(tmp_path))
    assert list(runs["loss"]) == [3.0]
    assert runs.notes == (
        "bad-rows: 6 lines of metrics.jsonl are not JSON objects with a step and are left out",
    )
    assert [reason.split(" is no")[0] for _, reason in runs.dropped] == [
        f"metrics.jsonl line {i}" for i in range(1, 7)
    ]


def test_read_sweep_fits_equal_losses_once(tmp_path):
    """`loss_mean` is the same as `loss` and is no law of its own."""
    finished(
        tmp_path / "a",
        [
            {
                "step": 4,
                "split": "val",
                "loss": 3.0,
                "loss_mean": 3.0,
                "loss_last": 3.5,
                "accuracy_mean": 0.25,
                "accuracy_last": 0.5,
            }
        ],
    )
    assert sorted(table.read(str(tmp_path)).fitted) == ["err_last", "err_mean", "loss", "loss_last"]


def test_read_sweep_takes_only_the_end_of_a_cooldown(tmp_path):
    """Validations before the end of a cooldown or a cosine are no annealed losses; only the rows at
    the ends stay."""
    lines = [{"step": step, "split": "val", "loss": 9.0 - step} for step in (1, 2, 3, 4)]
    finished(tmp_path / "cooled", lines, "cooldown")
    finished(tmp_path / "cosine", lines, "cosine")
    finished(tmp_path / "unfinished", lines[:3], "cooldown")
    runs = table.read(str(tmp_path))
    assert list(runs.run) == ["cooled", "cosine"]
    assert list(runs["loss"]) == [5.0, 5.0] and list(runs["tokens"]) == [40, 40]
    reasons = dict(runs.dropped)
    assert reasons["cooled"].startswith("3 validations") and reasons["unfinished"].startswith(
        "3 validations"
    )


def test_build_reads_missing_numbers_as_nan():
    """A loss that is null in the table is NaN."""
    assert math.isnan(table.build([{"run": "a", "loss": None}, {"run": "b", "loss": 1}])["loss"][0])


@pytest.mark.parametrize("names", [range(3), [0.0, 1.0, 2.0], [False, True, "x"], ["0", "1", "2"]])
def test_build_takes_a_run_called_zero_by_its_name(names):
    """Three runs of two rows each stay three runs, whatever the first one's name is as a truth
    value."""
    records = [
        {"run": name, "params": 10.0 ** (6 + i), "tokens": t, "loss": 3.0 - i - t / 10}
        for i, name in enumerate(names)
        for t in (1, 2)
    ]
    runs = table.build(records)
    assert list(runs.run) == [str(name) for name in names for _ in (1, 2)]
    assert len(runs.finals()) == 3 and runs.notes == ()


def test_build_takes_minus_zero_for_zero():
    """Rows of one run must not fall apart where arithmetic wrote its number as -0.0."""
    records = [{"run": name, "params": 1e6, "tokens": 2 - i} for i, name in enumerate((0.0, -0.0))]
    runs = table.build(records)
    assert list(runs.run) == ["0.0", "0.0"]


def test_build_names_numbers_beyond_floats():
    """JSON may hold an integer that no float does: it is a bad cell like any other, and its 400
    digits are not printed."""
    runs = table.build([{"run": i, "params": 1e6, "loss": 10**400} for i in range(2)])
    assert len(runs.dropped) == 2 and np.isnan(runs["loss"]).all()
    assert all("loss is 1000" in reason and len(reason) < 100 for _, reason in runs.dropped)


@pytest.mark.parametrize("empty", [None, "", "  ", math.nan])
def test_build_counts_rows_without_a_name_as_runs_of_their_own(empty):
    """An empty cell is no name: rows that share it are not one run."""
    runs = table.build(
        [{"run": empty, "params": 1e6, "loss": 3}, {"run": empty, "params": 2e6, "loss": 2}]
    )
    assert list(runs.run) == ["row 1", "row 2"] and runs.notes == ()


@pytest.mark.parametrize("empty", ["", None, math.nan, "nan", "n/a"])
@pytest.mark.parametrize("column", ["loss_last", "tokens", "compute"])
@pytest.mark.parametrize("named", [True, False])
def test_build_counts_equal_rows_once_where_a_cell_is_empty(empty, column, named):
    """NaN is unequal to itself, which makes two equal rows neither repeats of each other nor
    contradictions."""
    row = {
        "params": 1e6,
        "tokens": 1e9,
        "compute": 1e15,
        "loss": 3.0,
        "loss_last": 3.5,
        column: empty,
    }
    runs = table.build([{**row, "run": "a"} if named else row] * 2)
    assert [reason for _, reason in runs.dropped if "repeats" in reason] == [
        "repeats another row"
    ] and len(runs) == 1
    assert "duplicate-rows: 1 rows repeat others and count once" in runs.notes
    assert not [note for note in runs.notes if note.startswith("contradicting")]


def test_build_still_finds_contradictions_where_a_cell_is_empty():
    """Two losses of one run at one point contradict each other, whether or not another cell of both
    is empty."""
    runs = table.build(
        [{"run": "a", "params": 1e6, "tokens": "", "loss": loss} for loss in (3.0, 2.0)]
    )
    assert len(runs) == 0 and "contradicting-rows" in runs.notes[-1]


def test_finals_are_not_the_row_without_tokens():
    """A row whose tokens are missing comes before those that have them, wherever it stands."""
    for order in ([None, 1, 2], [2, None, 1], [1, 2, None]):
        runs = table.build(
            [{"run": "a", "params": 1e6, "tokens": t, "loss": 5.0 - (t or 0)} for t in order]
        )
        assert list(runs.finals()["loss"]) == [3.0]
    # A column without one number orders nothing: compute does.
    runs = table.build([{"run": "a", "tokens": "", "compute": c, "loss": 5.0 - c} for c in (2, 1)])
    assert list(runs.finals()["loss"]) == [3.0]


def test_read_orders_rows_by_step_and_notes_missing_columns(tmp_path):
    """Rows of a run at different steps contradict nothing; its end is the last step, and a note
    names what is missing for laws of tokens and compute."""
    text = "run,params,step,loss\n" + "".join(
        f"{r},{10 ** (6 + r)},{s},{4 - r / 2 - s / 100}\n" for r in range(3) for s in (20, 30, 10)
    )
    runs = table.read(write(tmp_path / "a.csv", text))
    assert list(runs.finals()["step"]) == [30, 30, 30] and runs.dropped == ()
    assert [note.split(":")[0] for note in runs.notes] == ["curve-rows", "step-alone"]
    assert "tokens or compute" in runs.notes[1]
    with_tokens = table.build(
        [{"run": "a", "step": s, "tokens": 10 * s, "loss": 4 - s} for s in (1, 2)]
    )
    assert with_tokens.notes == ()


@pytest.mark.parametrize(
    "name, separator, words",
    [
        ("a.csv", ";", "';'; a .csv file needs commas"),
        ("a.csv", "\t", "name it .tsv"),
        ("a.csv", "|", "'|'; a .csv file needs commas"),
        ("a.tsv", ",", "','; a .tsv file needs tabs"),
        ("a.tsv", ";", "';'; a .tsv file needs tabs"),
    ],
)
def test_read_names_the_separator_that_a_file_uses(tmp_path, name, separator, words):
    """A spreadsheet with decimal commas separates columns by semicolons, and the error says so,
    rather than that a column is missing."""
    text = separator.join(("run", "params", "loss")) + "\n" + separator.join(("a", "1", "3"))
    with pytest.raises(UserError, match=re.escape(words)) as error:
        table.read(write(tmp_path / name, text))
    assert name in str(error.value) and "\n" not in str(error.value)


def test_read_skips_lines_of_separators_alone(tmp_path):
    """What a spreadsheet leaves below a table is no run; a run whose other cells are empty is."""
    runs = table.read(write(tmp_path / "a.csv", "run,params,loss\na,1e6,3\n,,\n , ,\nb,,\n"))
    assert list(runs.run) == ["a", "b"]


def test_build_reads_booleans_as_nan():
    """`true` in a JSONL file is no loss of 1."""
    assert math.isnan(table.build([{"run": "a", "loss": True}, {"run": "b", "loss": 1}])["loss"][0])


def test_read_sweep_fits_equal_nan_losses_once(tmp_path):
    """The mean of the losses is NaN where they are, and NaN is unequal to itself."""
    finished(tmp_path / "a", [{"step": 4, "split": "val", "loss": 3.0, "loss_mean": 3.0}])
    finished(tmp_path / "b", ['{"step": 4, "split": "val", "loss": NaN, "loss_mean": NaN}'])
    assert table.read(str(tmp_path)).fitted == ["loss"]


def test_overrides_of_a_run_keep_its_size_and_the_share_of_its_cooldown(tmp_path):
    """A proposed run has its neighbor's size and rate, and as many steps as its tokens take."""
    directory = tmp_path / "r1"
    directory.mkdir()
    config = {
        "steps": 400,
        "transformer": {"depth": 2, "width": 32, "heads": 2},
        "optimizer": {"base_lr": 0.01, "schedule": "cooldown", "cooldown_steps": 80},
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "meta.json").write_text(json.dumps({"tokens_per_step": 10}))
    assert sweep_runs.overrides(epath.Path(tmp_path), "r1", 10_004.0) == {
        "transformer.depth": 2,
        "transformer.width": 32,
        "transformer.heads": 2,
        "optimizer.base_lr": 0.01,
        "steps": 1000,
        "optimizer.cooldown_steps": 200,
    }
