"""Attention with masks over scales: every implementation against dense masks and numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.config.scales import Scales
from var_jax.devices import target
from var_jax.errors import UserError
from var_jax.ops import attention, masks

SCALES = Scales.parse("1,2,2x3,4")
MASKS = ("block_causal", "markov", "block_diagonal")


def random_qkv(scales=SCALES, heads=2, dim=8):
    return jax.random.normal(jax.random.key(0), (3, 2, scales.total, heads, dim))


def assert_equals_the_dense_reference(masked, mask, scales, qkv):
    """The output, and the gradients of a weighted sum of it, against attention under the dense
    mask."""
    weight = jax.random.normal(jax.random.key(1), qkv[0].shape)

    def both(attend):
        def weighted(*qkv):
            out = attend(*qkv)
            return jnp.sum(weight * out), out

        return jax.jit(jax.grad(weighted, (0, 1, 2), has_aux=True))(*qkv)

    dense = functools.partial(
        attention.attend, softmax_scale=0.3, mask=jnp.asarray(masks.dense(scales, mask))
    )
    for gradient, expected in zip(
        jax.tree.leaves(both(masked)), jax.tree.leaves(both(dense)), strict=True
    ):
        np.testing.assert_allclose(gradient, expected, atol=2e-5)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_attention_equals_the_dense_mask_in_every_implementation(implementation, mask):
    """Values and gradients are those of softmax attention under the dense mask."""
    masked = functools.partial(
        attention.masked, softmax_scale=0.3, scales=SCALES, mask=mask, implementation=implementation
    )
    assert_equals_the_dense_reference(masked, mask, SCALES, random_qkv())


@pytest.mark.parametrize("mask", MASKS)
def test_cudnn_blocks_equal_the_dense_mask(mask):
    """The blocks of cuDNN's implementation equal the dense mask for scales below and above the size
    that is left to XLA; XLA computes its kernel here, because there is no GPU."""
    scales = Scales.parse("1,7,8,9")
    block = functools.partial(attention.fused, backend="xla")
    masked = functools.partial(
        attention.by_scale, softmax_scale=0.3, scales=scales, mask=mask, block=block
    )
    assert_equals_the_dense_reference(masked, mask, scales, random_qkv(scales))


def test_blocks_compute_visible_pairs_only():
    """Masked attention computes only pairs that the mask lets through.

    XLA's count of FLOPs exceeds that of these pairs by less than 6 %.
    """
    qkv = random_qkv(dim=64)
    for mask in MASKS:
        masked = functools.partial(
            attention.masked, softmax_scale=0.3, scales=SCALES, mask=mask, implementation="xla"
        )
        flops = jax.jit(masked).lower(*qkv).cost_analysis()["flops"]
        batch_and_heads, products = 2 * 2, 4 * 64
        pairs = flops / batch_and_heads / products
        assert (
            masks.attended_pairs(SCALES, mask) <= pairs < 1.06 * masks.attended_pairs(SCALES, mask)
        )


def test_attend_is_the_textbook_formula():
    """A softmax in float64, written out in numpy, gives the same output."""
    q, k, v = np.asarray(random_qkv(heads=1), np.float64)
    logits = 0.3 * q[0, :, 0] @ k[0, :, 0].T
    weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    output = attention.attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), 0.3)
    np.testing.assert_allclose(output[0, :, 0], weights @ v[0, :, 0], atol=1e-5)


def test_normalize_keeps_direction_and_survives_zero():
    """(3, 4) becomes (0.6, 0.8), and a zero vector stays zero and does not become NaN."""
    x = jnp.array([[[[3.0, 4.0], [0.0, 0.0]]]])
    np.testing.assert_allclose(attention.normalize(x), [[[[0.6, 0.8], [0, 0]]]])


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_softmax_stays_float32_in_bfloat16(implementation):
    """With logits of up to 40, the output is that of the same inputs in float32 to its own
    rounding; a softmax in bfloat16 would be off by 0.07."""
    q, k, v = random_qkv().astype(jnp.bfloat16)
    masked = functools.partial(
        attention.masked,
        softmax_scale=4.0,
        scales=SCALES,
        mask="block_causal",
        implementation=implementation,
    )
    wide = masked(*(t.astype(jnp.float32) for t in (q, k, v)))
    assert masked(q, k, v).dtype == jnp.bfloat16
    np.testing.assert_allclose(masked(q, k, v).astype(jnp.float32), wide, atol=0.02)


@pytest.mark.parametrize(
    ("where", "dtype", "chosen"),
    [
        ("tpu", "bfloat16", "splash"),
        ("tpu", "float32", "splash"),
        ("gpu", "bfloat16", "cudnn"),
        ("gpu", "float16", "cudnn"),
        ("gpu", "float32", "xla"),
        ("cpu", "bfloat16", "xla"),
    ],
)
def test_auto_is_the_platforms_own(monkeypatch, where, dtype, chosen):
    """`auto` picks splash on TPUs, cuDNN on GPUs where the dtype allows it, and XLA elsewhere; a
    named implementation is left as it is."""
    monkeypatch.setattr(target, "platform", lambda: where)
    assert attention.choose("auto", jnp.dtype(dtype), 64) == chosen
    assert attention.choose("xla", jnp.dtype(dtype), 64) == "xla"


@pytest.mark.parametrize(
    ("where", "requested", "dtype", "dim", "complaint"),
    [
        ("gpu", "splash", "bfloat16", 64, "on a GPU it must be auto, xla or cudnn"),
        ("cpu", "cudnn", "bfloat16", 64, "on a CPU it must be auto, xla or splash"),
        (
            "gpu",
            "cudnn",
            "float32",
            64,
            "with float32 and heads of 64; it must be xla, or the dtype bfloat16",
        ),
        ("gpu", "cudnn", "bfloat16", 12, "with bfloat16 and heads of 12; it must be xla"),
    ],
)
def test_attention_refuses_what_cannot_run(monkeypatch, where, requested, dtype, dim, complaint):
    """An implementation that the platform, the dtype or the head size rules out is refused with the
    values that would run; `auto` falls back to XLA on a GPU."""
    monkeypatch.setattr(target, "platform", lambda: where)
    with pytest.raises(UserError, match=complaint):
        attention.choose(requested, jnp.dtype(dtype), dim)
    if where == "gpu":
        assert attention.choose("auto", jnp.dtype(dtype), 12) == "xla"


def test_platform_is_that_of_the_mesh_in_use():
    """A program for chips that are not here is traced under a mesh of them."""
    devices = jax.sharding.AbstractDevice(device_kind="TPU v5p", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1, 1), ("data", "model"), abstract_device=devices)
    assert target.platform() == jax.default_backend()
    with jax.sharding.use_abstract_mesh(mesh):
        assert target.platform() == "tpu"
