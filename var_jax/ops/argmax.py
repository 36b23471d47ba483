"""The index of the largest number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from var_jax.devices import target

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def argmax(x: Float[Array, "*b n"]) -> Int[Array, "*b"]:
    """Returns the index of the largest number of each row, the first of equally large ones.

    It is `jnp.argmax`, also where numbers are NaN. A CPU computes that reduction of pairs number by
    number; two reductions of one array each are vectorized.
    """
    x = jax.lax.stop_gradient(x)  # the maximum below has a gradient, which nothing uses
    if not target.is_single_cpu():
        return jnp.argmax(x, axis=-1).astype(jnp.int32)
    # Without the barrier, the compiler may compute x once for each reduction, with other rounding.
    x = jax.lax.optimization_barrier(x)
    is_largest = (x == jnp.max(x, axis=-1, keepdims=True)) | jnp.isnan(x)
    places = jnp.arange(x.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(is_largest, places, x.shape[-1]), axis=-1)
