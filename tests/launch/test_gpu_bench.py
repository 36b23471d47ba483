"""The benchmark of a GPU: which rows it measures and keeps, and that it needs few packages.

No GPU is needed: what only a GPU has is imitated.
"""

import json
import subprocess
import sys
import types

import jax
import pytest

from helpers.scripts import load_script
from perf.test_bench import ROOT, bare
from var_jax.perf import bench
from var_jax.train import memory_estimate

gpu_bench = load_script("gpu_bench")
REPORT = {"batch": 2, "images_per_s": 3.0, "flop_share": 0.5, "peak_bytes": None}
RUN = """
import runpy
from var_jax.perf import roofline
roofline.MATRIX["cpu"] = 64
sys.argv[0] = "launch/gpu_bench.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def started(monkeypatch):
    """Names of the rows whose process was started; a row of d30 fails."""
    names = []

    def measured(row, args, seconds):
        assert seconds <= 150
        names.append(row.name)
        if row.depth == 30:
            raise gpu_bench.RowFailure("failed with exit code 3")
        return {**REPORT, "row": row.name}

    monkeypatch.setattr(gpu_bench, "_in_own_process", measured)
    monkeypatch.setattr(gpu_bench, "device", lambda: ("gpu", "NVIDIA H200"))
    return names


def call(monkeypatch, *flags) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_bench.py", *map(str, flags)])
    return gpu_bench.main()


def test_main_measures_missing_rows_in_the_order_of_their_worth(
    started, monkeypatch, tmp_path, capsys
):
    """A row that failed is tried again by the next call and no other is; the file has each row as
    soon as it is done, and the exit code says that one failed."""
    out = tmp_path / "h200.json"
    assert call(monkeypatch, "--out", out) == 1
    names = [row.name for row in gpu_bench.ROWS]
    assert started == names and len(set(names)) == len(names)
    file = json.loads(out.read_text())
    failed = [row.name for row in gpu_bench.ROWS if row.depth == 30]
    assert list(file["rows"]) == [name for name in names if name not in failed]
    assert file["device"] == "NVIDIA H200" and "train_d16" in file["rows"]
    assert file["failures"] == dict.fromkeys(failed, "failed with exit code 3")
    started.clear()
    assert call(monkeypatch, "--out", out) == 1 and started == failed
    started.clear()
    assert call(monkeypatch, "--out", out, "--rows", "train_d16") == 0 and not started
    assert f"{len(names) - len(failed)} rows in" in capsys.readouterr().out


def test_rows_that_failed_come_last(started, monkeypatch, tmp_path):
    """A call whose first rows would hang again reaches the others before its time is up."""
    out = tmp_path / "h200.json"
    call(monkeypatch, "--out", out, "--rows", "train_d30", "sample_d30_64")
    started.clear()
    call(monkeypatch, "--out", out)
    assert started[0] == "train_d16" and started[-2:] == ["train_d30", "sample_d30_64"]


def test_row_that_the_end_of_the_time_stops_keeps_its_place(monkeypatch, tmp_path):
    """It is not at fault, and the next call begins with it; one that takes longer than a row may is
    put last."""
    (tmp_path / "row.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(gpu_bench, "__file__", str(tmp_path / "row.py"))
    monkeypatch.setattr(gpu_bench, "device", lambda: ("gpu", "NVIDIA H200"))
    flags = ("--rows", "train_d16", "--out", tmp_path / "f.json")
    for limits, failures in (
        (("--minutes", 0.01), {}),
        (("--row-seconds", 0.5), {"train_d16": "did not end in 0.5 s"}),
    ):
        assert call(monkeypatch, *flags, *limits) == 1
        assert json.loads((tmp_path / "f.json").read_text())["failures"] == failures


def test_main_begins_no_row_when_the_time_is_up(started, monkeypatch, tmp_path, capsys):
    """The rows that are left are those of the next call."""
    assert call(monkeypatch, "--out", tmp_path / "f.json", "--minutes", 0) == 0
    assert not started and "before train_d16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "word"), [(["--small"], "small"), (["--repeats", "3"], "repeats")]
)
def test_main_mixes_no_rows_of_other_settings(
    started, monkeypatch, tmp_path, capsys, changed, word
):
    """A file of small models, or of another number of measurements, is not added to."""
    out = tmp_path / "f.json"
    call(monkeypatch, "--out", out, "--rows", "train_d16")
    before = out.read_text()
    assert call(monkeypatch, "--out", out, *changed) == 2
    assert f"has rows of another {word}; name another file" in capsys.readouterr().err
    assert out.read_text() == before


class Card:
    """What JAX says of a card of 10 GiB."""

    device_kind = "NVIDIA H200"

    def memory_stats(self):
        return {"bytes_limit": 10 * 2**30, "peak_bytes_in_use": 7 * 2**30}


def test_measure_takes_a_batch_that_fits(monkeypatch):
    """Batches are tried from the largest power of two that the estimate allows downwards; those
    that the card refuses are named, and then no peak is, which would be theirs. MFU is of all
    devices that the step ran on, by hand."""
    tried = []

    def train(config, batch, repeats):
        tried.append(batch)
        if batch > 64:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return {"batch": batch, "flops": 8e15, "seconds": 2.0, "floor_seconds": 1.0, "devices": 2}

    memory = types.SimpleNamespace(most_images=lambda remat, budget: budget / 2**30 * 60)
    monkeypatch.setattr(bench, "train", train)
    monkeypatch.setattr(memory_estimate, "of_training", lambda *_: memory)
    monkeypatch.setattr(jax, "local_devices", lambda: [Card()])
    report = gpu_bench.measure(gpu_bench.ROWS[0], small=False, repeats=1)
    assert tried == [512, 256, 128, 64]  # 540 images would fit by the estimate
    assert report["too_large"] == [512, 256, 128] and report["peak_bytes"] is None
    assert report["batch"] == 64 and report["remat"] == "none" and report["flop_share"] == 0.5
    assert report["mfu"] == pytest.approx(4e15 / 2 / 989.5e12)

    memory.most_images = lambda remat, budget: 70
    tried.clear()
    report = gpu_bench.measure(gpu_bench.ROWS[0], small=False, repeats=1)
    assert tried == [64] and report["peak_bytes"] == 7 * 2**30


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; sys.exit(3)", "train_d16 failed with exit code 3"),
        ("print('no figures')", "train_d16 failed with exit code 0"),
        ("import time; time.sleep(60)", "train_d16 did not end in "),
    ],
)
def test_row_whose_process_fails_leaves_the_others(program, message, monkeypatch, tmp_path, capsys):
    """A process that ends with an error, has no figures or takes too long is named, and the exit
    code says that a row failed."""
    (tmp_path / "row.py").write_text(program)
    monkeypatch.setattr(gpu_bench, "__file__", str(tmp_path / "row.py"))
    monkeypatch.setattr(gpu_bench, "device", lambda: ("gpu", "NVIDIA H200"))
    flags = ("--out", tmp_path / "f.json", "--rows", "train_d16", "--minutes", 1 / 60)
    assert call(monkeypatch, *flags) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("missing_wheels", lambda: ["optax", "einops"], "pip download 'optax' 'einops'"),
        ("device", lambda: ("cpu", "cpu"), "JAX sees no GPU (its backend is cpu)"),
    ],
)
def test_main_refuses_machines_that_lack_something(
    started, monkeypatch, tmp_path, capsys, attribute, value, message
):
    """One line names the wheels to bring, or the way to try the script; nothing is written."""
    monkeypatch.setattr(gpu_bench, attribute, value)
    assert call(monkeypatch, "--out", tmp_path / "f.json") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not started and not list(tmp_path.iterdir())


def test_missing_wheels_are_those_without_a_module(monkeypatch):
    """Nothing is missing where the tests run, and a module that does not exist is, by its wheel."""
    assert gpu_bench.missing_wheels() == []
    monkeypatch.setitem(gpu_bench.REQUIRED, "no_such_module", "no-such-wheel")
    assert gpu_bench.missing_wheels() == ["no-such-wheel"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_d16", "sample_d16_64", "decode_tokenizer_64"])
def test_rows_need_no_library_of_data_or_configs(name, monkeypatch):
    """A row's process ends with its figures where ml_collections, grain and tensorflow-datasets
    cannot be imported."""
    monkeypatch.chdir(ROOT)
    done = bare("--row", name, "--small", "--repeats", 1, script=RUN, further="launch")
    assert done.returncode == 0, done.stderr
    (line,) = [text for text in done.stdout.splitlines() if text.startswith(gpu_bench.MARK)]
    report = json.loads(line.removeprefix(gpu_bench.MARK))
    assert report["row"] == name and report["depth"] == 2 and report["batch"] == 2
    assert report["flop_share"] > 0 and ("byte_share" in report) == (name != "train_d16")


@pytest.mark.slow
def test_script_tries_itself_on_a_cpu(tmp_path):
    """The shell script writes a row of its own and says where."""
    out = tmp_path / "f.json"
    command = ["bash", "launch/gpu_bench.sh", "--small", "--out", str(out), "--repeats", "1"]
    command += ["--rows", "encode_tokenizer_64"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"1 rows in {out}" in done.stdout
    assert json.loads(out.read_text())["rows"]["encode_tokenizer_64"]["images_per_s"] > 0
