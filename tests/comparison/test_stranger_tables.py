"""`comparison.stranger_tables`: columns, intervals and rows of tables of any project."""

import json

import pytest
from etils import epath

from var_jax.comparison import stranger_tables
from var_jax.errors import UserError

HEAD = "objective,run,train_flops"


def read(tmp_path, text, name="t.csv"):
    (tmp_path / name).write_text(text)
    dropped = []
    return stranger_tables.read(epath.Path(tmp_path / name), dropped), dropped


def test_read_takes_qualities_intervals_and_costs_by_their_columns(tmp_path):
    """Numbers without another meaning are qualities, `_low` and `_high` their intervals, known
    names costs; texts, sizes and empty cells are none."""
    text = (
        f"{HEAD},images_seen,params,note,fid,fid_low,fid_high,recall\n"
        "masked,a,1e20,,1e8,good,6.2,6,6.5,\n"
    )
    ((run, seed),), dropped = read(tmp_path, text)
    assert (seed, dropped) == (None, [])
    assert run.costs == {"train_flops": 1e20}
    assert run.quality == {"fid": (6.2, (6.0, 6.5))}
    assert run.params == 1e8


def test_read_takes_json_as_csv(tmp_path):
    """A JSON list of objects gives the run that a CSV row of the same values does."""
    row = {"objective": "x", "run": "a", "train_flops": 1e20, "fid": 3.5}
    (tmp_path / "t.json").write_text(json.dumps([row]))
    as_json = stranger_tables.read(epath.Path(tmp_path / "t.json"), [])
    assert as_json == read(tmp_path, f"{HEAD},fid\nx,a,1e20,3.5\n")[0]


def test_read_leaves_out_rows_without_compute_with_the_reason(tmp_path):
    """Rows without a name, a positive number of FLOPs or a quality are listed, and the others
    read."""
    text = f"{HEAD},fid\nx,a,0,3\n,b,1,3\nx,c,1,nan\nx,d,1,3\n"
    ((run, _),), dropped = read(tmp_path, text)
    assert run.run == "d"
    assert [row for row, _ in dropped] == [f"t.csv row {n}" for n in (1, 2, 3)]
    assert "train_flops is '0'" in dropped[0][1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("objective,run,fid\nx,a,1\n", "no column 'train_flops'; known: fid, objective, run"),
        (f"{HEAD},fid\nx,a,1,inf\n", "no column of a quality with a finite number"),
        (f"{HEAD},fid,fid_low\nx,a,1,3,2\n", "column fid_low without fid_high"),
        (f"{HEAD},fid,fid_low,fid_high\nx,a,1,3,4,5\n", "3 is not within its interval, 4 to 5"),
        (f"{HEAD},fid\n", "has no rows"),
    ],
)
def test_read_refuses_tables_that_say_nothing(tmp_path, text, words):
    """A table that cannot be compared is refused in a line that says what it lacks."""
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        read(tmp_path, text)


def test_read_takes_unknown_objectives_as_labels(tmp_path):
    """An objective that this package does not have keeps its name."""
    ((run, _),), _ = read(tmp_path, f"{HEAD},fid\nflow matching,a,1,3\n")
    assert run.objective == "flow matching"
