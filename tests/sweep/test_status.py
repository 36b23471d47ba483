import datetime
import json
import sys
import time

import pytest
from etils import epath

from sweep import drive
from var_jax.devices.chips import CHIPS
from var_jax.errors import UserError
from var_jax.sweep import claims, driver, status


def write_status(run, **changes):
    run.mkdir(parents=True, exist_ok=True)
    values = {
        "step": 10,
        "steps": 40,
        "state": "running",
        "loss": 4.25,
        "images_per_s": 100.0,
        "eta_s": 75.0,
        "restarts": 0,
        "updated": datetime.datetime.now(datetime.UTC).isoformat(),
        **changes,
    }
    (run / "status.json").write_text(json.dumps(values))


def test_status_says_what_mfu_counts(tmp_path):
    """Below the table of runs that train a part of their parameters, one line says that the figures
    count all of them."""
    for name in ("a", "b", "whole"):
        write_status(tmp_path / name)
        trainable = "" if name == "whole" else "decoder"
        (tmp_path / name / "meta.json").write_text(json.dumps({"trainable": trainable}))
    lines = status.lines(status.read(tmp_path))
    assert len([line for line in lines if "with trainable 'decoder'" in line]) == 1
    assert not any("trainable" in line for line in status.lines(status.read(tmp_path / "whole")))


def test_status_of_a_single_run(tmp_path):
    """The row has the files' values and the MFU from the chip's peak; the line shows them."""
    chip = CHIPS["v5e"]
    write_status(tmp_path, restarts=2)
    (tmp_path / "meta.json").write_text(
        json.dumps(
            {
                "flops_per_image": {"exact": chip.peak_flops / 100},
                "devices": {"kind": chip.kinds[0], "count": 4},
            }
        )
    )
    (row,) = status.read(tmp_path)
    assert (row.state, row.step, row.steps, row.share, row.loss, row.restarts) == (
        "running",
        10,
        40,
        0.25,
        4.25,
        2,
    )
    assert row.mfu == pytest.approx(0.25) and row.eta == 75.0
    header, line = status.lines([row])
    assert line.split() == [
        tmp_path.name,
        "running",
        "10/40",
        "25%",
        "0:01:15",
        "25.0%",
        "4.25",
        "2",
    ]


@pytest.mark.parametrize(
    ("step", "state", "shown"),
    [(39, "running", "running"), (40, "running", "evaluating"), (40, "done", "done")],
)
def test_read_names_the_last_evaluation(tmp_path, step, state, shown):
    """A run that has taken its last step still evaluates for minutes; it must not look like one
    that stands still at 100 %."""
    write_status(tmp_path, step=step, state=state)
    (row,) = status.read(tmp_path)
    assert row.state == shown


def test_lines_name_both_losses_and_refusals(tmp_path):
    """The loss that is trained on and the one that laws are fitted to are not the same; a refused
    run says why."""
    write_status(tmp_path / "a", held_out_loss=4.5)
    write_status(tmp_path / "b", state="failed")
    gone = claims.create(epath.Path(tmp_path / "b"), 1, "local")
    claims.replace(epath.Path(tmp_path / "b"), gone, job=f"{gone.host}:{gone.pid}:1.0")
    (tmp_path / "b" / "claims" / "0001.refused").write_text("steps is 0;\nit must be at least 1")
    rows = status.read(tmp_path)
    assert [(row.loss, row.held_out_loss) for row in rows] == [(4.25, 4.5), (4.25, None)]
    header, first, *_, last = status.lines(rows)
    assert header.index("train loss") < header.index("held-out loss") and first.split()[-3:] == [
        "4.25",
        "4.5",
        "0",
    ]
    assert header.index("held-out loss") + len("held-out loss") == first.index("4.5") + len("4.5")
    assert last == "b was refused: steps is 0; it must be at least 1"


def test_status_has_no_mfu_of_an_unknown_chip_and_no_eta_of_a_silent_run(tmp_path):
    """A CPU has no peak, and a run that wrote nothing for years is dead."""
    write_status(tmp_path, updated="2020-01-01T00:00:00+00:00")
    (tmp_path / "meta.json").write_text(
        json.dumps({"flops_per_image": {"exact": 1e9}, "devices": {"kind": "cpu", "count": 1}})
    )
    (row,) = status.read(tmp_path)
    assert (row.state, row.mfu, row.eta) == ("dead", None, None)


def test_status_of_a_sweep_with_runs_in_every_state(tmp_path):
    """Each run has its state and share, and the summary counts the states and weighs the shares by
    steps."""
    sweep = drive.sweep(tmp_path, seeds=2)
    driver.write_plan(sweep, [])
    trunk, second, branch, last = (sweep.directory(run.id) for run in sweep.runs)
    write_status(trunk, state="done", step=40)
    write_status(branch, step=18, steps=20)
    write_status(second, state="failed", step=10)
    gone = claims.create(second, 1, "local")
    claims.replace(second, gone, job=f"{gone.host}:{gone.pid}:1.0")
    rows = {row.id: row for row in status.read(tmp_path)}
    assert [rows[run.id].state for run in sweep.runs] == ["done", "failed", "running", "new"]
    assert [rows[run.id].share for run in sweep.runs] == [1.0, 0.25, 0.5, 0.0]
    assert rows[branch.name].label == "seed=0 steps=20"
    summary = status.lines(list(rows.values()))[-1]
    assert summary.startswith("1 done, 1 failed, 1 running, 1 new; ")
    # Of 2 x 40 + 2 x 4 steps: 40 + 10 + 2.
    assert summary.endswith(f"{52 / 88:.0%}") and last.name in rows


@pytest.mark.parametrize(
    ("backend", "word", "state"),
    [
        ("slurm", None, "queued (unconfirmed)"),
        ("jobset", "2020-01-01T00:00:00+00:00", "queued (unconfirmed)"),
        ("local", None, "dead"),
        ("slurm", "in it", "dead"),
    ],
)
def test_status_does_not_call_a_waiting_job_dead(tmp_path, backend, word, state):
    """A scheduler's job of an hour ago without a word may still wait in the queue; a local process,
    or one that has spoken and fell silent, is dead."""
    sweep = drive.sweep(tmp_path, seeds=1, branches=False)
    driver.write_plan(sweep, [])
    (run,) = (sweep.directory(one.id) for one in sweep.runs)
    hour = time.time() - 3600
    claim = claims.create(run, 1, backend)
    claims.replace(
        run,
        claim,
        job="elsewhere:1:1.0" if backend == "local" else "12_0",
        created=hour,
        heartbeat=hour,
    )
    if word:  # of an attempt before, or of this one that then fell silent
        began = datetime.datetime.fromtimestamp(hour + 60, datetime.UTC)
        write_status(run, updated=began.isoformat() if word == "in it" else word)
    (row,) = status.read(tmp_path)
    assert row.state == state
    assert f" {state} " in status.lines([row])[1]


def test_status_of_a_sweep_without_its_plan_shows_its_runs(tmp_path):
    """Directories that hold a run are listed, others are not."""
    write_status(tmp_path / "a", state="done", step=40)
    write_status(tmp_path / "b", state="preempted")
    (tmp_path / "notes").mkdir()
    assert [(row.id, row.state) for row in status.read(tmp_path)] == [
        ("a", "done"),
        ("b", "preempted"),
    ]


def test_status_names_a_bucket_that_cannot_be_reached(monkeypatch):
    """The line has the bucket and the library that is missing."""
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match="^cannot reach gs://bucket/sweep: .*gcsfs"):
        status.read("gs://bucket/sweep")


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_status_names_what_is_neither_run_nor_sweep(tmp_path, name):
    """An empty directory and a missing one are refused as neither a sweep's directory nor a
    run's."""
    with pytest.raises(UserError, match="neither a sweep's directory"):
        status.read(epath.Path(tmp_path) / name)
