"""Attention on one CPU against the softmax of `jax.nn`."""

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.ops import attention, cpu_attention

SHAPES = ((1, 64, 2, 32), (1, 96, 2, 32))  # of queries, and of keys and values


def arrays(spread: float = 1.0):
    """Queries, keys, values and a cotangent."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (SHAPES[0], SHAPES[1], SHAPES[1], SHAPES[0])
    q, k, v, d_y = (jax.random.normal(key, n) for key, n in zip(keys, shapes, strict=True))
    return spread * q, k, v, d_y


def reference(q, k, v):
    logits = 0.3 * jnp.einsum("bqhd,bkhd->bhqk", q, k)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)


def test_values_and_gradients_are_those_of_the_softmax():
    """Those of all three inputs, by autodiff of the plain formula."""
    *qkv, d_y = arrays()
    actual, vjp = jax.vjp(lambda *a: cpu_attention.attend(*a, 0.3), *qkv)
    expected, vjp_expected = jax.vjp(reference, *qkv)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    for gradient, other in zip(vjp(d_y), vjp_expected(d_y), strict=True):
        np.testing.assert_allclose(gradient, other, atol=1e-5 * float(jnp.abs(other).max()))


def test_large_logits_do_not_overflow():
    """Where one logit of a query is larger by thousands, its value is the result: the exponentials
    of such logits are no numbers of float32."""
    *qkv, d_y = arrays(1e4)
    y, vjp = jax.vjp(lambda *a: cpu_attention.attend(*a, 0.3), *qkv)
    np.testing.assert_allclose(y, reference(*qkv), atol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in vjp(d_y))


def test_no_array_of_pairs_is_transposed():
    """Of the arrays with a number per pair of tokens, which are the largest, the compiled gradient
    has no transposed copy; the plain one has."""
    *qkv, d_y = arrays()
    queries, pairs = SHAPES[0][1], SHAPES[1][1]

    def transposed(attend) -> bool:
        loss = lambda q, k, v: (attend(q, k, v) * d_y).sum()  # noqa: E731
        text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*qkv).compile().as_text()
        return f",{pairs},{queries}]" in text

    assert not transposed(lambda *a: cpu_attention.attend(*a, 0.3))
    assert transposed(reference)


def test_attention_of_float32_on_one_cpu_is_this_one():
    """The way from the models leads here."""
    *qkv, _ = arrays()
    text = str(jax.make_jaxpr(lambda *a: attention.attend(*a, 0.3))(*qkv))
    assert "custom_vjp_call" in text
    half = [x.astype(jnp.bfloat16) for x in qkv]
    assert "custom_vjp_call" not in str(jax.make_jaxpr(lambda *a: attention.attend(*a, 0.3))(*half))
