"""The splash kernel's blocks, masks and sharding, interpreted on the CPU."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from var_jax.config.scales import SCALES_256, SCALES_512, Scales
from var_jax.ops import attention, attention_splash, masks

SCALES = Scales.parse("1,8,12")  # two blocks of keys, so that queries have one to skip


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (1, (128, 128)),
        (128, (128, 128)),
        (129, (256, 256)),
        (Scales.parse(SCALES_256).total, (768, 384)),
        (Scales.parse(SCALES_512).total, (2304, 384)),
    ],
)
def test_blocks_divide_the_padded_length(total, expected):
    """The padded length and the block are those worked out by hand, at the edges of a block of 128
    and at the two published resolutions."""
    assert attention_splash.blocking(total) == expected


@pytest.mark.parametrize("mask", ["block_causal", "markov", "block_diagonal"])
def test_splash_mask_is_the_dense_one_with_padding(mask):
    """No query sees a padded key, and each padded query sees some key, as a softmax over none would
    be NaN; slices of the mask are those of the full one."""
    padded = attention_splash.ScaleMask(SCALES, mask, 256)
    full = padded[0:256, 0:256]
    total = SCALES.total
    np.testing.assert_array_equal(full[:total, :total], masks.dense(SCALES, mask))
    np.testing.assert_array_equal(padded[128:256, 64:256], full[128:, 64:])
    assert not full[:, total:].any() and full[total:].any(axis=1).all()


@pytest.mark.long
@pytest.mark.parametrize("mask", ["block_causal", "block_diagonal"])
def test_several_blocks_equal_the_dense_mask(monkeypatch, mask):
    """With blocks of 128, which are smaller than the sequence, values and gradients are those of
    dense attention."""
    monkeypatch.setattr(attention_splash, "LARGEST_BLOCK", 128)
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, SCALES.total, 1, 8))

    def actual(q, k, v):
        return attention_splash.attend(q, k, v, 0.3, SCALES, mask, interpret=True)

    def dense(q, k, v):
        return attention.attend(q, k, v, 0.3, masks.dense(SCALES, mask))

    for mine, expected in zip(
        *(jax.jit(jax.vjp(f, q, k, v)[1])(q) for f in (actual, dense)), strict=True
    ):
        np.testing.assert_allclose(mine, expected, atol=2e-5)
    np.testing.assert_allclose(jax.jit(actual)(q, k, v), dense(q, k, v), atol=2e-5)


@pytest.mark.long
@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
def test_splash_attention_computes_its_images_and_heads_per_device():
    """On a 2 x 2 mesh the compiled program has no all-gather and no all-reduce, and gives the
    output of one device."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, 4, SCALES.total, 2, 8))

    def actual(q, k, v):
        return attention_splash.attend(q, k, v, 0.3, SCALES, "block_causal", interpret=True)

    alone = jax.jit(actual)(q, k, v)
    mesh = jax.make_mesh(
        (2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4]
    )
    with jax.set_mesh(mesh):
        compiled = jax.jit(
            actual,
            in_shardings=jax.P("data", None, "model"),
            out_shardings=jax.P("data", None, "model"),
        )
        compiled = compiled.lower(q, k, v).compile()
        np.testing.assert_allclose(compiled(q, k, v), alone, atol=1e-5)
    assert "all-gather" not in compiled.as_text() and "all-reduce" not in compiled.as_text()
