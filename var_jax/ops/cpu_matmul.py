"""Products of activations and weights on one CPU, in float32, in the forms that are fast in Eigen.

Autodiff writes the gradient of the activations as a product with the transposed weight, and packs
the weight's gradient from columns. Both read memory in strides of a row. Where rows are a multiple
of the size of a cache's way, the lines of a column evict each other, and the product takes up to
twice as long as the forward one. A few more columns in each row avoid that. The forms below are
the fastest of those that `launch/matrix_products.py` compares.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Rows of a multiple of this many float32 begin in the same set of the first cache.
WAY = 1024
# Rows for which padding also pays in the weight's gradient, where Eigen packs whole columns.
ALIASED_ROW = 4096
# Activations from which on copying a weight takes less than it saves.
FEWEST_ROWS = 64
# Most rows of a weight for which a transposed copy is cheap even where they evict each other.
FEW_INPUTS = 256
PADDING = 16  # a cache line of float32
SUM_OVER_COLUMNS = (((1,), (1,)), ((), ()))
SUM_OVER_ROWS = (((0,), (0,)), ((), ()))


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
    return _matmul(x.reshape(-1, size), kernel).reshape(*rows, *columns)


# It takes the weight in its own shape: under a scan over layers, one that is reshaped before it and
# kept for the backward pass would be copied into a stack of its own.
@jax.custom_vjp
def _matmul(x: Float[Array, "r m"], kernel: Float[Array, ...]) -> Float[Array, "r n"]:
    return x @ _as_matrix(x, kernel)


def _as_matrix(x: Float[Array, "r m"], kernel: Float[Array, ...]) -> Float[Array, "m n"]:
    return kernel.reshape(x.shape[1], -1)


def _forward(x, kernel):
    y = x @ _as_matrix(x, kernel)  # seen by policies of rematerialization, which _matmul is not
    return y, (x, kernel)


def _backward(operands, cotangent):
    x, kernel = operands
    d_x = gradient_of_activations(cotangent, _as_matrix(x, kernel))
    return d_x, gradient_of_weight(x, cotangent).reshape(kernel.shape)


def gradient_of_weight(
    x: Float[Array, "r m"], cotangent: Float[Array, "r n"]
) -> Float[Array, "m n"]:
    """Returns x.T @ cotangent in the form that is fastest for its shape.

    Eigen packs columns of the first operand. Where those of `x` evict each other, the product goes
    the other way round if the cotangent has fewer; at multiples of `ALIASED_ROW`, padding `x` is
    faster.
    """
    inputs = x.shape[1]
    if inputs > cotangent.shape[1] and inputs % WAY == 0 and inputs % ALIASED_ROW:
        return turned(x, cotangent, SUM_OVER_ROWS)
    return jax.lax.dot_general(_padded(x, ALIASED_ROW), cotangent, SUM_OVER_ROWS)[:inputs]


def gradient_of_activations(
    cotangent: Float[Array, "r n"], weight: Float[Array, "m n"]
) -> Float[Array, "r m"]:
    """Returns cotangent @ weight.T in the form that is fastest for its shape.

    A weight is read out of the stack of layers as it is used. Where the compiler transposes it
    meanwhile, it goes from row to row, which takes up to half as long as the product.
    """
    if cotangent.shape[0] < FEWEST_ROWS:
        return turned(cotangent, weight, SUM_OVER_COLUMNS)
    if weight.shape[1] % WAY or weight.shape[0] <= FEW_INPUTS:
        # Rows that do not evict each other, or few of them.
        return cotangent @ jax.lax.optimization_barrier(weight.T)
    # The weight is copied with padding while it is read, row by row, and not transposed.
    cotangent, weight = _padded(cotangent, WAY), _padded(weight, WAY)
    if weight.shape[0] > weight.shape[1]:
        return turned(cotangent, weight, SUM_OVER_COLUMNS)
    return jax.lax.dot_general(cotangent, weight, SUM_OVER_COLUMNS)


def turned(
    x: Float[Array, ...], y: Float[Array, ...], summed: jax.lax.DotDimensionNumbers
) -> Float[Array, ...]:
    """Returns dot_general(x, y, summed) of two matrices by the product the other way round.

    The barrier keeps the compiler from turning it around again.

    Args:
      summed: SUM_OVER_COLUMNS, for x @ y.T, or SUM_OVER_ROWS, for x.T @ y.
    """
    return jax.lax.optimization_barrier(jax.lax.dot_general(y, x, summed)).T


def _padded(x: Float[Array, "r n"], row: int) -> Float[Array, "r p"]:
    """Returns a matrix with a few more columns, zeros, where rows are multiples of a length."""
    if x.shape[1] % row:
        return x
    return jnp.pad(x, ((0, 0), (0, PADDING)))


_matmul.defvjp(_forward, _backward)
