"""Attention on one CPU against the softmax of `jax.nn`."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.train import MeshConfig
from var_jax.devices import cpu_compiler
from var_jax.devices.mesh import make_mesh
from var_jax.ops import attention, cpu_attention

SHAPES = ((1, 64, 2, 32), (1, 96, 2, 32))  # of queries, and of keys and values


def arrays(spread: float = 1.0):
    """Queries, as large as `spread`, keys, values and a cotangent."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (SHAPES[0], SHAPES[1], SHAPES[1], SHAPES[0])
    q, k, v, d_y = (jax.random.normal(key, n) for key, n in zip(keys, shapes, strict=True))
    return spread * q, k, v, d_y


def reference(q, k, v):
    logits = 0.3 * jnp.einsum("bqhd,bkhd->bhqk", q, k)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)


def assert_is_the_softmax(qkv, d_y, tolerance):
    """Value and gradients are those that autodiff of the plain formula gives."""
    actual, vjp = jax.vjp(lambda *a: cpu_attention.attend(*a, 0.3), *qkv)
    expected, vjp_expected = jax.vjp(reference, *qkv)
    np.testing.assert_allclose(actual, expected, atol=tolerance)
    for gradient, other in zip(vjp(d_y), vjp_expected(d_y), strict=True):
        np.testing.assert_allclose(gradient, other, atol=tolerance * float(jnp.abs(other).max()))


def test_values_and_gradients_are_those_of_the_softmax():
    """Those of all three inputs, to float32 rounding."""
    *qkv, d_y = arrays()
    assert_is_the_softmax(qkv, d_y, 1e-5)


def test_large_logits_do_not_overflow():
    """Logits whose exponentials overflow float32 give the softmax's values and gradients.

    Rounding is coarser among them: they are of hundreds, and differences of a tenth count.
    """
    *qkv, d_y = arrays(30.0)
    assert jnp.isinf(jnp.exp(0.3 * jnp.einsum("bqhd,bkhd->bhqk", *qkv[:2]))).any()
    assert_is_the_softmax(qkv, d_y, 1e-4)


def test_no_array_of_pairs_is_transposed():
    """Of the arrays with a number per pair of tokens, which are the largest, the compiled gradient
    has no transposed copy; the plain one has."""
    *qkv, d_y = arrays()
    queries, keys = SHAPES[0][1], SHAPES[1][1]
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    options = cpu_compiler.options_of_step(mesh)

    def transposed(attend) -> bool:
        loss = lambda q, k, v: (attend(q, k, v) * d_y).sum()  # noqa: E731
        text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*qkv).compile(options).as_text()
        by_layout = re.findall(rf",{queries},{keys}\]{{([\d,]+)}}", text)
        assert by_layout
        return f",{keys},{queries}]" in text or not {"3,2,1,0", "2,1,0"}.issuperset(by_layout)

    assert not transposed(lambda *a: cpu_attention.attend(*a, 0.3))
    assert transposed(reference)


def test_attention_of_float32_on_one_cpu_is_this_one():
    """The way from the models leads here."""
    *qkv, _ = arrays()
    text = str(jax.make_jaxpr(lambda *a: attention.attend(*a, 0.3))(*qkv))
    assert "custom_vjp_call" in text
    half = [x.astype(jnp.bfloat16) for x in qkv]
    assert "custom_vjp_call" not in str(jax.make_jaxpr(lambda *a: attention.attend(*a, 0.3))(*half))
    with jax.set_mesh(make_mesh(MeshConfig())):
        several = str(jax.make_jaxpr(lambda *a: attention.attend(*a, 0.3))(*qkv))
    assert "custom_vjp_call" not in several
