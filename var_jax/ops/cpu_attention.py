"""Softmax attention on one CPU in float32, with fewer passes over its weights than autodiff takes.

Of all its arrays the weights are the largest, a number per pair of tokens and head. Autodiff of the
plain formula divides them by their sums, sums their gradients, and transposes both for the products
with keys and values. Here the sums divide the results, and only the small operands are transposed.
`launch/op_times.py` shows the passes.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Queries = Float[Array, "b q h d"]
    Keys = Float[Array, "b k h d"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attend(q: Queries, k: Keys, v: Keys, softmax_scale: float) -> Queries:
    """Returns softmax(softmax_scale q k^T) v over all keys.

    `attention.attend` calls it where it holds: on one CPU, in float32, without a mask.
    """
    return _forward(q, k, v, softmax_scale)[0]


def _forward(q, k, v, softmax_scale):
    q, k, v = _by_head(softmax_scale * q), _by_head(k), _by_head(v)
    logits = jnp.einsum("bhqd,bhkd->bhqk", q, k)
    exponentials = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    total = exponentials.sum(axis=-1, keepdims=True)
    y = jnp.einsum("bhqk,bhkd->bhqd", exponentials, v) / total
    return _by_token(y), (q, k, v, exponentials, total, y)


def _backward(softmax_scale, residuals, cotangent):
    q, k, v, exponentials, total, y = residuals
    cotangent = _by_head(cotangent) / total
    # The gradients of the weights count less their mean under the weights: cotangent . y.
    mean = (cotangent * y).sum(axis=-1, keepdims=True)
    d_logits = exponentials * (jnp.einsum("bhqd,bhkd->bhqk", cotangent, v) - mean)
    d_q = softmax_scale * jnp.einsum("bhqk,bhkd->bhqd", d_logits, k)
    d_k = _sum_over_queries(q, d_logits)
    d_v = _sum_over_queries(cotangent, exponentials)
    return _by_token(d_q), _by_token(d_k), _by_token(d_v)


def _sum_over_queries(x: Float[Array, "b h q d"], pairs: Float[Array, "b h q k"]) -> jax.Array:
    """Returns einsum("bhqd,bhqk->bhkd") by a product whose first operand is the small one.

    The compiler transposes the first; the barrier keeps it from turning the product around.
    """
    product = jnp.einsum("bhqd,bhqk->bhdk", x, pairs)
    return jnp.einsum("bhdk->bhkd", jax.lax.optimization_barrier(product))


def _by_head(x: Float[Array, "b l h d"]) -> Float[Array, "b h l d"]:
    return jnp.einsum("blhd->bhld", x)


def _by_token(x: Float[Array, "b h l d"]) -> Float[Array, "b l h d"]:
    return jnp.einsum("bhld->blhd", x)


attend.defvjp(_forward, _backward)
