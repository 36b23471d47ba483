"""Initial codes chosen from an encoder's vectors, and vectors that replace dead codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.scales import Scales

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, PRNGKeyArray

NOISE = 0.1  # added to a repeated vector, in standard deviations of each channel
KMEANS_VECTORS = 32  # per code


def candidates(
    vectors: Float[Array, "b L c"],
    key: PRNGKeyArray,
    count: int,
    scales: Scales,
    *,
    counted: Bool[Array, "b L"] | None = None,
    scale_weights: Float[Array, " k"] | None = None,
) -> Float[Array, "n c"]:
    """Returns `count` of the vectors in random order, balanced over the scales.

    Each next vector comes from any scale with equal probability, or in proportion to
    `scale_weights`; drawn uniformly, nearly all would come from the finest scales. They are drawn
    without replacement (a scale of few vectors may run out); when all are drawn, copies with noise
    follow.

    Args:
      vectors: the residuals of all scales (`vq.quantize`).
      counted: vectors for which it is False come last; None for all True.
    """
    weights = np.concatenate([np.full(length, 1 / length) for length in scales.lengths])
    log_weights = jnp.log(jnp.asarray(weights, jnp.float32))
    if scale_weights is not None:
        log_weights += jnp.log(scale_weights)[scales.level_ids]
    log_weights = jnp.broadcast_to(log_weights, vectors.shape[:2])
    if counted is not None:
        log_weights = jnp.where(counted, log_weights, -jnp.inf)
    rows = vectors.reshape(-1, vectors.shape[-1])
    return _sample_rows(rows, log_weights.reshape(-1), key, count)


def sampled_init(
    vectors: Float[Array, "n c"], key: PRNGKeyArray, vocab_size: int
) -> Float[Array, "v c"]:
    """Returns codes that are distinct vectors, chosen at random.

    If there are fewer vectors than codes, they are all of the vectors, and copies with noise.
    """
    return _sample_rows(vectors, jnp.zeros(vectors.shape[0]), key, vocab_size)


def kmeans_init(
    vectors: Float[Array, "n c"],
    key: PRNGKeyArray,
    vocab_size: int,
    iterations: int = 10,
) -> Float[Array, "v c"]:
    """Returns the centers of Lloyd's k-means, started from `sampled_init`.

    Nothing is clustered if there are no more vectors than codes.

    It runs on the host, in scikit-learn. Hosts may round differently, so one of several has to
    compute the codes for all.
    """
    from sklearn.cluster import KMeans

    start = sampled_init(vectors, key, vocab_size)
    if vectors.shape[0] <= vocab_size:
        return start
    kmeans = KMeans(
        vocab_size,
        init=np.asarray(start),  # pyright: ignore[reportArgumentType]
        n_init=1,  # pyright: ignore[reportArgumentType]
        max_iter=iterations,
        random_state=int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max)),
    )
    return jnp.asarray(kmeans.fit(np.asarray(vectors)).cluster_centers_, start.dtype)


def initial_codes(
    vectors: Float[Array, "b L c"],
    key: PRNGKeyArray,
    vocab_size: int,
    scales: Scales,
    how: Literal["sampled", "kmeans", "equal"],
) -> Float[Array, "v c"]:
    """Returns a run's initial codes, from vectors that are balanced over the scales.

    Args:
      vectors: the vectors of many images that the codes are to represent: `vq.exact_residuals`, or
        the residuals that other codes leave.
      how: "sampled"; "kmeans", from up to 32 vectors per code; or "equal", one vector for all
        codes, which is the worst possible start and shows what revival can do.
    """
    sample_key, key = jax.random.split(key)
    count = {"sampled": vocab_size, "kmeans": vocab_size * KMEANS_VECTORS, "equal": 1}[how]
    count = min(vectors.shape[0] * vectors.shape[1], count)
    rows = candidates(vectors, sample_key, count, scales)
    if how == "equal":
        return jnp.repeat(rows, vocab_size, axis=0)
    if how == "kmeans":
        return kmeans_init(rows, key, vocab_size)
    return sampled_init(rows, key, vocab_size)


def _sample_rows(
    rows: Float[Array, "n c"], log_weights: Float[Array, " n"], key: PRNGKeyArray, count: int
) -> Float[Array, "m c"]:
    """Samples rows by weight without replacement (Gumbel top-k).

    When all are drawn, copies with noise follow.
    """
    order_key, noise_key = jax.random.split(key)
    distinct = min(count, rows.shape[0])
    noisy_weights = log_weights + jax.random.gumbel(order_key, log_weights.shape)
    _, order = jax.lax.top_k(noisy_weights, distinct)
    sampled = jnp.take(rows, jnp.resize(order, (count,)), axis=0)
    if distinct == count:
        return sampled
    noise = NOISE * jnp.std(rows, axis=0) * jax.random.normal(noise_key, sampled.shape)
    is_distinct = jnp.arange(count)[:, None] < distinct
    return jnp.where(is_distinct, sampled, sampled + noise.astype(sampled.dtype))
