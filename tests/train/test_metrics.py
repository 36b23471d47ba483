import io
import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from tensorboardX.proto.event_pb2 import Event

from var_jax.errors import UserError
from var_jax.train import metrics
from var_jax.train.metrics import MetricWriter


def writer(workdir, resume_step=0, **keywords) -> MetricWriter:
    return MetricWriter(workdir, steps=100, resume_step=resume_step, **keywords)


def records(workdir) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def status(workdir) -> dict:
    return json.loads((workdir / "status.json").read_text(), parse_constant=pytest.fail)


def board_tags(workdir) -> set[tuple[int, str]]:
    """(step, tag) of every value in the event files: length (8 bytes), checksum (4), event, checksum (4)."""
    found = set()
    for file in (workdir / "tensorboard").glob("events*"):
        data, at = file.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at:at + 8], "little")
            event = Event.FromString(data[at + 12:at + 12 + length])
            found |= {(event.step, value.tag) for value in event.summary.value}
            at += 16 + length
    return found


def test_records(tmp_path):
    w = writer(tmp_path / "run")
    w.write(20, "train", {"loss": jnp.float32(1.5), "loss_scale": jnp.array([1.0, 2.0]), "lr": 0.25})
    w.write(20, "val", {"loss": np.float64(3)})
    assert records(tmp_path / "run") == [
        {"step": 20, "split": "train", "loss": 1.5, "loss_scale": [1.0, 2.0], "lr": 0.25},
        {"step": 20, "split": "val", "loss": 3.0}]
    w.image(20, "samples", np.zeros((4, 5, 3), np.uint8))
    w.close("done")
    assert {(20, "train/loss"), (20, "train/loss_scale/scale_0"), (20, "train/loss_scale/scale_1"), (20, "val/loss"),
            (20, "samples")} <= board_tags(tmp_path / "run")


def test_a_step_is_never_there_twice(tmp_path):
    w = writer(tmp_path)
    w.write(5, "val", {"loss": 1.0})
    w.write(5, "val", {"loss": 2.0})
    w.close("done")
    w = writer(tmp_path, resume_step=5)
    w.write(5, "val", {"loss": 3.0})
    w.close("done")
    assert records(tmp_path) == [{"step": 5, "split": "val", "loss": 1.0}]


def test_resuming_drops_what_is_done_again(tmp_path):
    w = writer(tmp_path)
    for step in (10, 20, 30):
        w.write(step, "train", {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "spl')
    w = writer(tmp_path, resume_step=20)
    assert [r["step"] for r in records(tmp_path)] == [10, 20]
    w.write(30, "train", {"loss": 0.5})
    assert [(r["step"], r["loss"]) for r in records(tmp_path)] == [(10, 10), (20, 20), (30, 0.5)]


def test_a_cut_line_before_the_resumed_step_does_not_join_the_next(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "split": "train", "loss": 1}\n{"step": 20, "spl')
    writer(tmp_path, resume_step=20).write(20, "train", {"loss": 2})
    assert [r["step"] for r in records(tmp_path)] == [10, 20]


def test_not_a_number_is_null(tmp_path):
    w = writer(tmp_path)
    w.write(1, "train", {"loss": math.nan, "loss_scale": jnp.array([1.0, jnp.inf])})
    w.progress(1, math.nan, 8.0)
    assert records(tmp_path) == [{"step": 1, "split": "train", "loss": None, "loss_scale": [1.0, None]}]
    assert status(tmp_path)["loss"] is None


def test_status(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    w = writer(tmp_path)
    first = status(tmp_path)
    assert (first["step"], first["steps"], first["state"], first["restarts"]) == (0, 100, "running", 0)
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


def test_lines_without_a_terminal_are_few(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    w = writer(tmp_path)
    for step in range(1, 51):
        now[0] += 1
        w.progress(step, 1.25, 8.0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[1] == "step 11/100, loss 1.25, 8 images/s, 01:29 left"


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    w = writer(tmp_path, resume_step=40)
    w.progress(50, 1.25, 8.0)
    w.close("done")
    assert "50/100" in terminal.getvalue() and "loss 1.25" in terminal.getvalue()


def test_other_processes_write_nothing(tmp_path, capsys):
    w = writer(tmp_path / "run", enabled=False)
    w.write(1, "train", {"loss": 1.0})
    w.image(1, "samples", np.zeros((2, 2, 3), np.uint8))
    w.progress(1, 1.0, 8.0)
    w.close("done")
    assert not (tmp_path / "run").exists() and capsys.readouterr().err == ""


def test_a_workdir_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write in the workdir .*file") as caught:
        writer(tmp_path / "file" / "run")
    assert "\n" not in str(caught.value)


class Bucket(MemoryFileSystem):
    """A bucket in memory, which takes whole objects only."""

    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("gs://", "/"))

    def _open(self, path, mode="rb", **keywords):
        assert "a" not in mode
        return super()._open(path, mode, **keywords)


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: Bucket(), raising=False)
    monkeypatch.setattr(metrics, "BOARD_LIBRARIES", {"gs": "no_such_module"})
    Bucket.store.clear()
    return epath.Path("gs://bucket/run")


def test_a_bucket_takes_no_lines_at_an_end(bucket, caplog):
    first = writer(bucket)
    assert len(caplog.records) == 1 and "no TensorBoard files in gs://bucket/run" in caplog.text
    assert "pip install 'var-jax[gcs]' brings it" in caplog.text
    for step in (1, 2, 3):
        first.write(step, "train", {"loss": float(step), "loss_scale": np.array([1.0, 2.0])})
        assert [r["step"] for r in records(bucket)] == list(range(1, step + 1))
    first.image(3, "samples", np.zeros((4, 4, 3), np.uint8))
    first.progress(3, 1.0, 2.0)
    first.close("preempted")
    assert status(bucket)["state"] == "preempted"
    again = writer(bucket, resume_step=2)
    again.write(3, "train", {"loss": 30.0})
    again.close("done")
    assert [(r["step"], r["loss"]) for r in records(bucket)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert status(bucket)["restarts"] == 1
