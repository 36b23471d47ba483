"""Whole runs of `train`: what they leave, how they resume, and that the mesh changes nothing."""

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from helpers import small
from helpers.runs import (
    NoEvaluator,
    assert_close,
    assert_same,
    losses,
    records,
    signal_in_step,
    weights,
)
from var_jax import Pipeline
from var_jax.config.model import ModelConfig
from var_jax.config.train import MeshConfig
from var_jax.errors import Preempted, UserError
from var_jax.io.checkpoint import Checkpoints
from var_jax.train import evaluation, mesh_choice
from var_jax.train.loop import train
from var_jax.train.progress import MetricWriter

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(
    scope="module", params=["transformer", pytest.param("tokenizer", marks=pytest.mark.slow)]
)
def whole_run(request, configs, tmp_path_factory):
    """(config, workdir, what `train` returned) of an uninterrupted run on a mesh of 8 x 1."""
    config, workdir = configs[request.param], tmp_path_factory.mktemp(request.param)
    return config, workdir, train(config, str(workdir))


def interrupt_at(monkeypatch, step: int):
    write = MetricWriter.write

    def interrupted(self, number, split, values):
        if number == step:
            raise KeyboardInterrupt
        write(self, number, split, values)

    monkeypatch.setattr(MetricWriter, "write", interrupted)


@pytest.mark.long
def test_train_resumes_bit_for_bit(whole_run, tmp_path, monkeypatch):
    """A run that is interrupted after its first checkpoint and started again has the records,
    weights, average and optimizer state of one that was not, to the last bit: the state is
    complete, and data and random numbers follow from the step alone."""
    config, uninterrupted, _ = whole_run
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 2)
        train(config, str(tmp_path))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    assert checkpoints.latest_step() == 1
    # The workdir is a whole model from the first checkpoint on.
    model = Pipeline.from_pretrained(tmp_path)
    assert model.config == ModelConfig(config.tokenizer, config.transformer)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"
    train(config, str(tmp_path))
    assert losses(tmp_path) == losses(uninterrupted)
    for part in ("params", "ema", "opt_state"):
        assert_same(weights(tmp_path, part), weights(uninterrupted, part))
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["step"], status["restarts"]) == ("done", 3, 1)


def test_train_leaves_records_samples_and_config(whole_run):
    """Every step and the last evaluation are in metrics.jsonl with the metrics of the stage, the
    padding of the last batch counts for nothing, and the picture and the config are there."""
    config, workdir, result = whole_run
    train_records = [r for r in records(workdir) if r["split"] == "train"]
    assert [r["step"] for r in train_records] == [1, 2, 3]
    last = next(r for r in records(workdir) if r["split"] == "val")
    assert last["step"] == 3 and last["loss"] == pytest.approx(result["loss"])
    assert last["images"] == 12  # the second batch is padded, and the padding counts for nothing
    for record in train_records:
        assert record["grad_norm"] > 0 and record["lr"] > 0 and record["images_per_s"] > 0
    scales = len(config.tokenizer.scales)
    if config.stage == "tokenizer":
        assert {"l1", "l2", "vq", "psnr", "code_usage", "perplexity"} <= last.keys()
        assert (
            len(last["code_usage"])
            == len(last["perplexity"])
            == len(train_records[0]["code_usage"])
            == scales
        )
    else:
        for record in (*train_records, last):
            assert {"loss_mean", "loss_last", "accuracy_mean", "accuracy_last"} <= record.keys()
            assert len(record["loss_scale"]) == scales
            assert record["loss_scale"][-1] == record["loss_last"]
    assert (workdir / "samples" / "step_0000003.png").stat().st_size > 100
    assert json.loads((workdir / "config.json").read_text())["steps"] == 3


def test_train_averages_parameters_and_pipelines_load_the_average(whole_run):
    """The average is that of the checkpoints' parameters with a decay that is warmed up, computed
    here by hand, and a pipeline made from the workdir has it for its weights."""
    config, workdir, _ = whole_run
    params, ema = weights(workdir), weights(workdir, "ema")
    assert any(
        not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (params, ema)), strict=True)
    )
    by_hand = small.pipeline().params[config.stage]
    for done in range(3):  # its decay is warmed up
        at, decay = (
            Checkpoints(workdir / "checkpoints", keep=3),
            min(config.ema, (1 + done) / (10 + done)),
        )
        after = at.restore_part("params", step=done + 1)
        by_hand = jax.tree.map(
            lambda a, p, d=decay: np.asarray(a) * d + p * (1 - d), by_hand, after
        )
    assert_close(ema, by_hand, 1e-5)
    loaded = Pipeline.from_pretrained(workdir)
    assert_same(loaded.params[config.stage], ema)
    assert loaded.config == ModelConfig(config.tokenizer, config.transformer)


def one_device(*_):
    return jax.make_mesh(
        (1, 1), ("data", "model"), devices=jax.devices()[:1], axis_types=(AxisType.Auto,) * 2
    )


def train_losses(workdir) -> list[float]:
    return [record["loss"] for record in records(workdir) if record["split"] == "train"]


@pytest.fixture(scope="module")
def on_one_device(whole_run, tmp_path_factory):
    config, workdir = whole_run[0], tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "Evaluator", NoEvaluator)
        patch.setattr(mesh_choice, "make_mesh", one_device)
        train(config, str(workdir))
    return workdir


def assert_same_to_rounding(actual, expected):
    assert train_losses(actual) == pytest.approx(train_losses(expected), rel=1e-5)
    assert_close(weights(actual), weights(expected), 1e-4)


@pytest.mark.long
def test_train_on_eight_devices_changes_nothing_but_rounding(whole_run, on_one_device):
    """Losses and weights of a run on a mesh of 8 x 1 are those of one device."""
    assert_same_to_rounding(whole_run[1], on_one_device)


@pytest.mark.long
def test_train_with_a_model_axis_changes_nothing_but_rounding(
    whole_run, on_one_device, unevaluated, tmp_path
):
    """Losses and weights of a run on a mesh of 4 x 2 are those of one device."""
    train(dataclasses.replace(whole_run[0], mesh=MeshConfig(4, 2)), str(tmp_path))
    assert_same_to_rounding(tmp_path, on_one_device)


def test_train_refuses_another_runs_workdir_and_leaves_it_alone(whole_run):
    """A config that differs is refused in one line that names the key and both values; no file of
    the workdir has been written since."""
    config, workdir, _ = whole_run
    before = {file: file.stat().st_mtime_ns for file in workdir.rglob("*")}
    other = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, base_lr=0.5)
    )
    with pytest.raises(
        UserError, match=r"another run; optimizer.base_lr: 0.5 here, 0.1 there; give another"
    ) as caught:
        train(other, str(workdir))
    assert "\n" not in str(caught.value)
    assert {file: file.stat().st_mtime_ns for file in workdir.rglob("*")} == before


def test_train_takes_no_step_of_a_finished_run(whole_run):
    """A finished run that is started again evaluates its last step once more and records no
    training step."""
    config, workdir, result = whole_run
    assert train(config, str(workdir))["loss"] == pytest.approx(result["loss"])
    assert [r["step"] for r in records(workdir)] == [1, 2, 3, 3]
    status = json.loads((workdir / "status.json").read_text())
    assert (status["state"], status["step"]) == ("done", 3)


@pytest.mark.long
def test_train_saves_at_sigterm_and_resumes_bit_for_bit(whole_run, tmp_path, monkeypatch):
    """The signal saves the step that is under way, though no checkpoint was due, puts the signal's
    handler back, and the run goes on to the records and weights of one that was not stopped."""
    config, uninterrupted, _ = whole_run
    config = dataclasses.replace(config, checkpoint_every=100)
    with (
        monkeypatch.context() as patch,
        pytest.raises(Preempted, match="after step 2 of 3, everything saved"),
    ):
        signal_in_step(patch, 1)
        train(config, str(tmp_path))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "preempted"
    assert Checkpoints(tmp_path / "checkpoints", keep=3).steps() == [2]
    train(config, str(tmp_path))
    assert losses(tmp_path) == losses(uninterrupted)
    assert_same(weights(tmp_path), weights(uninterrupted))


@pytest.mark.long
def test_train_branches_from_another_runs_whole_state(whole_run, unevaluated, tmp_path):
    """A branch takes its one step from the trunk's parameters and optimizer state, and ends as the
    trunk did; a step without a checkpoint is refused before a workdir is made."""
    config, trunk, _ = whole_run
    branch = dataclasses.replace(config, branch_from=str(trunk), branch_step=2, init_from="")
    train(branch, str(tmp_path / "branch"))
    assert [r["step"] for r in records(tmp_path / "branch") if r["split"] == "train"] == [3]
    for part in ("params", "opt_state"):
        assert_same(weights(tmp_path / "branch", part), weights(trunk, part))
    with pytest.raises(UserError, match="no checkpoint of step 7 in"):
        train(dataclasses.replace(branch, branch_step=7), str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.long
@pytest.mark.parametrize("whole_run", ["transformer"], indirect=True)
def test_train_refuses_another_tokenizer_on_the_way(whole_run, tmp_path):
    """A copy of the tokenizer elsewhere is the same; one of other weights is refused by its key, as
    the run's tokens would have two meanings."""
    config, workdir, _ = whole_run
    model = small.pipeline()
    model.save(tmp_path / "copy")
    assert train(dataclasses.replace(config, tokenizer_dir=str(tmp_path / "copy")), str(workdir))
    params = {**model.params, "tokenizer": jax.tree.map(lambda x: x + 1, model.params["tokenizer"])}
    Pipeline(model.config, params).save(tmp_path / "other")
    with pytest.raises(UserError, match=r"holds another tokenizer .* leave tokenizer_dir out"):
        train(dataclasses.replace(config, tokenizer_dir=str(tmp_path / "other")), str(workdir))
