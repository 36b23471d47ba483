"""What a run's program refuses before anything is compiled."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from helpers import small
from var_jax.config.train import MeshConfig
from var_jax.devices.mesh import make_mesh
from var_jax.errors import UserError
from var_jax.objectives import registry
from var_jax.train.program import Program
from var_jax.train.step import average


def program(config, **model) -> Program:
    part = dataclasses.replace(getattr(config, config.stage), **model)
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    config = dataclasses.replace(config, **{config.stage: part})
    return Program(registry.with_frozen_shapes(config), mesh)


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_program_refuses_to_train_bfloat16_weights(stage):
    """Weights without float32 masters are refused by the key's name; to compute in bfloat16 is
    not."""
    config = small.train_config(stage, "")
    with pytest.raises(
        UserError,
        match=rf"{stage}\.param_dtype is 'bfloat16'; it must be 'float32'.*{stage}\.dtype",
    ):
        program(config, param_dtype="bfloat16")
    held = program(config, dtype="bfloat16").abstract
    for leaf in jax.tree.leaves((held.params, held.ema)):
        assert leaf.dtype == jnp.float32


def test_program_keeps_an_average_that_moves():
    """The average of a training state reaches with decay 0.9999 what float64 does, within 1e-3.

    Held in bfloat16 it stops where a step's share is below half of the distance to the next number.
    """
    held = program(small.train_config("transformer", "", ema=0.9999)).abstract.ema
    dtype = jax.tree.leaves(held)[0].dtype
    steps = jnp.arange(100_000, 170_000)  # past the warm-up of the decay
    averaged = jax.jit(
        lambda: jax.lax.scan(
            lambda ema, step: (average(ema, jnp.ones((), dtype), 0.9999, step), None),
            jnp.zeros((), dtype),
            steps,
        )[0]
    )
    assert float(averaged()) == pytest.approx(1 - 0.9999**70_000, abs=1e-3)
