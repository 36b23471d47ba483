"""LoRA: a change of low rank of a frozen linear (arXiv 2106.09685).

A linear x W becomes x (W + s A B) with A of the input's axes and r columns, B of r rows and the
output's axes, and s = alpha / r. Both have the axis of stacked layers in front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from var_jax.adapters.targets import Target

if TYPE_CHECKING:
    from jaxtyping import Array, Float

RANK = "rank"  # the logical axis between the factors


def init_factors(target: Target, rank: int, key: jax.Array) -> dict[str, Any]:
    """Returns the factors {"a", "b"} of a linear at their start, boxed with logical axis names.

    B is 0, so that nothing is changed yet. A is Kaiming-uniform with a slope of sqrt(5), as in the
    published code: uniform within 1 / sqrt(inputs).
    """
    layers, inputs, outputs = target.layers, target.inputs, target.outputs
    bound = 1 / math.sqrt(math.prod(inputs.sizes))

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    a_names = (*layers.names, *inputs.names, RANK)
    b_names = (*layers.names, RANK, *outputs.names)
    a_shape = (*layers.sizes, *inputs.sizes, rank)
    b_shape = (*layers.sizes, rank, *outputs.sizes)
    return {
        "a": nn.with_logical_partitioning(uniform, a_names)(key, a_shape, jnp.float32),
        "b": nn.with_logical_partitioning(nn.initializers.zeros, b_names)(
            key, b_shape, jnp.float32
        ),
    }


def delta(
    target: Target, factors: Mapping[str, jax.Array], scale: float
) -> Float[Array, "*layers_inputs_outputs"]:
    """Returns scale * A B, the change of a linear's kernel, in float32 and of its shape."""
    layers = "l" * len(target.layers.sizes)
    inputs = "abcd"[: len(target.inputs.sizes)]
    outputs = "vwxyz"[: len(target.outputs.sizes)]
    product = jnp.einsum(
        f"{layers}{inputs}r,{layers}r{outputs}->{layers}{inputs}{outputs}",
        factors["a"],
        factors["b"],
        precision="highest",
    )
    return scale * product


class Change(NamedTuple):
    """One adapter's change of a kernel.

    Attributes:
      factor: the adapter's weight times its scale.
      a, b: its factors.
    """

    factor: float
    a: np.ndarray
    b: np.ndarray


def merge(target: Target, kernel: np.ndarray, changes: Sequence[Change]) -> np.ndarray:
    """Returns W + sum of factor * A B, rounded once to the dtype of the kernel W.

    Products and sums are in float64, layer by layer, so that the result is the exact sum of the
    changes up to that rounding, and does not depend on their order but for rare ties.

    Args:
      kernel: the frozen kernel, on the host.
    """
    layers = math.prod(target.layers.sizes)
    inputs = math.prod(target.inputs.sizes)
    merged = np.empty_like(kernel)
    rows = merged.reshape(layers, inputs, -1)
    frozen = kernel.reshape(rows.shape)
    for layer in range(layers):
        total = frozen[layer].astype(np.float64)
        for factor, a, b in changes:
            left = a.reshape(layers, inputs, -1)[layer].astype(np.float64)
            right = b.reshape(layers, left.shape[1], -1)[layer].astype(np.float64)
            total += factor * (left @ right)
        rows[layer] = total.astype(kernel.dtype)
    return merged
