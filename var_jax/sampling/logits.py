"""From logits to tokens: top-k, top-p, and sampling with one key per image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.ops.argmax import argmax

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key


def filter_logits(
    logits: Float[Array, "*b v"],
    top_k: int,
    top_p: Float[Array, ""] | float | None,
) -> Float[Array, "*b v"]:
    """Returns logits with -inf in place of those that top-k and top-p exclude.

    The k largest logits remain and, among those, the fewest that together hold probability p.
    Nothing is sorted: both thresholds are found by counting the logits above or below a candidate
    (`_largest_key_where`).

    Equal logits at a threshold remain together. The threshold is halfway between the last logit
    that remains and the next one, and the largest logit remains by its position. A compiler may
    compute the logits twice, for the search and for the comparison, with different rounding; a
    logit compared with itself could then be excluded.

    Args:
      top_k: 0 or >= V is off.
      top_p: None is off. The largest logit always remains.
    """
    vocab = logits.shape[-1]
    use_top_k = 0 < top_k < vocab
    if not use_top_k and top_p is None:
        return logits
    is_largest = jnp.arange(vocab) == argmax(logits)[..., None]
    if top_k == 1:
        return jnp.where(is_largest, logits, -jnp.inf)

    # The smallest key that remains: first by top-k, then by top-p.
    keys = _sort_keys(logits.astype(jnp.float32))
    smallest_key = jnp.full((*logits.shape[:-1], 1), _LOWEST, jnp.int32)
    if use_top_k:
        smallest_key = _largest_key_where(lambda key: _count(keys >= key) >= top_k, smallest_key)
    if top_p is not None:
        top_k_logits = jnp.where(keys >= smallest_key, logits, -jnp.inf)
        probabilities = jax.nn.softmax(top_k_logits, axis=-1)
        # The logits below the last one that remains hold a probability of at most 1 - p.
        top_p_key = _largest_key_where(
            lambda key: _sum(jnp.where(keys < key, probabilities, 0)) <= 1 - top_p, smallest_key
        )
        largest_key = jnp.max(keys, axis=-1, keepdims=True)
        smallest_key = jnp.maximum(smallest_key, jnp.minimum(top_p_key, largest_key))

    # The threshold halfway between the last logit that remains and the next one.
    excluded = jnp.where(keys < smallest_key, logits, -jnp.inf)
    remaining = jnp.where(keys >= smallest_key, logits, jnp.inf)
    next_logit = jnp.max(excluded, axis=-1, keepdims=True)
    last_logit = jnp.min(remaining, axis=-1, keepdims=True)
    middle = (last_logit + next_logit) / 2
    threshold = jnp.where(middle > next_logit, middle, last_logit)
    return jnp.where((logits >= threshold) | is_largest, logits, -jnp.inf)


_LOWEST = np.iinfo(np.int32).min


def _sort_keys(x: Float[Array, "*b v"]) -> Int[Array, "*b v"]:
    """Returns integers in the same order as float32 numbers.

    They are the numbers' bits, with all but the sign bit inverted for negative numbers.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ np.int32(2**31 - 1), bits)


def _largest_key_where(
    condition: Callable[[Array], Array], like: Int[Array, "*b 1"]
) -> Int[Array, "*b 1"]:
    """Returns the largest int32 for which a condition holds, by bisection from the highest bit.

    Args:
      condition: holds for the lowest int32, and for no number above the first for which it fails.
      like: an array of the result's shape.
    """

    def set_bit(i, key):
        higher_key = key + (jnp.int32(1) << (30 - i))
        return jnp.where(condition(higher_key), higher_key, key)

    start = jnp.where(condition(jnp.zeros_like(like)), 0, _LOWEST)
    return jax.lax.fori_loop(0, 31, set_bit, start)


def _sum(x: Array) -> Array:
    return jnp.sum(x, axis=-1, keepdims=True)


def _count(chosen: Array) -> Array:
    """Returns how many are chosen, in float32: exact up to 2**24, and CPUs vectorize its sums."""
    return _sum(chosen.astype(jnp.float32))


def sample(keys: Key[Array, " b"], logits: Float[Array, "b l v"]) -> Int[Array, "b l"]:
    """Samples one token per position from softmax(logits), with one key per image."""
    return noisy_argmax(logits, gumbel(keys, logits.shape[1:]))


def gumbel(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b l v"]:
    """Returns the noise that `sample` adds to its logits (l, v) of each image."""
    return jax.vmap(lambda key: jax.random.gumbel(key, shape))(keys)


def noisy_argmax(logits: Float[Array, "*b v"], noise: Float[Array, "*b v"]) -> Int[Array, "*b"]:
    """Returns one sample of each softmax(logits), by its `gumbel` noise."""
    return argmax(noise + logits)


def smooth_codes(
    keys: Key[Array, " b"],
    logits: Float[Array, "b l v"],
    codebook: Float[Array, "v c"],
    progress: float,
) -> Float[Array, "b l c"]:
    """Returns code vectors mixed by a Gumbel-softmax, instead of one code per position.

    Images become smoother, but are not for measuring FID.

    This is the published code's `more_smooth`: the logits are multiplied by (1 + progress), and the
    temperature falls linearly from 0.27 to 0.0135.

    Args:
      progress: position of the scale, from 0 at the first to 1 at the last.
    """
    temperature = max(0.27 * (1 - 0.95 * progress), 0.005)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    weights = jax.nn.softmax((logits * (1 + progress) + noise) / temperature, axis=-1)
    return jnp.matmul(weights, codebook, precision=jax.lax.Precision.HIGHEST)
