import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from helpers import small
from helpers.runs import NoEvaluator, losses, records
from var_jax import Pipeline
from var_jax.config.train import MeshConfig
from var_jax.devices.preemption import Preemption
from var_jax.errors import Preempted, UserError
from var_jax.io.checkpoint import Checkpoints
from var_jax.objectives import step
from var_jax.train import evaluation, mesh_choice
from var_jax.train.loop import Diverged, train
from var_jax.train.metrics import MetricWriter
from var_jax.train.tokenize import tokenize

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def configs(digits_dir, model_dir):
    """A run of each stage, from given weights."""
    return {
        "tokenizer": small.train_config("tokenizer", digits_dir, init_from=str(model_dir)),
        "transformer": small.train_config(
            "transformer", digits_dir, init_from=str(model_dir), tokenizer_dir=str(model_dir)
        ),
    }


@pytest.fixture(
    scope="module", params=["transformer", pytest.param("tokenizer", marks=pytest.mark.slow)]
)
def whole_run(request, configs, tmp_path_factory):
    """(config, workdir, what `train` returned) of an uninterrupted run on a mesh of 8 x 1."""
    config, workdir = configs[request.param], tmp_path_factory.mktemp(request.param)
    return config, workdir, train(config, str(workdir))


def weights(workdir, part: str = "params"):
    return Checkpoints(workdir / "checkpoints", keep=3).restore_part(part)


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def assert_close(ours, theirs, tolerance: float):
    """Every array to a share of its own largest magnitude."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max()),
        ours,
        theirs,
    )


def interrupt_at(monkeypatch, step: int):
    write = MetricWriter.write

    def interrupted(self, number, split, values):
        if number == step:
            raise KeyboardInterrupt
        write(self, number, split, values)

    monkeypatch.setattr(MetricWriter, "write", interrupted)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(whole_run, tmp_path, monkeypatch):
    config, uninterrupted, _ = whole_run
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 2)
        train(config, str(tmp_path))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    assert checkpoints.latest_step() == 1
    assert (
        Pipeline.from_pretrained(tmp_path).config == config.model
    )  # whole from the first checkpoint on
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"
    train(config, str(tmp_path))
    assert losses(tmp_path) == losses(uninterrupted)
    for part in ("params", "ema", "opt_state"):
        assert_same(weights(tmp_path, part), weights(uninterrupted, part))
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["step"], status["restarts"]) == ("done", 3, 1)


def test_what_a_run_leaves(whole_run):
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


def test_the_average_follows_the_parameters_and_is_what_a_model_directory_gives(whole_run):
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
    assert loaded.config == config.model


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


def assert_same_to_rounding(ours, theirs):
    assert train_losses(ours) == pytest.approx(train_losses(theirs), rel=1e-5)
    assert_close(weights(ours), weights(theirs), 1e-4)


def test_eight_devices_change_nothing_but_rounding(whole_run, on_one_device):
    assert_same_to_rounding(whole_run[1], on_one_device)


def test_a_model_axis_changes_nothing_but_rounding(whole_run, on_one_device, unevaluated, tmp_path):
    train(dataclasses.replace(whole_run[0], mesh=MeshConfig(4, 2)), str(tmp_path))
    assert_same_to_rounding(tmp_path, on_one_device)


def fake_step(**late):
    """Steps that learn nothing, whose metrics are the given ones from step 2 on."""

    def make(*_):
        def step(run, batch, frozen):
            metrics = {
                name: jnp.where(run.step > 0, late.get(name, 1.0), 1.0)
                for name in ("loss", "grad_norm")
            }
            return run.replace(step=run.step + 1), metrics

        return step

    return make


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


@pytest.mark.parametrize("late", [{"loss": jnp.nan}, {"grad_norm": jnp.inf}], ids=str)
def test_what_is_not_finite_stops_the_run_before_it_is_saved(
    configs, unevaluated, late, tmp_path, monkeypatch
):
    monkeypatch.setattr(step, "make_train_step", fake_step(**late))
    with pytest.raises(Diverged, match=r"step 2.*the last checkpoint is of step 1"):
        train(configs["tokenizer"], str(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints", keep=3).steps() == [1]
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"


def test_train_diverges_before_the_first_checkpoint(configs, unevaluated, tmp_path, monkeypatch):
    """There is no step to name, so that the message says that nothing was saved."""
    monkeypatch.setattr(step, "make_train_step", fake_step(loss=jnp.nan))
    with pytest.raises(Diverged, match=r"step 2.*there is no checkpoint yet"):
        train(dataclasses.replace(configs["tokenizer"], checkpoint_every=3), str(tmp_path))


@pytest.mark.slow
def test_a_run_that_diverges_in_earnest(configs, unevaluated, tmp_path):
    config = configs["transformer"]
    optimizer = dataclasses.replace(config.optimizer, base_lr=1e30, schedule="constant")
    with pytest.raises(Diverged, match=r"step 2.*the last checkpoint is of step 1"):
        train(dataclasses.replace(config, optimizer=optimizer), str(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints", keep=3).steps() == [1]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(weights(tmp_path)))


def test_another_runs_workdir_is_refused_and_left_alone(whole_run):
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


def test_a_mistake_does_not_claim_the_workdir(configs, model_dir, tmp_path):
    config = configs["transformer"]
    fewer = dataclasses.replace(config.transformer, num_classes=9)
    for name, changes, message in (
        ("large", {"batch_size": 8000}, "lower batch_size"),
        (
            "split",
            {"data": dataclasses.replace(config.data, eval_split="tset")},
            "did you mean 'test'",
        ),
        ("classes", {"transformer": fewer}, "num_classes is 9; it must be at least the 10 classes"),
        ("init", {"init_from": str(tmp_path / "none")}, "no model directory"),
        (
            "width",
            {"transformer": dataclasses.replace(config.transformer, width=32)},
            "does not fit this run",
        ),
        ("mesh", {"mesh": MeshConfig(3, 2)}, "as many devices as there are, 8"),
        ("batch", {"batch_size": 6}, "batch_size is 6; it must be a multiple of 4"),
        ("tokenizer", {"tokenizer_dir": ""}, "tokenizer_dir is ''"),
    ):
        with pytest.raises(UserError, match=message):
            train(dataclasses.replace(config, **changes), str(tmp_path / name))
        assert not (tmp_path / name).exists(), name


def test_a_finished_run_trains_nothing_more(whole_run):
    config, workdir, result = whole_run
    assert train(config, str(workdir))["loss"] == pytest.approx(result["loss"])
    assert [r["step"] for r in records(workdir)] == [1, 2, 3, 3]
    status = json.loads((workdir / "status.json").read_text())
    assert (status["state"], status["step"]) == ("done", 3)


@pytest.mark.slow
def test_fine_tuning_with_another_class_count(configs, tmp_path, monkeypatch):
    """A real step and a real evaluation of what starts from the weights but for the class
    embedding."""
    monkeypatch.setattr(evaluation.Evaluator, "picture", NoEvaluator.picture)
    config = configs["transformer"]
    config = dataclasses.replace(
        config, steps=1, transformer=dataclasses.replace(config.transformer, num_classes=12)
    )
    result = train(config, str(tmp_path))
    ours, theirs = weights(tmp_path), dict(small.pipeline().params["transformer"])
    fresh = ours.pop("class_embed")
    assert fresh.shape == (13, 16) and abs(fresh.std() / config.transformer.init_std - 1) < 0.2
    del theirs["class_embed"]
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), ours, theirs)
    rate = (
        config.optimizer.base_lr * config.batch_size / 256
    )  # what a step of Adam moves a weight by at most
    assert all(0 < most < 1.5 * rate for most in jax.tree.leaves(moved)), moved
    training, held_out = records(tmp_path)
    assert training["grad_norm"] > 0 and np.isfinite(training["loss"])
    assert held_out["images"] == 12 and held_out["loss"] == pytest.approx(result["loss"])
    assert Pipeline.from_pretrained(tmp_path).config.transformer.num_classes == 12


def signal_in_step(monkeypatch, at: int):
    """SIGTERM reaches this process while the step `at` is prepared."""
    vote = Preemption.vote

    def told(self):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return vote(self)

    monkeypatch.setattr(Preemption, "vote", told)


def test_sigterm_saves_and_the_resumed_run_is_the_uninterrupted_one(
    whole_run, tmp_path, monkeypatch
):
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


class SlowEvaluator(NoEvaluator):
    """Evaluates as a large model would, in the sense that something happens meanwhile."""

    def __init__(self, *given):
        self.preemption = given[-1]

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


@pytest.mark.parametrize("cached", [True, False])
def test_train_places_what_its_steps_use_of_the_tokenizer(
    cached, configs, unevaluated, model_dir, tmp_path, monkeypatch
):
    """The decoder is for pictures; from a token cache no image is encoded either."""
    config, seen = configs["transformer"], []

    def make(*_):
        def step(run, batch, frozen):
            seen.append(set(frozen))
            return run.replace(step=run.step + 1), {"loss": jnp.ones(()), "grad_norm": jnp.ones(())}

        return step

    monkeypatch.setattr(step, "make_train_step", make)
    if cached:
        data = dataclasses.replace(config.data, train_split="train[:16]", eval_split="test[:8]")
        config = dataclasses.replace(config, data=data, steps=1)
        tokenize(config, str(model_dir), str(tmp_path / "cache"), batch=1)
        data = dataclasses.replace(data, tokens_dir=str(tmp_path / "cache"))
        config = dataclasses.replace(config, data=data)
    train(config, str(tmp_path / "run"))
    assert seen == [{"quantize"} | (set() if cached else {"encoder", "quant_conv"})]
    kept = Pipeline.from_pretrained(tmp_path / "run" / "tokenizer")  # and the workdir has all of it
    assert_same(kept.params["tokenizer"], small.pipeline().params["tokenizer"])


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


@pytest.mark.parametrize("checkpoint_every", [2, 100])
def test_train_hears_sigterm_within_an_evaluation(fast, tmp_path, monkeypatch, checkpoint_every):
    """Whether its step is one of those that are saved or not: nothing of the run is lost."""
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


def test_train_keeps_the_best_state_by_losses_that_come_after_the_save(fast, tmp_path, monkeypatch):
    losses_of = iter([0.1, 0.4, 0.3, 0.2])
    monkeypatch.setattr(SlowEvaluator, "metrics", lambda self, _: {"loss": next(losses_of)})
    train(dataclasses.replace(fast, steps=8, keep_checkpoints=1), str(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints", keep=3).steps() == [2, 8]


@pytest.mark.slow
def test_an_evaluation_that_preemption_put_off_is_made_up_for(configs, tmp_path, monkeypatch):
    config = dataclasses.replace(configs["tokenizer"], eval_every=2)
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        signal_in_step(patch, 1)
        train(config, str(tmp_path))
    assert [r["step"] for r in records(tmp_path) if r["split"] == "val"] == []
    train(config, str(tmp_path))
    assert [r["step"] for r in records(tmp_path) if r["split"] == "val"] == [2, 3]


def test_a_branch_goes_on_from_another_runs_whole_state(whole_run, unevaluated, tmp_path):
    config, trunk, _ = whole_run
    branch = dataclasses.replace(config, branch_from=str(trunk), branch_step=2, init_from="")
    train(branch, str(tmp_path / "branch"))
    assert [r["step"] for r in records(tmp_path / "branch") if r["split"] == "train"] == [3]
    for part in ("params", "opt_state"):
        assert_same(weights(tmp_path / "branch", part), weights(trunk, part))
    with pytest.raises(UserError, match="no checkpoint of step 7 in"):
        train(dataclasses.replace(branch, branch_step=7), str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_another_tokenizer_on_the_way_is_refused(configs, whole_run, tmp_path):
    config, workdir, _ = whole_run
    if config.stage == "tokenizer":
        pytest.skip("learns from no tokenizer")
    model = small.pipeline()
    model.save(tmp_path / "copy")
    assert train(dataclasses.replace(config, tokenizer_dir=str(tmp_path / "copy")), str(workdir))
    params = {**model.params, "tokenizer": jax.tree.map(lambda x: x + 1, model.params["tokenizer"])}
    Pipeline(model.config, params).save(tmp_path / "other")
    with pytest.raises(UserError, match=r"holds another tokenizer .* leave tokenizer_dir out"):
        train(dataclasses.replace(config, tokenizer_dir=str(tmp_path / "other")), str(workdir))


@pytest.mark.slow
def test_a_trace_of_some_steps(configs, unevaluated, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "make_train_step", fake_step())
    train(configs["tokenizer"], str(tmp_path), profile=(2, 1))
    assert any(file.stat().st_size > 100 for file in (tmp_path / "profile").rglob("*.xplane.pb"))
