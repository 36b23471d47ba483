"""The index of the largest number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from var_jax.devices import target

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def largest(x: Float[Array, "*b n"]) -> Int[Array, "*b"]:
    """Returns the index of the largest number of each row, the first of equally large ones.

    It is `jnp.argmax`, without a gradient. A CPU computes that reduction of pairs one number after
    the other; two reductions of one array each are vectorized.
    """
    x = jax.lax.stop_gradient(x)
    if not target.is_single_cpu():
        return jnp.argmax(x, axis=-1).astype(jnp.int32)
    # Without the barrier, the compiler may compute x once for each reduction, with other rounding.
    x = jax.lax.optimization_barrier(x)
    is_largest = (x == jnp.max(x, axis=-1, keepdims=True)) | jnp.isnan(x)
    return jnp.min(jnp.where(is_largest, jnp.arange(x.shape[-1]), x.shape[-1]), axis=-1)
