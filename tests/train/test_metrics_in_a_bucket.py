"""Records, status and TensorBoard's files of a run in an object store, by the requests and bytes
that they take."""

import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.bucket import Bucket, bucket  # noqa: F401  (a fixture)
from helpers.runs import board_tags, records
from var_jax.errors import UserError
from var_jax.io import run_records
from var_jax.scaling import sweep_runs
from var_jax.train import metric_files, tensorboard_files
from var_jax.train.progress import MetricWriter


def writer(workdir, resume_step: int = 0) -> MetricWriter:
    return MetricWriter(workdir, steps=1000, resume_step=resume_step)


def status(run) -> dict:
    return json.loads((run / "status.json").read_text())


def steps(run) -> list[int]:
    return [json.loads(line)["step"] for line in run_records.read_lines(run)]


@pytest.fixture
def by_hand(monkeypatch):
    """Nothing is uploaded but by `flush` and `close`."""
    monkeypatch.setattr(metric_files, "RECORDS_UPLOAD_SECONDS", 10**6)
    monkeypatch.setattr(metric_files, "STATUS_SECONDS", 0.0)


def test_metrics_in_a_bucket_are_read_as_local_ones(bucket, by_hand):  # noqa: F811
    """While it runs, from its parts; when it is done, from one file, as a local run leaves it. A
    resumed run drops what it takes again, and no step is there twice, whichever parts a crash
    left."""
    first = writer(bucket)
    assert status(bucket)["state"] == "running"
    for step in (1, 2, 3):
        first.write(step, "train", {"loss": float(step), "loss_scale": np.array([1.0, 2.0])})
        first.flush()
        assert steps(bucket) == list(range(1, step + 1))
    first.write(3, "val", {"loss": 5.0})
    first.progress(3, 1.0, 2.0)
    first.close("preempted")
    assert status(bucket)["state"] == "preempted" and steps(bucket) == [1, 2, 3, 3]
    left = (bucket / "metrics" / "000000001-000000002.jsonl").read_text()
    again = writer(bucket, resume_step=2)
    assert [r["step"] for r in records(bucket)] == [1, 2]
    (bucket / "metrics" / "000000001-000000002.jsonl").write_text(
        left
    )  # as if it had ended before deleting it
    again.write(2, "train", {"loss": 20.0})
    again.write(3, "train", {"loss": 30.0})
    again.close("done")
    assert [(r["step"], r["loss"]) for r in records(bucket)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert not run_records.parts(bucket)
    assert status(bucket)["state"] == "done" and status(bucket)["restarts"] == 1


def test_fit_reads_metrics_in_parts(bucket, by_hand):  # noqa: F811
    """A sweep's rows are those of a local sweep, also of a run that was not merged into one
    file."""
    run = bucket / "a1"
    w = writer(run)
    for step in (10, 20):
        w.write(step, "val", {"loss": 3.0 / step})
        w.flush()
    w.status("done", at_once=True)
    meta = {"params": {"total": 7, "body": 5}, "tokens_per_step": 2, "flops_per_step": 3}
    (run / "meta.json").write_text(json.dumps(meta))
    dropped, notes = [], []
    rows = sweep_runs.read_rows(bucket, dropped, notes)
    assert len(run_records.parts(run)) == 2 and not (run / "metrics.jsonl").exists()
    assert [(row["run"], row["tokens"], row["loss"]) for row in rows] == [
        ("a1", 20, 0.3),
        ("a1", 40, 0.15),
    ]
    assert dropped == [] and notes == []
    w.close("done")


def test_writer_uploads_in_proportion_to_the_records(bucket, by_hand, monkeypatch):  # noqa: F811
    """600 uploads of a record each: every record is written once per level of parts, of which there
    are log_8 600 < 4, and once more at the end. Rewriting the file at every record takes 300 times
    the records' bytes."""
    monkeypatch.setattr(metric_files, "MERGED_PARTS", 8)
    monkeypatch.setattr(tensorboard_files.BucketBoard, "upload", lambda self: None)
    w, most = writer(bucket), 0
    for step in range(600):
        w.write(step, "train", {"loss": 1.0})
        w.flush()
        most = max(most, sum("/metrics/" in name for name in Bucket.store))
    assert most <= 4 * 8
    assert steps(bucket) == list(range(600))
    w.close("done")
    assert steps(bucket) == list(range(600))
    size = len((bucket / "metrics.jsonl").read_text())
    assert Bucket.put_bytes("metrics") <= 5.5 * size
    puts, deletes = (Bucket.count(kind, "/metrics/") for kind in ("put", "delete"))
    assert puts == deletes <= 600 * 8 / 7
    assert Bucket.count("copy", "/metrics/") == 0


@pytest.mark.long
def test_steps_do_not_wait_for_the_bucket_nor_write_too_often(bucket, monkeypatch):  # noqa: F811
    """300 steps that are logged as fast as they come, over two seconds and a half: their records
    and status go out about every half second, from another thread, however many there are; no
    object is written twice in a second."""
    monkeypatch.setattr(metric_files, "RECORDS_UPLOAD_SECONDS", 0.5)
    w = writer(bucket)
    Bucket.requests.clear()
    began = time.monotonic()
    for step in range(1, 301):
        w.write(step, "train", {"loss": 1.0})
        w.progress(step, 1.0, 8.0)
        time.sleep(max(0.0, began + step * 2.5 / 300 - time.monotonic()))
    took = time.monotonic() - began
    during = list(Bucket.requests)
    assert {r.thread for r in during} == {"var_jax uploads metrics"}
    assert 1 <= sum("/metrics/" in r.name for r in during) <= took / 0.5 + 1
    w.close("done")
    times = [r.at for r in Bucket.requests if r.kind == "put" and r.name.endswith("status.json")]
    assert len(times) >= 2 and min(np.diff(times)) >= 0.9 * metric_files.STATUS_SECONDS
    assert status(bucket)["step"] == 300 and steps(bucket) == list(range(1, 301))
    assert "var_jax uploads metrics" not in {thread.name for thread in threading.enumerate()}


def test_writer_loses_nothing_while_a_bucket_fails(bucket, monkeypatch, caplog):  # noqa: F811
    """Uploads are tried again, with one line of warning; a checkpoint is not written past records
    that are not kept."""
    monkeypatch.setattr(metric_files, "RECORDS_UPLOAD_SECONDS", 0.05)
    w = writer(bucket)
    Bucket.broken = OSError("503 slow down")
    w.write(1, "train", {"loss": 1.0})
    time.sleep(1)
    w.write(2, "train", {"loss": 2.0})
    with pytest.raises(
        UserError, match="cannot write in the workdir gs://bucket/run: 503 slow down"
    ):
        w.flush()
    assert [r.message for r in caplog.records] == [
        "cannot write in gs://bucket/run, which is tried again: 503 slow down"
    ]
    Bucket.broken = None
    w.flush()
    assert steps(bucket) == [1, 2]
    w.close("failed")


def test_reader_reads_again_when_parts_are_merged(bucket, by_hand, monkeypatch):  # noqa: F811
    """Between a reader's list and its reading, the run merges two parts and deletes them."""
    w = writer(bucket)
    for step in (1, 2):
        w.write(step, "train", {"loss": 1.0})
        w.flush()
    listed, lists = run_records.parts(bucket), []

    def stale(run):
        lists.append(run)
        return listed if len(lists) == 1 else parts(run)

    parts = run_records.parts
    (bucket / "metrics" / "000000000-000000002.jsonl").write_text(
        "".join(path.read_text() for path in listed)
    )
    for path in listed:
        path.unlink()
    monkeypatch.setattr(run_records, "parts", stale)
    assert steps(bucket) == [1, 2] and len(lists) == 2
    w.close("failed")


def test_tensorboards_files_are_added_not_rewritten(bucket, by_hand, tmp_path):  # noqa: F811
    """Each upload has the events since the one before; together they are all events, in files that
    lie in order."""
    w, sizes = writer(bucket), []
    for step in (1, 2, 3):
        w.write(step, "train", {"loss": float(step), "loss_scale": np.array([1.0, 2.0])})
        w.image(step, "samples", np.zeros((4, 4, 3), np.uint8))
        before = Bucket.put_bytes("tensorboard")
        w.flush()
        sizes.append(Bucket.put_bytes("tensorboard") - before)
    assert max(sizes) < 1.5 * min(sizes)
    w.close("preempted")
    names = sorted(path.name for path in (bucket / "tensorboard").iterdir())
    assert len(names) == 3 and all(name.startswith("events.out.tfevents.") for name in names)
    (tmp_path / "tensorboard").mkdir()
    result = set()
    for step, name in enumerate(names, start=1):
        shutil.rmtree(tmp_path / "tensorboard")
        (tmp_path / "tensorboard").mkdir()
        Path(tmp_path / "tensorboard" / name).write_bytes(
            (bucket / "tensorboard" / name).read_bytes()
        )
        tags = board_tags(tmp_path)
        assert {number for number, _ in tags} == {step}
        result |= tags
    assert {
        (step, tag)
        for step in (1, 2, 3)
        for tag in ("train/loss", "train/loss_scale/scale_1", "samples")
    } <= result
