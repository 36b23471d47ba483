"""Weight matrices in int8: how far a level is from the value, every objective's samples, and what
such a model refuses."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import diffusion, masked, next_token, small
from var_jax.config.train import MeshConfig
from var_jax.devices import sharding
from var_jax.devices.mesh import make_mesh
from var_jax.errors import UserError
from var_jax.models import flops, init, int8_weights
from var_jax.sampling import sampler_registry
from var_jax.studies import lower_precision

PIPELINES = {
    "next_scale": small.pipeline,
    "next_token": next_token.pipeline,
    "masked": masked.pipeline,
    "diffusion": diffusion.pipeline,
}
INT8 = dataclasses.replace(small.TRANSFORMER, param_dtype="int8")


@pytest.mark.long
def test_values_are_within_half_a_level_of_their_channel():
    """A level is the largest magnitude of the output channel over 127, whichever axes its product
    sums over; a channel of zeros stays one."""
    params = init.fresh_params(small.TRANSFORMER, jax.random.key(0))
    qkv = params["blocks"]["attn"]["qkv"]
    params["blocks"]["attn"]["qkv"] = qkv.at[:, :, 0, 0, 0].set(0.0)
    blocks, matrices = int8_weights.quantized(params)["blocks"], []
    back = int8_weights.dequantized(blocks, "float32")
    for path, exact in jax.tree_util.tree_leaves_with_path(params["blocks"]):
        name = path[-1].key
        if name not in int8_weights.INPUT_AXES:
            continue
        axes = tuple(range(1, 1 + int8_weights.INPUT_AXES[name]))
        quantized, restored = blocks, back
        for key in path:
            quantized, restored = quantized[key.key], restored[key.key]
        assert quantized["int8"].dtype == jnp.int8 and quantized["int8"].shape == exact.shape
        level = jnp.max(jnp.abs(exact), axis=axes, keepdims=True) / 127
        assert quantized["scale"].shape == level.shape
        assert jnp.all(jnp.abs(restored - exact) <= 0.501 * level)
        matrices.append("/".join(key.key for key in path))
    assert matrices == ["ada/kernel", "attn/proj", "attn/qkv", "fc1/kernel", "fc2/kernel"]


@pytest.mark.long
@pytest.mark.parametrize("objective", PIPELINES)
def test_objectives_sample_from_int8(objective):
    """Images of all objectives are those of bfloat16 to the rounding of the weights, and not the
    same: the weights are rounded. The rest of the parameters is in bfloat16."""
    model = PIPELINES[objective]()
    lower = model.astype("int8")
    settings = {"seed": 3, "steps": 3} if objective in ("masked", "diffusion") else {"seed": 3}
    images = lower.sample([1, 2, 3], **settings)
    assert images.shape == model.sample([1, 2, 3], **settings).shape
    assert np.isfinite(images).all()
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(lower.params["transformer"]["blocks"])}
    assert dtypes == {jnp.dtype("int8"), jnp.dtype("bfloat16"), jnp.dtype("float32")}
    floats = {leaf.dtype for leaf in jax.tree.leaves(lower.params["tokenizer"])}
    assert floats == {jnp.dtype("bfloat16")}
    if objective != "diffusion":
        tokens = np.asarray(model.sample([1, 2, 3], return_tokens=True, **settings)[1])
        exact, rounded = (np.asarray(m.logits(tokens, [1, 2, 3])) for m in (model, lower))
        error = np.abs(rounded - exact).mean() / exact.std()
        assert 1e-4 < error < 0.05


@pytest.mark.long
@pytest.mark.parametrize("case", small.CASES)
def test_logits_of_the_published_code_stay_close(case):
    """The reference cases' weights are random, which no rounding favors: int8 moves their
    predictions by less than a thousandth of a nat, and more than bfloat16 does."""
    model, _, arrays = small.reference(case)
    losses = lower_precision.compare(
        model, arrays["tokens"].astype(np.int32), arrays["label"].astype(np.int32)
    )
    assert losses["float32"].divergence == 0 and losses["float32"].same == 1
    assert 0 < losses["bfloat16"].divergence < losses["int8"].divergence < 1e-3
    assert losses["int8"].same > 0.95
    counted = flops.param_count(model.config.transformer)
    assert losses["float32"].weight_bytes == 4 * counted["total"]
    assert losses["bfloat16"].weight_bytes == 2 * counted["total"]
    assert losses["int8"].weight_bytes > counted["body"]


def test_shapes_and_shardings_are_those_of_the_values():
    """Programs compiled ahead of time take the shapes of a config alone. A scale has one number per
    output channel, and is divided where its channels are, never where its product sums."""
    shapes = init.param_shapes(INT8)
    floats = init.fresh_params(small.TRANSFORMER, jax.random.key(0))
    made = jax.eval_shape(int8_weights.quantized, floats)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), made
    )
    mesh = make_mesh(MeshConfig(data=2, model=2), jax.devices()[:4])
    placed = sharding.shardings(init.boxed_shapes(INT8), mesh)["blocks"]["fc1"]["kernel"]
    exact = sharding.shardings(init.boxed_shapes(small.TRANSFORMER), mesh)["blocks"]["fc1"]
    assert placed["int8"].spec == exact["kernel"].spec
    assert [axis for axis in placed["scale"].spec if axis] == ["model"]
    assert not any(isinstance(leaf, nn.Partitioned) for leaf in jax.tree.leaves(shapes))


def test_fewest_bytes_of_generation_count_the_blocks_once_each():
    """What int8 saves over bfloat16 is a byte of every weight of the blocks that is read; the head
    and the embeddings cost what they did."""
    model = small.pipeline()
    moved = {}
    for dtype in ("bfloat16", "int8"):
        config = model.astype(dtype).config
        sampler = sampler_registry.find(config)
        moved[dtype] = sampler.generation_bytes(config, sampler.benchmark_settings(config, 0.0), 1)
    c = model.config.transformer
    matrices = c.depth * (4 * c.width**2 + 2 * c.width * c.hidden)
    assert moved["bfloat16"] - moved["int8"] == 6 * c.depth * c.width**2 + len(c.scales) * matrices


def test_model_in_int8_is_for_sampling_alone(tmp_path):
    """It is neither saved nor converted back, since its values are not those that were trained; a
    tokenizer alone has nothing to put into int8."""
    lower = small.pipeline().astype("int8")
    with pytest.raises(UserError, match="in int8, and saving it needs"):
        lower.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(UserError, match="in int8, and converting it needs"):
        lower.astype("float32")
    with pytest.raises(UserError, match="in int8, and exporting it needs"):
        lower.to_torch()
    with pytest.raises(UserError, match="tokenizer alone"):
        small.pipeline().tokenizer_alone().astype("int8")
