"""Products of activations and weights on one CPU, in float32, in the forms that are fast in Eigen.

Autodiff writes the gradient of the activations as a product with the transposed weight, and packs
the weight's gradient from columns. Both read memory in strides of a row. Where rows are a multiple
of the size of a cache's way, the lines of a column evict each other, and the product takes up to
twice as long as the forward one (measured by `launch/cpu_bench.py`; docs/results/speed.md). A few
more columns in each row avoid that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

WAY = 1024  # float32 in a way of the first cache: rows of a multiple of it evict each other
ALIASED_ROW = 4096  # the same for the larger second cache
FEWEST_ROWS = (
    64  # of activations, for which transposing or copying a weight takes less than it saves
)
PADDING = 16  # a cache line of float32
ROWS = (((1,), (1,)), ((), ()))  # sums over the columns of both operands
COLUMNS = (((0,), (0,)), ((), ()))


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
    weight = _as_matrix(x, kernel)
    d_weight = jax.lax.dot_general(
        _padded(x, ALIASED_ROW), _padded(cotangent, ALIASED_ROW), COLUMNS
    )
    d_weight = d_weight[: weight.shape[0], : weight.shape[1]]
    return _gradient_of_activations(cotangent, weight), d_weight.reshape(kernel.shape)


def _gradient_of_activations(
    cotangent: Float[Array, "r n"], weight: Float[Array, "m n"]
) -> Float[Array, "r m"]:
    """Returns cotangent @ weight.T. The barriers keep the compiler from writing it like that."""
    few = cotangent.shape[0] < FEWEST_ROWS
    if weight.shape[1] % WAY and not few:
        return cotangent @ jax.lax.optimization_barrier(weight.T)
    if not few:
        cotangent, weight = _padded(cotangent, WAY), _padded(weight, WAY)
    if few or weight.shape[0] > weight.shape[1]:
        return jax.lax.optimization_barrier(jax.lax.dot_general(weight, cotangent, ROWS)).T
    return jax.lax.dot_general(cotangent, weight, ROWS)


def _padded(x: Float[Array, "r n"], row: int) -> Float[Array, "r p"]:
    """Returns a matrix with a few more columns, zeros, where rows are multiples of a length."""
    if x.shape[1] % row:
        return x
    return jnp.pad(x, ((0, 0), (0, PADDING)))


_matmul.defvjp(_forward, _backward)
