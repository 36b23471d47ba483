"""One step of each rival on meshes of 8 devices is the step of one device."""

import dataclasses

import jax
import numpy as np
import pytest

from helpers import diffusion, masked, next_token, small
from helpers.mesh_steps import assert_same_step, one_step
from var_jax.config.train import MeshConfig
from var_jax.devices.mesh import make_mesh
from var_jax.objectives import registry
from var_jax.train.program import Program

pytestmark = pytest.mark.usefixtures("compiled_fast")

BATCH = 8
# Its heads, MLP and vocabulary divide by 8, as its width does.
CONFIGS = {
    "next_token": small.train_config(
        "transformer",
        "",
        tokenizer=next_token.TOKENIZER,
        transformer=dataclasses.replace(next_token.transformer(), width=32, heads=8),
        batch_size=BATCH,
    ),
    "masked": masked.train_config(
        "", transformer=masked.transformer(width=32, heads=8), batch_size=BATCH
    ),
    "diffusion": small.train_config(
        "transformer",
        "",
        tokenizer=diffusion.TOKENIZER,
        transformer=diffusion.transformer(depth=1, width=32, heads=8),
        batch_size=BATCH,
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("objective", CONFIGS)
def test_train_step_is_the_same_on_every_mesh(objective):
    """Metrics and updated parameters of 8x1 and 4x2 devices are those of one, to rounding; random
    masks, times and noise are the same on all."""
    config = CONFIGS[objective]
    random, tokens = np.random.default_rng(0), config.tokenizer.scales.total
    batch = {"label": random.integers(0, small.CLASSES, BATCH).astype(np.int32)}
    if objective == "diffusion":
        shape = (BATCH, *config.transformer.latent_shape)
        batch["latents"] = random.standard_normal(shape).astype(np.float32)
    else:
        batch["tokens"] = random.integers(0, 16, (BATCH, tokens)).astype(np.int32)
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    program = Program(registry.with_frozen_shapes(config), mesh)
    start = jax.tree.map(np.asarray, program.first_state().params)
    expected = one_step(1, 1, batch, start, config)
    for shape in ((8, 1), (4, 2)):
        assert_same_step(one_step(*shape, batch, start, config), expected, start)
