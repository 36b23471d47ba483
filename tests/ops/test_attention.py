import jax
import jax.numpy as jnp
import numpy as np

from var_jax.ops import attention, masks
from var_jax.ops.scales import Scales

SCALES = Scales.parse("1,2,2x3,4")


def random_qkv(heads=2, dim=8):
    return jax.random.normal(jax.random.key(0), (3, 2, SCALES.total, heads, dim))


def test_block_causal_equals_the_dense_mask_forward_and_gradients():
    q, k, v = random_qkv()
    weight = jax.random.normal(jax.random.key(1), q.shape)
    mask = jnp.asarray(masks.block_causal(SCALES))

    def dense(q, k, v):
        return jnp.sum(weight * attention.attend(q, k, v, 0.3, mask))

    def sliced(q, k, v):
        return jnp.sum(weight * attention.block_causal(q, k, v, 0.3, SCALES))

    for ours, theirs in zip(jax.grad(sliced, (0, 1, 2))(q, k, v), jax.grad(dense, (0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    np.testing.assert_allclose(attention.block_causal(q, k, v, 0.3, SCALES), attention.attend(q, k, v, 0.3, mask),
                               atol=1e-5)


def test_attend_is_the_textbook_formula():
    q, k, v = np.asarray(random_qkv(heads=1), np.float64)
    logits = 0.3 * q[0, :, 0] @ k[0, :, 0].T
    weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    ours = attention.attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), 0.3)
    np.testing.assert_allclose(ours[0, :, 0], weights @ v[0, :, 0], atol=1e-5)


def test_normalise_keeps_direction_and_survives_zero():
    x = jnp.array([[[[3.0, 4.0], [0.0, 0.0]]]])
    np.testing.assert_allclose(attention.normalise(x), [[[[0.6, 0.8], [0, 0]]]])


def test_softmax_stays_float32_in_bfloat16():
    q, k, v = random_qkv().astype(jnp.bfloat16)
    wide = attention.attend(*(t.astype(jnp.float32) for t in (q, k, v)), 0.3)
    assert attention.attend(q, k, v, 0.3).dtype == jnp.bfloat16
    np.testing.assert_allclose(attention.attend(q, k, v, 0.3).astype(jnp.float32), wide, atol=0.02)
