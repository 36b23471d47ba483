"""Attention over token maps. Shapes are (batch, length, heads, head_dim); softmax is float32 always."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from var_jax.ops.scales import Scales


def normalise(x: Float[Array, "b l h d"]) -> Float[Array, "b l h d"]:
    """`x` over its L2 norm along head_dim, in float32 and back (QK-norm)."""
    wide = x.astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(wide**2, axis=-1, keepdims=True))
    return (wide / jnp.maximum(norm, 1e-12)).astype(x.dtype)


def attend(
    q: Float[Array, "b q h d"], k: Float[Array, "b k h d"], v: Float[Array, "b k h d"], scale: float,
    mask: Bool[Array, "q k"] | None = None,
) -> Float[Array, "b q h d"]:
    """softmax(scale q k^T) v, of all keys or of those that `mask` lets through."""
    logits = scale * jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def block_causal(
    q: Float[Array, "b L h d"], k: Float[Array, "b L h d"], v: Float[Array, "b L h d"], scale: float, scales: Scales,
) -> Float[Array, "b L h d"]:
    """Attention in which a token sees its own scale and all coarser ones.

    One block of queries a scale against the keys up to its end: the masked pairs (38 % at 256 px) are never computed.
    """
    parts = []
    for i in range(len(scales)):
        end = scales.offsets[i + 1]
        parts.append(attend(q[:, scales.span(i)], k[:, :end], v[:, :end], scale))
    return jnp.concatenate(parts, axis=1)
