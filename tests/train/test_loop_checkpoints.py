"""When `train` saves, evaluates and stops, mostly by steps that learn nothing."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.runs import (
    NoEvaluator,
    fake_step,
    records,
    signal_in_step,
    weights,
)
from var_jax.errors import Preempted
from var_jax.io.checkpoint import Checkpoints
from var_jax.train import evaluation, step
from var_jax.train.loop import Diverged, train
from var_jax.train.progress import MetricWriter

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.mark.long
def test_train_keeps_its_records_before_each_checkpoint(
    configs, unevaluated, tmp_path, monkeypatch
):
    """What is logged up to a step is flushed before that step's checkpoint is begun: a run that
    resumes from it never logs those steps again."""
    calls = []

    def noted(owner, name):
        method = getattr(owner, name)

        def call(self, *args, **keywords):
            calls.append((name, *(arg for arg in args[:1] if isinstance(arg, int))))
            return method(self, *args, **keywords)

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((MetricWriter, "write"), (MetricWriter, "flush"), (Checkpoints, "save")):
        noted(owner, name)
    train(configs["transformer"], str(tmp_path))
    assert [call for call in calls if call[0] == "save"] == [("save", 1), ("save", 2), ("save", 3)]
    for number in (1, 2, 3):
        before = calls[: calls.index(("save", number))]
        flushed = len(before) - 1 - before[::-1].index(("flush",))
        assert ("write", number) in before[:flushed] and ("write", number) not in before[flushed:]


@pytest.mark.long
@pytest.mark.parametrize("late", [{"loss": jnp.nan}, {"grad_norm": jnp.inf}], ids=str)
def test_train_stops_before_it_saves_what_is_not_finite(
    configs, unevaluated, late, tmp_path, monkeypatch
):
    """A step whose loss or gradient norm is not finite leaves the checkpoint before it as the last
    one, and the status says why the run failed."""
    monkeypatch.setattr(step, "make_train_step", fake_step(**late))
    with pytest.raises(Diverged, match=r"step 2.*the last checkpoint is of step 1"):
        train(configs["tokenizer"], str(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints", keep=3).steps() == [1]
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed" and "of step 2 is" in status["diverged"]


def test_train_diverges_before_the_first_checkpoint(configs, unevaluated, tmp_path, monkeypatch):
    """There is no step to name, so that the message says that nothing was saved."""
    monkeypatch.setattr(step, "make_train_step", fake_step(loss=jnp.nan))
    with pytest.raises(Diverged, match=r"step 2.*there is no checkpoint yet"):
        train(dataclasses.replace(configs["tokenizer"], checkpoint_every=3), str(tmp_path))


@pytest.mark.slow
def test_train_stops_when_a_real_step_diverges(configs, unevaluated, tmp_path):
    """A learning rate of 1e30 diverges in the second step, and the checkpoint that is kept is
    finite."""
    config = configs["transformer"]
    optimizer = dataclasses.replace(config.optimizer, base_lr=1e30, schedule="constant")
    with pytest.raises(Diverged, match=r"step 2.*the last checkpoint is of step 1"):
        train(dataclasses.replace(config, optimizer=optimizer), str(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints", keep=3).steps() == [1]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(weights(tmp_path)))


class SlowEvaluator(NoEvaluator):
    """Evaluates as a large model would, in the sense that something happens meanwhile."""

    def __init__(self, *values):
        self.preemption = values[-1]

    def metrics(self, params):
        self.meanwhile()
        self.preemption.check()  # as after a batch
        return {"loss": 0.5}

    def meanwhile(self):
        pass


def evaluated(workdir) -> list[int]:
    path = workdir / "metrics.jsonl"
    return [r["step"] for r in records(workdir) if r["split"] == "val"] if path.exists() else []


@pytest.fixture
def fast(configs, monkeypatch):
    """A run of four steps that learn nothing, evaluated and saved at every second."""
    monkeypatch.setattr(step, "make_train_step", fake_step())
    monkeypatch.setattr(evaluation, "Evaluator", SlowEvaluator)
    return dataclasses.replace(configs["tokenizer"], steps=4, eval_every=2, checkpoint_every=2)


@pytest.mark.long
def test_train_saves_before_it_evaluates_and_makes_up_what_a_kill_cut_off(
    fast, tmp_path, monkeypatch
):
    """The evaluation dies as a kill lets it die: the state of its step is there, and the next start
    evaluates that first."""
    seen = []

    def killed(self):
        seen.append(Checkpoints(tmp_path / "checkpoints", keep=3).steps())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SlowEvaluator, "meanwhile", killed)
        train(fast, str(tmp_path))
    assert (
        Checkpoints(tmp_path / "checkpoints", keep=3).steps() == [2] and evaluated(tmp_path) == []
    )
    train(fast, str(tmp_path))
    assert evaluated(tmp_path) == [2, 4]
    train(
        fast, str(tmp_path)
    )  # and once is enough: only what the caller asks for is measured again
    assert evaluated(tmp_path) == [2, 4]


@pytest.mark.long
@pytest.mark.parametrize("checkpoint_every", [2, 100])
def test_train_hears_sigterm_within_an_evaluation(fast, tmp_path, monkeypatch, checkpoint_every):
    """Nothing of the run is lost, at a step that is saved and at one that is not."""
    config = dataclasses.replace(fast, checkpoint_every=checkpoint_every)
    with (
        monkeypatch.context() as patch,
        pytest.raises(Preempted, match="after step 2 of 4, everything saved"),
    ):
        patch.setattr(SlowEvaluator, "meanwhile", lambda self: os.kill(os.getpid(), signal.SIGTERM))
        train(config, str(tmp_path))
    assert (
        Checkpoints(tmp_path / "checkpoints", keep=3).steps() == [2] and evaluated(tmp_path) == []
    )
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "preempted"
    train(config, str(tmp_path))
    assert evaluated(tmp_path) == [2, 4]


@pytest.mark.long
def test_train_keeps_the_best_state_by_losses_that_come_after_the_save(fast, tmp_path, monkeypatch):
    """The evaluation of step 2, the lowest loss, ends after later saves, and its checkpoint is kept
    besides the last."""
    losses_of = iter([0.1, 0.4, 0.3, 0.2])
    monkeypatch.setattr(SlowEvaluator, "metrics", lambda self, _: {"loss": next(losses_of)})
    train(dataclasses.replace(fast, steps=8, keep_checkpoints=1), str(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints", keep=3).steps() == [2, 8]


@pytest.mark.slow
def test_train_makes_up_for_an_evaluation_that_preemption_put_off(configs, tmp_path, monkeypatch):
    """The run stops before the evaluation of step 2, which the next start makes up for before it
    goes on."""
    config = dataclasses.replace(configs["tokenizer"], eval_every=2)
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        signal_in_step(patch, 1)
        train(config, str(tmp_path))
    assert [r["step"] for r in records(tmp_path) if r["split"] == "val"] == []
    train(config, str(tmp_path))
    assert [r["step"] for r in records(tmp_path) if r["split"] == "val"] == [2, 3]


@pytest.mark.slow
def test_train_writes_a_trace_of_some_steps(configs, unevaluated, tmp_path, monkeypatch):
    """The profiler's file of the asked steps is in the workdir."""
    monkeypatch.setattr(step, "make_train_step", fake_step())
    train(configs["tokenizer"], str(tmp_path), profile=(2, 1))
    assert any(file.stat().st_size > 100 for file in (tmp_path / "profile").rglob("*.xplane.pb"))
