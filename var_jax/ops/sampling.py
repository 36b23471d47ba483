"""Choosing tokens from logits: guidance, top-k, top-p, and sampling with a key an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key


def guide(logits: Float[Array, "2b l v"], strength: Float[Array, ""] | float) -> Float[Array, "b l v"]:
    """Classifier-free guidance: (1 + t) conditional - t unconditional, of a batch that holds both halves."""
    conditional, unconditional = jnp.split(logits, 2)
    return (1 + strength) * conditional - strength * unconditional


def filter_logits(
    logits: Float[Array, "*b v"], top_k: int, top_p: Float[Array, ""] | float | None,
) -> Float[Array, "*b v"]:
    """-inf everywhere but in the k largest logits, and among those in the fewest that hold probability p.

    Args:
      top_k: 0 or >= V: off.
      top_p: None: off. The largest logit always survives.
    Equal logits at a threshold survive together. The threshold lies between the last logit that survives and the next
    one, not on it, and the largest survives by its place: a compiler may compute the logits once for the ranking and
    once more, rounded otherwise, for the comparison, which would drop what is compared with itself.
    """
    vocab = logits.shape[-1]
    k = top_k if 0 < top_k < vocab else vocab
    if k == vocab and top_p is None:
        return logits
    ranked, places = jax.lax.top_k(logits, min(k + 1, vocab))
    if top_p is None:
        kept = jnp.full((*logits.shape[:-1], 1), k)
    else:
        tail = jnp.cumsum(jax.nn.softmax(ranked[..., :k], axis=-1)[..., ::-1], axis=-1)[..., ::-1]
        kept = jnp.maximum(jnp.sum(tail > 1 - top_p, axis=-1, keepdims=True), 1)
    ranked = jnp.concatenate([ranked, jnp.full_like(ranked[..., :1], -jnp.inf)], axis=-1)
    last, following = (jnp.take_along_axis(ranked, at, axis=-1) for at in (kept - 1, kept))
    middle = (last + following) / 2
    threshold = jnp.where(middle > following, middle, last)
    largest = jnp.arange(vocab) == places[..., :1]
    return jnp.where((logits >= threshold) | largest, logits, -jnp.inf)


def sample(keys: Key[Array, " b"], logits: Float[Array, "b l v"]) -> Int[Array, "b l"]:
    """One token a position, drawn from softmax(logits) with the image's own key."""
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def smooth_codes(
    keys: Key[Array, " b"], logits: Float[Array, "b l v"], codebook: Float[Array, "v c"], progress: float,
) -> Float[Array, "b l c"]:
    """Code vectors mixed by a gumbel-softmax instead of one chosen: smoother pictures, never for FID.

    The published rule (`more_smooth`): logits times (1 + progress), at a temperature that falls from 0.27 as
    `progress` goes from 0 at the first scale to 1 at the last.
    """
    temperature = max(0.27 * (1 - 0.95 * progress), 0.005)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    weights = jax.nn.softmax((logits * (1 + progress) + noise) / temperature, axis=-1)
    return jnp.matmul(weights, codebook, precision=jax.lax.Precision.HIGHEST)
