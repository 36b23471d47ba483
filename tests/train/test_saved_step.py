"""A saved training step in place of a compiled one, and the runs that it is refused to."""

import dataclasses
import importlib.metadata

import jax
import pytest

from helpers import small
from helpers.runs import assert_same, losses, weights
from var_jax.config.train import AdversarialConfig, MeshConfig
from var_jax.errors import UserError
from var_jax.objectives import registry
from var_jax.perf import attached
from var_jax.train import mesh_choice, saved_step, toolchain
from var_jax.train.loop import train
from var_jax.train.program import Program

pytestmark = pytest.mark.usefixtures("compiled_once", "unevaluated")


def save(path, config):
    """Compiles a run's step for the devices of this process, and saves it."""

    def keep(step, compiled):
        saved_step.save(path, compiled, step.objective.config, step.mesh, "this machine")

    attached.report(config, keep)
    return path


@pytest.fixture(scope="module")
def executable(configs, tmp_path_factory):
    return save(tmp_path_factory.mktemp("step") / "step.executable", configs["transformer"])


def refuse_to_compile(self, variant):
    raise AssertionError("the step is compiled")


@pytest.mark.long
def test_train_with_a_saved_step_is_the_run_that_compiles(
    configs, executable, tmp_path, monkeypatch
):
    """On eight devices, from a file that was written before the run, every loss, weight and average
    is that of the run that compiles, to the last bit; the run has another learning rate and seed
    than the file's, so that they are arguments, and it fails if it compiles the step."""
    config = configs["transformer"]
    config = dataclasses.replace(
        config, seed=7, optimizer=dataclasses.replace(config.optimizer, base_lr=0.2)
    )
    train(config, tmp_path / "compiled")
    monkeypatch.setattr(Program, "_compiled", refuse_to_compile)
    train(config, tmp_path / "saved", executable=executable)
    assert losses(tmp_path / "saved") == losses(tmp_path / "compiled")
    for part in ("params", "ema", "opt_state"):
        assert_same(weights(tmp_path / "saved", part), weights(tmp_path / "compiled", part))


@pytest.mark.long
def test_saved_step_is_compiled_anew_where_the_folder_has_its_program(
    configs, tmp_path, monkeypatch, request
):
    """After a run has left its step in the folder of compiled programs, a step that is saved trains
    the same run to the last bit; one that was read from there would have no machine code."""
    shortest = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[shortest]
    request.addfinalizer(lambda: jax.config.update(shortest, before))
    jax.config.update(shortest, 0.0)
    config = dataclasses.replace(configs["transformer"], batch_size=16)
    train(config, tmp_path / "compiled")
    jax.clear_caches()
    path = save(tmp_path / "step.executable", config)
    monkeypatch.setattr(Program, "_compiled", refuse_to_compile)
    train(config, tmp_path / "saved", executable=path)
    assert losses(tmp_path / "saved") == losses(tmp_path / "compiled")


@pytest.mark.slow
def test_train_compiles_the_variants_that_a_file_does_not_hold(configs, tmp_path, monkeypatch):
    """A tokenizer's file holds the step with a discriminator, which trains from step 2 on: the
    first step alone is compiled, and the losses are those of the run that compiles both."""
    config = dataclasses.replace(
        configs["tokenizer"],
        adversarial=AdversarialConfig(weight=0.1, start=1, channels=8, layers=1),
    )
    path = save(tmp_path / "step.executable", config)
    train(config, tmp_path / "compiled")
    variants = []
    compiled = Program._compiled

    def note(self, variant):
        variants.append(variant.adversarial)
        return compiled(self, variant)

    monkeypatch.setattr(Program, "_compiled", note)
    train(config, tmp_path / "saved", executable=path)
    assert variants == [False]
    assert losses(tmp_path / "saved") == losses(tmp_path / "compiled")


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 16}, "batch_size: 16 here, 8 there"),
        ({"mesh": MeshConfig(data=4, model=2)}, "mesh.data: 4 here, 8 there"),
        ({"transformer.depth": 1}, "transformer.depth: 1 here, 2 there"),
        ({"optimizer.b1": 0.5}, "optimizer.b1: 0.5 here, 0.9 there"),
    ],
)
def test_load_refuses_another_program(configs, executable, tmp_path, changes, words):
    """A size, a mesh and a constant of the optimizer shape the program: each is named with both
    values, and the workdir stays untouched."""
    config = changed(configs["transformer"], changes)
    with pytest.raises(UserError) as refusal:
        train(config, tmp_path / "run", executable=executable)
    assert words in str(refusal.value) and "aot --save" in str(refusal.value)
    assert not (tmp_path / "run").exists()


def changed(config, changes):
    """Returns a config with other values of dotted keys."""
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        if section:
            value = dataclasses.replace(getattr(config, section), **{name: value})
        config = dataclasses.replace(config, **{section or name: value})
    return config


def test_load_refuses_other_versions_processors_and_devices(configs, executable, monkeypatch):
    """Where a library, this package's code, an option of the compiler, the processor's
    instructions, the number of devices or their order is another one, the refusal names it; nothing
    is loaded before."""
    objective = small.next_scale(configs["transformer"])
    program = Program(objective, mesh_choice.choose(objective).mesh)
    frozen = objective.step_frozen()

    def refusal(run: Program = program) -> str:
        with pytest.raises(UserError) as error:
            saved_step.load(executable, run, frozen)
        return str(error.value)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: f"{name} 99")
        assert "versions.jax: jax 99 here" in refusal()
    with monkeypatch.context() as patch:
        versions = {"flax": "flax 99", "optax": "optax 99"}
        true = importlib.metadata.version
        patch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or true(name))
        assert "versions.flax: flax 99 here" in refusal()
        assert "versions.optax: optax 99 here" in refusal()
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        assert "environment.XLA_FLAGS xla_cpu_enable_fast_math: true here, None there" in refusal()
    with monkeypatch.context() as patch:
        patch.setattr(toolchain, "sources", lambda: "other")
        assert "versions.sources of var_jax: other here" in refusal()
    with monkeypatch.context() as patch:
        patch.setattr(toolchain, "processor", lambda: "other")
        assert "processor: other here" in refusal()
    four = mesh_choice.choose(objective, jax.devices()[:4]).mesh
    assert "number of devices: 4 here, 8 there" in refusal(Program(objective, four))
    turned = mesh_choice.choose(objective, jax.devices()[::-1]).mesh
    assert "ids and coordinates" in refusal(Program(objective, turned))


@pytest.mark.long
def test_shaping_leaves_out_what_no_program_depends_on(configs):
    """With other values of all settings that may differ, the run's program has the same text, as
    they are its arguments or no part of it; a setting that is compared changes the text."""
    config = configs["transformer"]
    rates = {"base_lr": 0.3, "warmup_steps": 1, "warmup_from": 0.1, "final_lr_ratio": 0.3}
    rates |= {"cooldown_steps": 1, "weight_decay": 0.3, "final_weight_decay": 0.4}
    other = dataclasses.replace(
        config,
        seed=9,
        steps=5,
        log_every=2,
        eval_every=2,
        checkpoint_every=2,
        keep_checkpoints=1,
        keep_steps=(2,),
        eval_images=4,
        sample_classes=1,
        wandb_project="p",
        init_from="",
        data=dataclasses.replace(config.data, train_split="test"),
        optimizer=dataclasses.replace(config.optimizer, **rates),
    )
    assert saved_step.shaping(other) == saved_step.shaping(config)
    assert text(other) == text(config)
    constant = changed(config, {"optimizer.b1": 0.5})
    assert saved_step.shaping(constant) != saved_step.shaping(config)
    assert text(constant) != text(config)


def text(config) -> str:
    """Returns the lowered step of a run."""
    objective = registry.with_frozen_shapes(config)
    mesh = mesh_choice.choose(objective).mesh
    program = Program(objective, mesh)
    with jax.set_mesh(mesh):
        state, batch, frozen, _ = program.arguments(objective.step_frozen())
        return program.step().lower(state, batch, frozen).as_text()


def test_shaping_counts_shares_of_the_run_as_steps(configs):
    """A discriminator that starts after a share of the run starts later in a longer run, and the
    step has a constant for it: the length then shapes the program, and without it does not."""
    config = configs["tokenizer"]
    longer = dataclasses.replace(config, steps=2 * config.steps)
    assert saved_step.shaping(longer) == saved_step.shaping(config)
    adversarial = AdversarialConfig(weight=0.1, start=0.4)
    shares = [
        saved_step.shaping(dataclasses.replace(run, adversarial=adversarial))
        for run in (config, longer)
    ]
    assert shares[0] != shares[1]
