"""Parameters of the next-scale transformer: initial values, published sizes and shapes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from helpers import small
from var_jax.config.model import TransformerConfig
from var_jax.config.scales import SCALES_512, Scales
from var_jax.io.torch_keys import abstract
from var_jax.models.transformer import Transformer

MIDDLING = TransformerConfig(
    depth=3,
    width=192,
    heads=4,
    num_classes=500,
    vocab_size=512,
    z_channels=32,
    scales=Scales.parse("2,8,12"),
)


@pytest.fixture(scope="module", params=[False, True], ids=["adaln per block", "shared adaln"])
def fresh(request):
    """(config, freshly initialized parameters by path) of a model wide enough to measure."""
    config = dataclasses.replace(MIDDLING, shared_adaln=request.param, init_adaln_gamma=0.01)
    later = config.scales.total - config.scales.lengths[0]
    inputs = jnp.zeros((1, later, config.z_channels)), np.array([0])
    params = nn.meta.unbox(jax.jit(Transformer(config).init)(jax.random.key(0), *inputs))["params"]
    return config, {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}


@pytest.mark.long
def test_init_applies_every_factor(fresh):
    """Means and standard deviations of every parameter are those of the published initialization,
    within four standard errors; no parameter is missing from the list."""
    config, params = fresh
    std = (1 / (3 * config.width)) ** 0.5
    assert config.init_std == std
    expected = {
        "word_embed/kernel": std,
        "class_embed": std,
        "pos_start": std,
        "pos_embed": std,
        "level_embed": std,
        "head/kernel": 0.02 * std,
        "head_ada/kernel": 0.5 * std,
        "blocks/attn/qkv": std,
        "blocks/attn/proj": std / (2 * config.depth) ** 0.5,
        "blocks/fc1/kernel": std,
        "blocks/fc2/kernel": std / (2 * config.depth) ** 0.5,
    }
    if config.shared_adaln:
        expected["shared_ada/kernel"] = std
        modulated, wide = params["blocks/ada_offset"], config.width**-0.5
    else:
        modulated, wide = params["blocks/ada/kernel"], std
    for name, value in expected.items():
        # Over four times the standard error of an estimated standard deviation.
        tolerance = 4 / params[name].size ** 0.5
        assert abs(params[name].std() / value - 1) < tolerance, name
        assert abs(params[name].mean()) < 4 * value / params[name].size ** 0.5, name
        assert np.abs(params[name]).max() > 2.2 * value, name  # not cut at two standard deviations
    rows = np.moveaxis(modulated, -2, 0).reshape(6, -1)
    for row, factor in zip(rows, [0.01, 0.01, 0.5, 0.5, 0.5, 0.5], strict=True):
        assert abs(row.std() / (wide * factor) - 1) < 4 / row.size**0.5
    for name in (name for name in params if name.endswith("bias")):
        assert not params[name].any(), name
    np.testing.assert_array_equal(
        params["blocks/attn/log_scale"], np.full((3, 4), np.log(np.float32(4)))
    )
    named = {
        *expected,
        "blocks/attn/log_scale",
        "blocks/ada_offset" if config.shared_adaln else "blocks/ada/kernel",
    }
    assert {name for name in params if not name.endswith("bias")} == named


def test_layers_start_with_weights_of_their_own(fresh):
    """The stacked blocks are initialized from different keys: the first two differ."""
    qkv = fresh[1]["blocks/attn/qkv"]
    assert not np.allclose(qkv[0], qkv[1])


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"depth": 16}, 310_283_520),
        ({"depth": 20}, 600_917_136),
        ({"depth": 24}, 1_033_399_360),
        ({"depth": 30}, 2_010_020_356),
        ({"depth": 36, "shared_adaln": True, "scales": Scales.parse(SCALES_512)}, 2_353_893_904),
    ],
    ids=str,
)
def test_transformer_has_the_published_sizes(changes, count):
    """The configs d16 to d36 initialize as many values as the released checkpoints have."""
    leaves = abstract(TransformerConfig(**changes)).values()
    assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == count


def test_d36_at_512_pixels_has_logits_of_every_token():
    """The shapes of the largest published model fit each other: 2240 tokens with 4096 logits
    each."""
    config = TransformerConfig(depth=36, shared_adaln=True, scales=Scales.parse(SCALES_512))
    params = unflatten_dict(abstract(config), sep="/")
    inputs = jax.ShapeDtypeStruct((1, config.scales.total - 1, config.z_channels), jnp.float32)
    out = jax.eval_shape(
        Transformer(config).apply, {"params": params}, inputs, jax.ShapeDtypeStruct((1,), jnp.int32)
    )
    assert (out.shape, out.dtype) == ((1, 2240, 4096), jnp.float32)


def test_shared_adaln_is_one_linear_for_all_blocks():
    """The blocks hold an offset each and no linear layer of their own."""
    config = dataclasses.replace(small.TRANSFORMER, shared_adaln=True)
    shapes = {path: leaf.shape for path, leaf in abstract(config).items()}
    assert shapes["shared_ada/kernel"] == (16, 6, 16) and shapes["blocks/ada_offset"] == (2, 6, 16)
    assert not any(path.startswith("blocks/ada/") for path in shapes)
