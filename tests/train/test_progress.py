"""Records, status and progress of a run."""

import io
import json
import math
import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from helpers.runs import board_tags
from var_jax.errors import UserError
from var_jax.train import metric_files, progress
from var_jax.train.progress import MetricWriter


def writer(workdir, resume_step=0, **keywords) -> MetricWriter:
    return MetricWriter(workdir, steps=100, resume_step=resume_step, **keywords)


def records(workdir) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def status(workdir) -> dict:
    return json.loads((workdir / "status.json").read_text(), parse_constant=pytest.fail)


def test_writer_records_scalars_lists_and_images(tmp_path):
    """Scalars and lists are lines of metrics.jsonl and values of the event files under their names,
    images too."""
    w = writer(tmp_path / "run")
    w.write(
        20, "train", {"loss": jnp.float32(1.5), "loss_scale": jnp.array([1.0, 2.0]), "lr": 0.25}
    )
    w.write(20, "val", {"loss": np.float64(3)})
    assert records(tmp_path / "run") == [
        {"step": 20, "split": "train", "loss": 1.5, "loss_scale": [1.0, 2.0], "lr": 0.25},
        {"step": 20, "split": "val", "loss": 3.0},
    ]
    w.image(20, "samples", np.zeros((4, 5, 3), np.uint8))
    w.close("done")
    assert {
        (20, "train/loss"),
        (20, "train/loss_scale/scale_0"),
        (20, "train/loss_scale/scale_1"),
        (20, "val/loss"),
        (20, "samples"),
    } <= board_tags(tmp_path / "run")


def test_writer_has_no_step_twice(tmp_path):
    """A split's step is recorded once, in one process or after a resume."""
    w = writer(tmp_path)
    w.write(5, "val", {"loss": 1.0})
    w.write(5, "val", {"loss": 2.0})
    w.close("done")
    w = writer(tmp_path, resume_step=5)
    w.write(5, "val", {"loss": 3.0})
    w.close("done")
    assert records(tmp_path) == [{"step": 5, "split": "val", "loss": 1.0}]


def test_writer_drops_records_that_a_resumed_run_repeats(tmp_path):
    """Records past the resumed step and a line that was cut short are gone before new ones are
    written."""
    w = writer(tmp_path)
    for step in (10, 20, 30):
        w.write(step, "train", {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "spl')
    w = writer(tmp_path, resume_step=20)
    assert [r["step"] for r in records(tmp_path)] == [10, 20]
    w.write(30, "train", {"loss": 0.5})
    assert [(r["step"], r["loss"]) for r in records(tmp_path)] == [(10, 10), (20, 20), (30, 0.5)]


def test_writer_drops_a_cut_line_before_the_resumed_step(tmp_path):
    """The next record begins a line of its own."""
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 10, "split": "train", "loss": 1}\n{"step": 20, "spl'
    )
    writer(tmp_path, resume_step=20).write(20, "train", {"loss": 2})
    assert [r["step"] for r in records(tmp_path)] == [10, 20]


def test_writer_records_nan_as_null(tmp_path):
    """NaN and infinity are null in every file: JSON has no words for them."""
    w = writer(tmp_path)
    w.write(1, "train", {"loss": math.nan, "loss_scale": jnp.array([1.0, jnp.inf])})
    w.progress(1, math.nan, 8.0)
    assert records(tmp_path) == [
        {"step": 1, "split": "train", "loss": None, "loss_scale": [1.0, None]}
    ]
    assert status(tmp_path)["loss"] is None


def test_status_follows_the_run(tmp_path, monkeypatch):
    """The state, step, loss, speed and time left follow the run; compilation does not count for the
    time left, and restarts do."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    w = writer(tmp_path)
    first = status(tmp_path)
    assert (first["step"], first["steps"], first["state"], first["restarts"]) == (
        0,
        100,
        "running",
        0,
    )
    assert first["loss"] is None and first["eta_s"] is None and first["images_per_s"] is None
    now[0] += 60  # compiles
    w.progress(10, 3.0, 1.5)
    now[0] += 5
    w.progress(20, 2.0, 16.0)
    running = status(tmp_path)
    assert running["images_per_s"] == 16 and running["eta_s"] == pytest.approx(40)
    assert (running["step"], running["loss"]) == (20, 2.0)
    w.close("preempted")
    assert status(tmp_path)["state"] == "preempted"
    w = writer(tmp_path, resume_step=20)
    assert (status(tmp_path)["restarts"], status(tmp_path)["step"]) == (1, 20)
    now[0] += 10
    w.progress(100, 1.0, 16.0)
    w.close("done")
    assert (status(tmp_path)["state"], status(tmp_path)["eta_s"]) == ("done", 0)


def test_advance_prints_few_lines_without_a_terminal(tmp_path, monkeypatch, capsys):
    """Fifty steps of a second give a line every ten seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    w = writer(tmp_path)
    for step in range(1, 51):
        now[0] += 1
        w.progress(step, 1.25, 8.0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[1] == "step 11/100, loss 1.25, 8 images/s, 01:29 left"


def test_advance_speaks_from_the_first_step_on(tmp_path, monkeypatch, capsys):
    """The first step has compilation in it, which says nothing of the time that is left; the
    records' rate comes with the first record, and no file is written meanwhile."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    w = writer(tmp_path)
    now[0] = 60.0
    w.advance(1, 3.0)
    for step in range(2, 20):
        now[0] += 2
        w.advance(step, 2.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "step 1/100, loss 3, compiled",
        "step 6/100, loss 2, 0.5 steps/s, 03:08 left",
        "step 11/100, loss 2, 0.5 steps/s, 02:58 left",
        "step 16/100, loss 2, 0.5 steps/s, 02:48 left",
    ]
    assert status(tmp_path)["step"] == 0
    now[0] += 2
    w.progress(20, 2.0, 32.0)
    assert status(tmp_path)["eta_s"] == pytest.approx(160) and status(tmp_path)["step"] == 20
    for step in (21, 22):
        now[0] += 10
        w.advance(step, 1.0)
    assert (
        capsys.readouterr().err.splitlines()[-1] == "step 22/100, loss 1, 32 images/s, 02:36 left"
    )
    w.advance(100, 1.0)
    assert capsys.readouterr().err.endswith("step 100/100, loss 1, 32 images/s, 00:00 left\n")


def test_status_names_both_losses(tmp_path):
    """Training's and held-out's stand apart, and a resumed run still has the held-out loss of
    before."""
    w = writer(tmp_path)
    assert status(tmp_path)["held_out_loss"] is None
    w.write(5, "train", {"loss": 1.0})
    w.write(5, "val", {"loss": 2.5})
    w.progress(5, 1.0, 8.0)
    assert (status(tmp_path)["loss"], status(tmp_path)["held_out_loss"]) == (1.0, 2.5)
    w.write(10, "val", {"loss": 2.0})
    w.close("preempted")
    for resume_step, held_out in ((10, 2.0), (5, 2.5), (0, None)):
        writer(tmp_path, resume_step=resume_step)
        assert status(tmp_path)["held_out_loss"] == held_out


def test_write_shows_the_held_out_loss_at_once(tmp_path, capsys):
    """Between the last step and the end lie the evaluation, a picture and a checkpoint, minutes in
    which neither the terminal nor status.json may be silent on the loss that is known already."""
    w = writer(tmp_path)
    w.progress(100, 1.0, 8.0)
    capsys.readouterr()
    w.evaluating(100)
    w.write(100, "val", {"loss": 2.5, "psnr": 21.0})
    assert status(tmp_path)["held_out_loss"] == 2.5 and status(tmp_path)["state"] == "running"
    assert capsys.readouterr().err.splitlines() == [
        "step 100/100, evaluating on the held-out images",
        "step 100/100, held-out loss 2.5, PSNR 21.00 dB",
    ]


def test_writer_draws_a_bar_on_a_terminal(tmp_path, monkeypatch):
    """Where stderr is a terminal, the bar has the step and the loss."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    w = writer(tmp_path, resume_step=40)
    w.progress(50, 1.25, 8.0)
    w.close("done")
    assert "50/100" in terminal.getvalue() and "loss 1.25" in terminal.getvalue()


def test_writer_of_another_process_writes_nothing(tmp_path, capsys):
    """Only the first process of a run writes files and lines."""
    w = writer(tmp_path / "run", enabled=False)
    w.write(1, "train", {"loss": 1.0})
    w.image(1, "samples", np.zeros((2, 2, 3), np.uint8))
    w.progress(1, 1.0, 8.0)
    w.evaluating(1)
    w.close("done")
    assert not (tmp_path / "run").exists() and capsys.readouterr().err == ""


def test_writer_refuses_a_workdir_that_cannot_be(tmp_path):
    """One line names the file that is in the directory's place."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write in the workdir .*file") as caught:
        writer(tmp_path / "file" / "run")
    assert "\n" not in str(caught.value)


def test_records_are_on_the_disk_when_a_checkpoint_is_written(tmp_path, monkeypatch):
    """`flush` asks the system for it, of the very file that the records are in: without that, a
    machine that loses power after a checkpoint resumes past records that it has lost."""
    synced = []
    monkeypatch.setattr(
        metric_files.os, "fsync", lambda number: synced.append(os.fstat(number).st_ino)
    )
    w = writer(tmp_path)
    w.write(1, "train", {"loss": 1.0})
    inode = (tmp_path / "metrics.jsonl").stat().st_ino
    assert inode not in synced
    w.flush()
    assert synced.count(inode) == 1
    w.write(2, "train", {"loss": 1.0})
    w.close("done")
    # One file throughout, which grows by a line per record.
    assert (tmp_path / "metrics.jsonl").stat().st_ino == inode and synced.count(inode) == 2
    assert not (tmp_path / "metrics").exists() and [r["step"] for r in records(tmp_path)] == [1, 2]


def test_writer_resumes_a_copy_of_a_bucket_in_one_file(tmp_path):
    """Parts that a bucket had are merged into metrics.jsonl, up to the resumed step."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 1}\n')
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "000000000-000000002.jsonl").write_text(
        '{"step": 2, "split": "train", "loss": 2}\n{"step": 3, "split": "train", "loss": 3}\n'
    )
    w = writer(tmp_path, resume_step=2)
    assert [r["step"] for r in records(tmp_path)] == [1, 2] and not (tmp_path / "metrics").exists()
    w.close("preempted")
