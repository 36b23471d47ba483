"""Products on one CPU are the einsums that they stand for, with the gradients of these."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.ops import cpu_matmul

MANY = cpu_matmul.FEWEST_ROWS // 2  # rows of each of two images
MANY_INPUTS = cpu_matmul.FEW_INPUTS + 8


@pytest.mark.parametrize(
    "spec, x_shape, kernel_shape",
    [
        ("abz,zu->abu", (2, 3, 8), (8, 5)),
        ("abz,zu->abu", (2, MANY, 8), (8, 5)),
        ("blw,wnhd->blnhd", (2, 3, 8), (8, 3, 2, 4)),
        ("blhd,hdw->blw", (2, 3, 2, 4), (2, 4, 6)),
        ("bw,wnv->bnv", (2, 8), (8, 6, 8)),
        ("abz,zu->abu", (2, MANY, 8), (8, cpu_matmul.WAY)),
        ("abz,zu->abu", (2, MANY, MANY_INPUTS), (MANY_INPUTS, cpu_matmul.WAY)),
        ("abz,zu->abu", (2, 3, cpu_matmul.WAY), (cpu_matmul.WAY, 4)),
        ("abz,zu->abu", (2, MANY, cpu_matmul.WAY + 8), (cpu_matmul.WAY + 8, cpu_matmul.WAY)),
        ("abz,zu->abu", (2, 3, 8), (8, cpu_matmul.ALIASED_ROW)),
        ("abz,zu->abu", (2, 3, cpu_matmul.ALIASED_ROW), (cpu_matmul.ALIASED_ROW, 4)),
    ],
)
def test_einsum_and_its_gradients_are_those_of_jnp(spec, x_shape, kernel_shape):
    """Every spec of the transformer, the fewest rows for which weights are copied, lengths of
    rows at which operands are padded, and a weight with more rows than columns: the value and both
    gradients agree with `jnp.einsum` to float32 rounding."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], x_shape), jax.random.normal(keys[1], kernel_shape)
    expected, expected_vjp = jax.vjp(lambda *a: jnp.einsum(spec, *a), x, kernel)
    y, vjp = jax.vjp(lambda *a: cpu_matmul.einsum(spec, *a), x, kernel)
    cotangent = jax.random.normal(keys[2], y.shape)
    for actual, reference in zip(
        (y, *vjp(cotangent)), (expected, *expected_vjp(cotangent)), strict=True
    ):
        scale = float(jnp.abs(reference).max())
        np.testing.assert_allclose(actual, reference, rtol=0, atol=1e-5 * scale)
