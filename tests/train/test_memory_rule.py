"""What "auto" stands for in a run: the fastest settings whose memory is estimated to fit."""

import dataclasses

import jax
import pytest

from helpers import small
from var_jax.config.train import MeshConfig
from var_jax.devices.chips import GIB
from var_jax.devices.mesh import make_mesh
from var_jax.objectives import registry
from var_jax.train import memory_estimate, memory_rule
from var_jax.train.memory_rule import Settings
from var_jax.train.program import Program

MESH = {"data": 8, "model": 1}


def objective(remat="auto", policy="auto"):
    config = small.train_config("transformer", "", batch_size=64)
    transformer = dataclasses.replace(config.transformer, width=32, heads=8, remat=remat)
    mesh = MeshConfig(policy=policy)
    return registry.with_frozen_shapes(
        dataclasses.replace(config, transformer=transformer, mesh=mesh)
    )


def peak(policy: str, remat: str) -> float:
    """The estimate that the rule goes by."""
    run = objective(remat, policy)
    memory = memory_estimate.of_training(run, MESH, "tpu", run.model.dtype)
    return memory.peak(remat, run.config.batch_size)


def chosen(budget: float | None, **settings) -> Settings:
    return memory_rule.choose(objective(**settings), MESH, "tpu", budget)


@pytest.mark.long
def test_choose_takes_the_fastest_settings_that_fit():
    """With room for all, weights are gathered once and little is computed again; with no room for
    whole weights they are gathered in each pass, before the forward pass is computed once more."""
    assert chosen(100 * GIB) == Settings("zero1", "dots")
    settings = [Settings(*one) for one in (("zero1", "dots"), ("hsdp", "dots"), ("hsdp", "full"))]
    peaks = [peak(*one) for one in settings]
    assert peaks == sorted(peaks, reverse=True)
    for one, size in zip(settings, peaks, strict=True):
        assert chosen(size / memory_rule.LARGEST_SHARE + 1) == one
    assert peak("zero1", "full") < peaks[0]  # so that the order of the two is a choice


def test_choose_keeps_products_in_some_blocks_where_all_do_not_fit(monkeypatch):
    """Of 64 images on 8 devices, by hand: "dots" keeps 8 x 100 bytes, in one of the two blocks
    8 x 55, and the full recomputation 8 x 10."""
    residuals = {"none": 200.0, "dots": 100.0, "full": 10.0}
    memory = memory_estimate.TrainingMemory(
        *(0.0, 0.0, 0.0, 0.0),
        residuals=residuals,
        recomputed=dict.fromkeys(residuals, 0.0),
        encoded=0.0,
        parts=8,
        devices=8,
        depth=2,
    )
    monkeypatch.setattr(memory_estimate, "of_training", lambda *_: memory)
    for remat, size in (("dots", 8 * 100), ("dots:1", 8 * 55), ("full", 8 * 10)):
        assert chosen(size / memory_rule.LARGEST_SHARE + 1).remat == remat
        assert chosen((size - 1) / memory_rule.LARGEST_SHARE).remat != remat or remat == "full"


@pytest.mark.long
def test_choose_leaves_what_the_config_says():
    """A setting that is given stays, and the other is chosen beside it."""
    assert chosen(100 * GIB, remat="full") == Settings("zero1", "full")
    assert chosen(100 * GIB, policy="fsdp") == Settings("fsdp", "dots")
    assert chosen(1.0, remat="none", policy="fsdp") == Settings("fsdp", "none")


@pytest.mark.parametrize("budget", [None, 1.0])
def test_choose_takes_what_needs_least_where_nothing_fits(budget):
    """Where a device's memory is not known, or nothing fits it, memory is saved."""
    assert chosen(budget) == Settings("hsdp", "full")


def test_program_has_settings_in_place_of_auto():
    """A run compiles its step with the settings of the rule, and its config keeps "auto": the
    memory of a CPU is not in the table of chips."""
    run = objective()
    mesh = make_mesh(run.config.mesh, jax.devices()[:1])
    program = Program(run, mesh)
    assert program.objective.model.remat == "full"
    assert program.objective.config.mesh.policy == "hsdp"
    assert run.model.remat == run.config.mesh.policy == "auto"


def test_choices_are_two_at_most():
    """`aot` compiles the choice and, if it does not fit, the settings that need least."""
    device = dataclasses.make_dataclass("Device", [("device_kind", str), ("platform", str)])

    class Mesh:
        shape = MESH
        devices = type("Devices", (), {"flat": [device("TPU v5 lite", "tpu")]})

    def settings(run):
        return Settings(run.config.mesh.policy, run.model.remat)

    choices = memory_rule.choices(objective(), Mesh())
    assert [settings(one) for one in choices] == [("zero1", "dots"), ("hsdp", "full")]
    assert len(memory_rule.choices(objective("full", "fsdp"), Mesh())) == 1
