"""The diffusion transformer: its sizes, its start, and its tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import diffusion
from helpers.traced import product_flops
from var_jax.config.model import TransformerConfig
from var_jax.config.scales import Scales
from var_jax.models import flops, init
from var_jax.models.diffusion_transformer import DiffusionTransformer, from_patches, to_patches
from var_jax.ops.sinusoids import place_table, time_features

DIT_XL_2 = TransformerConfig(
    objective="diffusion",
    depth=28,
    width=1152,
    heads=16,
    qk_norm=False,
    key_bias=True,
    prediction="epsilon",
    learn_sigma=True,
    z_channels=4,
    scales=Scales.parse("32"),
)


def test_dit_xl_2_has_the_published_size():
    """The count includes the fixed table of 256 positions, and leaves out the mean and deviation of
    the 4 channels, which DiT does not have."""
    shapes = init.param_shapes(DIT_XL_2)
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert total == flops.param_count(DIT_XL_2)["total"]
    assert total + 256 * 1152 - 2 * 4 == 675_129_632


def test_dit_xl_2_has_the_published_multiply_adds():
    """One pass of DiT-XL/2 costs the 118.6 GFLOPs of the paper's tables, which count multiply-adds;
    guidance doubles each of a sample's evaluations, and training costs three passes."""
    assert flops.forward_flops(DIT_XL_2) / 2 == pytest.approx(118.6e9, rel=1e-3)
    guided = flops.generation_flops(DIT_XL_2, guided=True, evaluations=250)
    assert guided == 500 * flops.forward_flops(DIT_XL_2)
    assert flops.train_flops_per_image(DIT_XL_2) == 3 * flops.forward_flops(DIT_XL_2)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shared_adaln": True, "key_bias": True, "qk_norm": False},
        {"prediction": "epsilon", "learn_sigma": True, "patch": 4},
        {"latents": "pixels", "pixel_channels": 5, "patch": 1},
    ],
)
def test_flops_and_parameters_are_those_of_the_module(changes):
    """Both are counted in the module itself: its parameters, and every product of its traced
    program."""
    config = diffusion.transformer(**{"depth": 1, "width": 64, **changes})
    shapes = init.param_shapes(config)
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert flops.param_count(config)["total"] == total
    inputs = jnp.zeros((1, *config.latent_shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32)

    traced = jax.make_jaxpr(lambda p: DiffusionTransformer(config).apply({"params": p}, *inputs))
    assert product_flops(traced(shapes).jaxpr) == flops.forward_flops(config)


@pytest.mark.long
@pytest.mark.parametrize("shared", [False, True])
def test_untrained_blocks_are_the_identity_and_the_output_is_zero(shared):
    """AdaLN-zero: whatever the head, what the blocks return is what they were given."""
    config = diffusion.transformer(shared_adaln=shared)
    params = init.fresh_params(config, jax.random.key(0))
    latents = jax.random.normal(jax.random.key(1), (2, *config.latent_shape))
    inputs = latents, jnp.array([3.0, 700.0]), jnp.array([1, 10])
    model = DiffusionTransformer(config)

    def through_blocks(model, noisy, times, labels):
        cond = model.time_out(jax.nn.silu(model.time_in(time_features(times, 256))))
        x = model.patch_embed(to_patches(noisy, config.patch))
        return x, model.blocks(x, None, None, model.shared_ada(cond) if shared else cond)[0]

    before, after = model.apply({"params": params}, *inputs, method=through_blocks)
    np.testing.assert_array_equal(after, before)
    assert np.abs(before).max() > 0.1
    np.testing.assert_array_equal(model.apply({"params": params}, *inputs), 0)


def test_output_depends_on_every_input():
    """The output changes with the time, the class and every patch, and at the last position with
    the first."""
    model = diffusion.pipeline()
    config, params = model.config.transformer, model.params["transformer"]
    apply = jax.jit(lambda *x: DiffusionTransformer(config).apply({"params": params}, *x))
    latents = jax.random.normal(jax.random.key(0), (1, *config.latent_shape))
    base = apply(latents, jnp.array([10.0]), jnp.array([1]))
    assert np.abs(apply(latents, jnp.array([11.0]), jnp.array([1])) - base).max() > 1e-4
    assert np.abs(apply(latents, jnp.array([10.0]), jnp.array([2])) - base).max() > 1e-4
    other = apply(latents.at[0, -1, -1, 0].add(1.0), jnp.array([10.0]), jnp.array([1]))
    assert np.abs(other - base)[0, 0, 0].max() > 1e-4


def test_patches_are_squares_row_by_row():
    """Patch 4 of a map of 2 x 3 patches is the middle one of the second row, with its pixels row by
    row, and joining the patches restores the map."""
    values = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = to_patches(values, 2)
    assert patches.shape == (2, 6, 12)
    np.testing.assert_array_equal(patches[1, 4], values[1, 2:4, 2:4].reshape(-1))
    np.testing.assert_array_equal(from_patches(patches, (2, 3), 2), values)


def test_tables_are_dits():
    """Cosines first of times; of places, the column's sines and cosines before the row's."""
    features = time_features(jnp.array([5.0]), 4)
    np.testing.assert_allclose(
        features[0], [np.cos(5), np.cos(0.05), np.sin(5), np.sin(0.05)], rtol=1e-5
    )
    place = place_table((2, 3), 8)[5]  # row 1, column 2
    halves = [[f(c), f(c / 100)] for c in (2, 1) for f in (np.sin, np.cos)]
    np.testing.assert_allclose(place, np.ravel(halves), rtol=1e-6)
