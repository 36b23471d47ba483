"""Products of activations and weights on one CPU, in float32, in the forms that are fast in Eigen.

Autodiff writes the gradient of the activations as a product with the transposed weight, and packs
the weight's gradient from columns. Both read memory in strides of a row. Where rows are a multiple
of the size of a cache's way, the lines of a column evict each other, and the product takes up to
twice as long as the forward one (measured by `launch/cpu_bench.py`; docs/results/speed.md).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

ALIASED_ROW = 4096  # columns of float32 in rows whose cache lines fall into the same set
FEWEST_ROWS = 64  # of activations, for which transposing a weight takes less than it saves
PADDING = 16  # a cache line of float32


def einsum(spec: str, x: Float[Array, ...], kernel: Float[Array, ...]) -> Float[Array, ...]:
    """Returns the einsum of activations and a weight as one product of matrices.

    Args:
      spec: such as "blw,wv->blv": the letters that are summed over end x and begin the weight, in
        the same order.
    """
    x_axes, kernel_axes = spec.split("->")[0].split(",")
    summed = len(set(x_axes) & set(kernel_axes))
    rows, columns = x.shape[: x.ndim - summed], kernel.shape[summed:]
    size = math.prod(kernel.shape[:summed])
    y = _matmul(x.reshape(-1, size), kernel.reshape(size, -1))
    return y.reshape(*rows, *columns)


@jax.custom_vjp
def _matmul(x: Float[Array, "r m"], weight: Float[Array, "m n"]) -> Float[Array, "r n"]:
    return x @ weight


def _forward(x, weight):
    return x @ weight, (x, weight)  # seen by policies of rematerialization, which _matmul is not


def _backward(operands, cotangent):
    x, weight = operands
    transposed = weight.T
    if x.shape[0] >= FEWEST_ROWS:
        # The barrier keeps the compiler from folding the transposition into the product.
        transposed = jax.lax.optimization_barrier(transposed)
    d_x = cotangent @ transposed
    columns = (((0,), (0,)), ((), ()))
    d_weight = jax.lax.dot_general(_padded(x), _padded(cotangent), columns)
    return d_x, d_weight[: weight.shape[0], : weight.shape[1]]


def _padded(x: Float[Array, "r n"]) -> Float[Array, "r p"]:
    """Returns a matrix with a few more columns where the lines of a column evict each other."""
    if x.shape[1] % ALIASED_ROW:
        return x
    return jnp.pad(x, ((0, 0), (0, PADDING)))


_matmul.defvjp(_forward, _backward)
