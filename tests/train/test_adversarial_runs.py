"""Runs with a discriminator: they resume bit for bit, and stop where a number is not finite."""

import dataclasses
import json

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import small
from helpers.adversarial import HEALTH, PATCH
from helpers.runs import losses
from var_jax.config.tokenizer_training import CodebookConfig
from var_jax.config.train import MeshConfig
from var_jax.devices.mesh import make_mesh
from var_jax.io.checkpoint import Checkpoints
from var_jax.objectives import registry
from var_jax.train import step
from var_jax.train.loop import Diverged, train
from var_jax.train.program import Program
from var_jax.train.progress import MetricWriter

pytestmark = pytest.mark.usefixtures("compiled_once")


def config_with_everything(digits_dir, **changes):
    """Returns a run with every term, a second pass of the discriminator, blur, and dropout."""
    all_settings = {
        "adversarial": dataclasses.replace(PATCH, bcr=0.5, blur_fade=3, cutout=0.2, hinge="sum"),
        "codebook": dataclasses.replace(HEALTH, weight_decay=False),
        "tokenizer": dataclasses.replace(small.TOKENIZER, dropout=0.1, init_gain=0.5),
        "ema_warmup": 2,
    }
    return small.train_config("tokenizer", digits_dir, **{**all_settings, **changes})


@pytest.mark.slow
def test_train_resumes_an_adversarial_run_bit_for_bit(
    digits_dir, unevaluated, tmp_path, monkeypatch
):
    """A resumed run has both networks, their optimizers, power iteration, LeCam's averages and the
    codes' usage of an uninterrupted one, bit for bit; adversarial training starts between the
    interruption's checkpoint and the end."""
    config = config_with_everything(digits_dir)
    train(config, str(tmp_path / "whole"))

    def interrupted(self, number, split, values):
        if number == 2:
            raise KeyboardInterrupt
        write(self, number, split, values)

    write = MetricWriter.write
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MetricWriter, "write", interrupted)
        train(config, str(tmp_path / "resumed"))
    checkpoints = [
        Checkpoints(tmp_path / name / "checkpoints", keep=3) for name in ("whole", "resumed")
    ]
    assert checkpoints[1].latest_step() == 1
    train(config, str(tmp_path / "resumed"))
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")
    for part in ("params", "ema", "opt_state", "discriminator", "usage"):
        full, resumed = (one.restore_part(part, 3) for one in checkpoints)
        jax.tree.map(np.testing.assert_array_equal, resumed, full)
    first, second, third = losses(tmp_path / "whole")[:3]
    assert not {"hinge", "adaptive_weight", "discriminator_lr"} & first.keys()
    for record in (second, third):
        assert {
            "hinge",
            "lecam",
            "adaptive_weight",
            "logits_real",
            "discriminator_grad_norm",
        } <= record.keys()
        assert len(record["code_usage"]) == len(record["perplexity"]) == 3
    assert "r1" not in first and second["r1"] > 0 and third["r1"] == 0  # every second step
    started = [checkpoints[0].restore_part("discriminator", number) for number in (1, 2, 3)]
    assert [int(one["updates"]) for one in started] == [0, 1, 2]
    np.testing.assert_allclose(
        started[1]["averages"], [second["logits_real"], second["logits_fake"]], rtol=1e-5
    )
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), *(one["params"] for one in started[1:]))
    assert all(jax.tree.leaves(moved))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("loss", "the generator's loss"),
        ("grad_norm", "the generator's grad_norm"),
        ("discriminator_loss", "the discriminator's loss"),
        ("discriminator_grad_norm", "the discriminator's grad_norm"),
    ],
)
def test_train_names_the_network_whose_metric_is_not_finite(
    digits_dir, unevaluated, tmp_path, monkeypatch, name, message
):
    """A step whose metric is NaN ends the run with the name of that metric's network, and keeps the
    checkpoint before it."""
    names = ("loss", "grad_norm", "discriminator_loss", "discriminator_grad_norm")

    def make(*_):
        def fake_step(run, batch, frozen):
            metrics = {
                key: jnp.where((run.step > 0) & (key == name), jnp.nan, 1.0) for key in names
            }
            return run.replace(step=run.step + 1), metrics

        return fake_step

    monkeypatch.setattr(step, "make_train_step", make)
    with pytest.raises(
        Diverged, match=f"{message} of step 2 is nan; the last checkpoint is of step 1"
    ):
        train(config_with_everything(digits_dir, codebook=CodebookConfig()), str(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints", keep=3).steps() == [1]
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "message"),
    [("discriminator", "the discriminator's"), ("decoder", "the generator's")],
)
def test_train_leaves_a_finite_checkpoint_when_weights_are_not(
    digits_dir, unevaluated, tmp_path, monkeypatch, broken, message
):
    """The run stops at the step that spoils the weights; its last checkpoint is finite and lets the
    same command go on."""
    make_train_step = step.make_train_step

    def make(*args, **kwargs):
        real = make_train_step(*args, **kwargs)

        def breaking(run, batch, frozen):
            def spoiled(tree):
                return jax.tree.map(lambda x: jnp.where(run.step == 1, jnp.nan, x), tree)

            if broken == "decoder":
                run = run.replace(params={**run.params, "decoder": spoiled(run.params["decoder"])})
            else:
                run = run.replace(
                    discriminator=run.discriminator.replace(
                        params=spoiled(run.discriminator.params)
                    )
                )
            return real(run, batch, frozen)

        return breaking

    config = config_with_everything(digits_dir)
    with (
        monkeypatch.context() as patch,
        pytest.raises(Diverged, match=f"{message} .* of step 2 is nan; the last check"),
    ):
        patch.setattr(step, "make_train_step", make)
        train(config, str(tmp_path))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    assert checkpoints.steps() == [1]
    for part in ("params", "ema", "discriminator"):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(checkpoints.restore_part(part, 1)))
    train(config, str(tmp_path))  # and goes on from there
    assert [record["step"] for record in losses(tmp_path) if record["split"] == "train"] == [
        1,
        2,
        3,
    ]


@flax.struct.dataclass
class PlainState:
    """A state as runs wrote it before there were discriminators."""

    step: jax.Array
    params: dict
    ema: dict | None
    opt_state: dict


@pytest.mark.slow
def test_restore_reads_states_without_a_discriminator(tmp_path):
    """A checkpoint of plain training, which holds four parts, restores into a state whose other
    parts are None."""
    config = small.train_config("tokenizer", "")
    mesh = make_mesh(MeshConfig(8, 1))
    program = Program(registry.with_frozen_shapes(config), mesh)
    run = program.first_state()
    assert run.discriminator is None and run.usage is None
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, PlainState(run.step, run.params, run.ema, run.opt_state), {}, wait=True)
    checkpoints.close()
    restored, _ = Checkpoints(tmp_path, keep=1).restore(program.abstract_state())
    jax.tree.map(np.testing.assert_array_equal, restored, run)
    assert restored.discriminator is None
