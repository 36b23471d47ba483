"""Metrics at Weights & Biases, by a stand-in for its package and by the package itself, offline."""

import dataclasses
import importlib.machinery
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from helpers import small
from helpers.offline_wandb import StandIn, StandInRun, history
from helpers.runs import fake_step, records, signal_in_step
from var_jax.devices import multihost
from var_jax.errors import Preempted, UserError
from var_jax.train import resolve, step, wandb_board
from var_jax.train.loop import train
from var_jax.train.progress import MetricWriter

CONFIG = {"wandb_project": "photos", "steps": 100}


@pytest.fixture
def wandb(monkeypatch):
    """A package wandb that is not installed, and can be imported."""
    package = StandIn()
    package.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="wandb.py")
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    return package


def writer(workdir, **keywords) -> MetricWriter:
    return MetricWriter(workdir, steps=100, wandb_config=CONFIG, **keywords)


def test_writer_logs_what_tensorboard_shows(wandb, tmp_path):
    """Scalars, a value per scale and pictures have TensorBoard's names, with the step as the axis;
    the terminal stays the run's, and the end is told."""
    w = writer(tmp_path / "run")
    w.write(20, "train", {"loss": np.float32(1.5), "loss_scale": np.array([1.0, 2.0])})
    w.write(20, "val", {"loss": np.float64(3), "psnr": float("nan")})
    w.image(20, "samples", np.zeros((4, 5, 3), np.uint8))
    w.close("done")
    [run] = wandb.runs
    assert (run["project"], run["name"], run["config"]) == ("photos", "run", CONFIG)
    assert run["dir"] == str(tmp_path / "run")
    assert run["settings"] == {"console": "off", "finish_timeout": wandb_board.FINISH_SECONDS}
    assert (run["axes"], run["exit_code"]) == (("*", "step"), 0)
    first, second, picture = run["logged"]
    assert first == {
        "step": 20,
        "train/loss": 1.5,
        "train/loss_scale/scale_0": 1.0,
        "train/loss_scale/scale_1": 2.0,
    }
    assert (second["step"], second["val/loss"]) == (20, 3.0) and np.isnan(second["val/psnr"])
    assert picture == {"step": 20, "samples": ("image", (4, 5, 3))}


def test_board_keeps_steps_apart(wandb, tmp_path):
    """Values of another step are another call, also where nothing was flushed in between."""
    board = wandb_board.WandbBoard(tmp_path, "photos", {})
    board.add_scalar("a", 1, 1)
    board.add_scalar("b", 2, 1)
    board.add_scalar("a", 3, 2)
    board.close(failed=True)
    assert wandb.runs[0]["logged"] == [{"step": 1, "a": 1, "b": 2}, {"step": 2, "a": 3}]
    assert wandb.runs[0]["exit_code"] == 1


def test_writer_continues_the_same_wandb_run(wandb, tmp_path):
    """A workdir's starts have one id, which is in wandb.json; another workdir has another."""
    for workdir in ("one", "one", "two"):
        writer(tmp_path / workdir).close("preempted")
    first, again, other = (run["id"] for run in wandb.runs)
    assert first == again != other
    assert json.loads((tmp_path / "one" / "wandb.json").read_text()) == {"id": first}
    assert all(run["resume"] == "allow" for run in wandb.runs)


def test_writer_leaves_the_directory_to_the_environment(wandb, tmp_path, monkeypatch):
    """WANDB_DIR is respected, and so is WANDB_FINISH_TIMEOUT."""
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "600")
    writer(tmp_path / "run").close("done")
    assert wandb.runs[0]["dir"] is None
    assert wandb.runs[0]["settings"] == {"console": "off"}


def test_writer_of_another_process_starts_no_wandb_run(wandb, tmp_path):
    """Only one process of a run logs."""
    w = writer(tmp_path / "run", enabled=False)
    w.write(20, "train", {"loss": 1.0})
    w.close("done")
    assert wandb.runs == []


@pytest.mark.parametrize("kind", [StandIn.Error, RuntimeError, ConnectionResetError])
def test_refusal_by_wandb_is_one_line(wandb, tmp_path, kind):
    """An error of the package, such as of a missing login, is the user's mistake in one line, and
    so are others that it lets pass, which are not mistaken for those of the workdir."""
    wandb.refusal = kind("api_key not configured (no-tty).\n Call wandb.login()")
    with pytest.raises(UserError, match="does not start: api_key not configured.*WANDB_MODE") as e:
        writer(tmp_path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", [ConnectionResetError, BrokenPipeError, Exception])
@pytest.mark.parametrize("state", ["done", "preempted", "failed"])
def test_failure_of_wandb_does_not_end_a_run(wandb, tmp_path, caplog, kind, state):
    """After an error of one call nothing more is logged there, with one warning; the records that
    follow are in metrics.jsonl, and status.json has the end, though finishing raises too."""
    w = writer(tmp_path)
    w.write(1, "train", {"loss": 3.0})
    wandb.failure = kind()
    w.write(2, "train", {"loss": 2.0})
    w.image(2, "samples", np.zeros((4, 5, 3), np.uint8))
    w.write(3, "train", {"loss": 1.0})
    w.close(state)
    [run] = wandb.runs
    assert (len(run["logged"]), run["calls"], run["exit_code"]) == (1, 2, int(state == "failed"))
    [warning] = [r for r in caplog.records if r.name == wandb_board.__name__]
    assert warning.getMessage().endswith(f"every value: {kind.__name__}")
    assert [record["loss"] for record in records(tmp_path)] == [3.0, 2.0, 1.0]
    assert json.loads((tmp_path / "status.json").read_text())["state"] == state


def test_picture_that_wandb_refuses_does_not_end_a_run(wandb, tmp_path, caplog):
    """An error where a picture is made is guarded, too."""
    w = writer(tmp_path)
    wandb.failure = ValueError("no picture")
    w.image(2, "samples", np.zeros((4, 5, 3), np.uint8))
    w.close("done")
    assert wandb.runs[0]["logged"] == [] and caplog.text.count("no picture") == 1


def test_status_is_written_before_wandb_uploads(wandb, tmp_path, monkeypatch):
    """A process that is killed while W&B uploads has its end in status.json, and its records."""
    seen = []
    w = writer(tmp_path)
    w.write(1, "train", {"loss": 3.0})

    def uploading(self, exit_code):
        state = json.loads((tmp_path / "status.json").read_text())["state"]
        seen.append((state, len(records(tmp_path))))

    monkeypatch.setattr(StandInRun, "finish", uploading)
    w.close("preempted")
    assert seen == [("preempted", 1)]


@pytest.mark.parametrize("folder", [False, True])
def test_train_without_the_package_is_refused(tmp_path, monkeypatch, folder):
    """One line names the key, the package and the extra before anything is written; a folder that
    is called wandb, as offline runs leave one, is no package."""
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "here")])
    (tmp_path / "here" / ("wandb" if folder else "other")).mkdir(parents=True)
    config = small.train_config("tokenizer", "", wandb_project="photos")
    with pytest.raises(UserError, match=r"wandb_project is 'photos'.*'var-jax\[wandb\]'"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    wandb_board.require_package("")


def test_only_the_process_that_logs_needs_the_package(tmp_path, monkeypatch):
    """Another process of a run without the package goes on; it is asked as the first one is, which
    tells it that it has none."""
    monkeypatch.setattr(wandb_board.importlib.util, "find_spec", lambda name: None)

    def opened(config, directory):
        raise LookupError("the next thing that a run does")

    monkeypatch.setattr(resolve, "open_objective", opened)
    config = small.train_config("tokenizer", "", wandb_project="photos")
    for index, error in enumerate((UserError, LookupError)):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        with pytest.raises(error):
            train(config, tmp_path / "run")


@pytest.mark.usefixtures("compiled_once", "unevaluated")
def test_refusal_by_wandb_ends_every_process(wandb, configs, tmp_path, monkeypatch):
    """W&B starts in the first process alone, within the work whose mistakes end all of them."""
    wandb.refusal = wandb.Error("no login")
    run_on_all, ended = multihost.run_on_all, []

    def recorded(work):
        try:
            return run_on_all(work)
        except UserError as error:
            ended.append(str(error))
            raise

    monkeypatch.setattr(multihost, "run_on_all", recorded)
    config = dataclasses.replace(configs["transformer"], wandb_project="photos")
    with pytest.raises(UserError, match="no login") as refusal:
        train(config, tmp_path)
    assert ended == [str(refusal.value)]


@pytest.mark.long
def test_package_is_not_imported_unless_it_is_used():
    """The training loop alone does not load it."""
    code = "import sys, var_jax.train.loop; print('wandb' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


@pytest.mark.long
@pytest.mark.usefixtures("compiled_once", "unevaluated")
def test_offline_run_has_every_record(configs, tmp_path, monkeypatch):
    """The files of an offline run that SIGTERM stopped once are one W&B run of two starts, and have
    the values of every record of metrics.jsonl, each once, and the picture."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.setattr(step, "make_train_step", fake_step())
    config = dataclasses.replace(configs["transformer"], wandb_project="photos")
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        signal_in_step(patch, 2)
        train(config, tmp_path)
    train(config, tmp_path)
    id = json.loads((tmp_path / "wandb.json").read_text())["id"]
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert [file.name for file in files] == [f"run-{id}.wandb"] * 2
    logged = [
        {name: json.loads(text) for name, text in values.items()}
        for file in files
        for values in history(file)
    ]
    pictures = [values["samples/_type"] for values in logged if "samples/_type" in values]
    assert pictures == ["image-file"]
    losses = [
        (values["step"], split, values[f"{split}/loss"])
        for values in logged
        for split in ("train", "val")
        if f"{split}/loss" in values
    ]
    assert losses == [(r["step"], r["split"], r["loss"]) for r in records(tmp_path)]
