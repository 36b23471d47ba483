"""Choosing tokens from logits: guidance, top-k, top-p, and sampling with a key an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key


def guide(
    logits: Float[Array, "2b l v"], strength: Float[Array, ""] | float
) -> Float[Array, "b l v"]:
    """Classifier-free guidance: (1 + t) conditional - t unconditional, of a batch that holds both
    halves."""
    conditional, unconditional = jnp.split(logits, 2)
    return (1 + strength) * conditional - strength * unconditional


def filter_logits(
    logits: Float[Array, "*b v"],
    top_k: int,
    top_p: Float[Array, ""] | float | None,
) -> Float[Array, "*b v"]:
    """-inf everywhere but in the k largest logits, and among those in the fewest that hold
    probability p.

    Nothing is sorted: both thresholds are found by counting what lies above or below (`_largest`).

    Args:
      top_k: 0 or >= V: off.
      top_p: None: off. The largest logit always survives.
    Equal logits at a threshold survive together. The threshold lies between the last logit that
    survives and the next one, not on it, and the largest survives by its place: a compiler may
    compute the logits once for the search and once more, rounded otherwise, for the comparison,
    which would drop what is compared with itself.
    """
    vocab = logits.shape[-1]
    by_number = 0 < top_k < vocab
    if not by_number and top_p is None:
        return logits
    largest = jnp.arange(vocab) == jnp.argmax(logits, axis=-1, keepdims=True)
    if top_k == 1:
        return jnp.where(largest, logits, -jnp.inf)
    keys = _ordered(logits.astype(jnp.float32))
    last = jnp.full((*logits.shape[:-1], 1), _LOWEST, jnp.int32)
    if by_number:
        last = _largest(lambda key: _count(keys >= key) >= top_k, last)
    if top_p is not None:
        probabilities = jax.nn.softmax(jnp.where(keys >= last, logits, -jnp.inf), axis=-1)
        # What lies below the last one that survives holds no more than 1 - p.
        below = _largest(
            lambda key: _count(jnp.where(keys < key, probabilities, 0)) <= 1 - top_p, last
        )
        last = jnp.maximum(last, jnp.minimum(below, jnp.max(keys, axis=-1, keepdims=True)))
    following = jnp.max(jnp.where(keys < last, logits, -jnp.inf), axis=-1, keepdims=True)
    smallest = jnp.min(jnp.where(keys >= last, logits, jnp.inf), axis=-1, keepdims=True)
    middle = (smallest + following) / 2
    threshold = jnp.where(middle > following, middle, smallest)
    return jnp.where((logits >= threshold) | largest, logits, -jnp.inf)


_LOWEST = np.iinfo(np.int32).min


def _ordered(x: Float[Array, "*b v"]) -> Int[Array, "*b v"]:
    """Whole numbers in the order of float32 numbers: their bits, those after the sign turned round
    where negative."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ np.int32(2**31 - 1), bits)


def _largest(holds: Callable[[Array], Array], like: Int[Array, "*b 1"]) -> Int[Array, "*b 1"]:
    """The largest int32 for which something holds that holds for the lowest one and, from some
    number on, no more: bit by bit from the highest, each of which halves what is left."""

    def bit(i, found):
        further = found + (jnp.int32(1) << (30 - i))
        return jnp.where(holds(further), further, found)

    negative = jnp.where(holds(jnp.zeros_like(like)), 0, _LOWEST)
    return jax.lax.fori_loop(0, 31, bit, negative)


def _count(x: Array) -> Array:
    return jnp.sum(x, axis=-1, keepdims=True)


def sample(keys: Key[Array, " b"], logits: Float[Array, "b l v"]) -> Int[Array, "b l"]:
    """One token a position, drawn from softmax(logits) with the image's own key."""
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def smooth_codes(
    keys: Key[Array, " b"],
    logits: Float[Array, "b l v"],
    codebook: Float[Array, "v c"],
    progress: float,
) -> Float[Array, "b l c"]:
    """Code vectors mixed by a gumbel-softmax instead of one chosen: smoother pictures, never for
    FID.

    The published rule (`more_smooth`): logits times (1 + progress), at a temperature that falls
    from 0.27 as `progress` goes from 0 at the first scale to 1 at the last.
    """
    temperature = max(0.27 * (1 - 0.95 * progress), 0.005)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    weights = jax.nn.softmax((logits * (1 + progress) + noise) / temperature, axis=-1)
    return jnp.matmul(weights, codebook, precision=jax.lax.Precision.HIGHEST)
