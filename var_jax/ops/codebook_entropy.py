"""The entropy penalty, which keeps all codes in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from var_jax.ops import vq
from var_jax.ops.normalize import l2_normalize

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

PROBABILITIES_AT_ONCE = 2**25  # held by `entropy_penalty`, over all devices


def entropy_penalty(
    q: vq.Quantizer,
    vectors: Float[Array, "b L c"],
    temperature: float,
    counted: Bool[Array, "b l"] | None = None,
    chunk: int = PROBABILITIES_AT_ONCE,
) -> Float[Array, ""]:
    """Returns E[H(p(code | vector))] - H(E[p(code | vector)]) in nats (MAGVIT-v2, Yu et al. 2023).

    It is small when every choice is certain and all codes are in equal use.

    p is the softmax over codes of -|z - code|^2 / temperature ("euclidean"), or of their cosine
    divided by the temperature ("cosine", "bsq"). For "bsq", p is a product over bits: the first
    entropy is exactly the sum of the bits' entropies, and the second is computed as if the bits
    were independent on average too, which is an upper bound (BSQ, Zhao et al. 2024). Gradients flow
    to the vectors and to the codebook.

    Args:
      vectors: the residuals of `vq.quantize`.
      counted: which vectors count, one value per vector, or one per image as (b, 1); None for all.
      chunk: largest number of probabilities in memory at once. The sequence is cut into chunks, not
        the batch, so that the batch stays sharded.
    """
    b, length, _ = vectors.shape
    weights = (
        jnp.ones((b, length)) if counted is None else jnp.broadcast_to(counted, (b, length)) * 1.0
    )
    weights = weights / jnp.maximum(jnp.sum(weights), 1)
    if q.codes == "bsq":
        probabilities = jax.nn.sigmoid(2 * _unit(vectors) / (temperature * q.channels**0.5))
        mean_entropy = jnp.sum(weights[..., None] * _bit_entropy(probabilities))
        mean_probability = jnp.einsum("bl,blc->c", weights, probabilities)
        return mean_entropy - jnp.sum(_bit_entropy(mean_probability))

    codes = _unit(q.table) if q.codes == "cosine" else q.table

    @jax.checkpoint
    def add_chunk(sums, chunk_rows):
        z, w = chunk_rows
        z = _unit(z) if q.codes == "cosine" else z
        products = jnp.einsum("blc,vc->blv", z, codes, precision=vq.HIGHEST)
        # -|z - code|^2 without its |z|^2, which is the same for all codes.
        score = products if q.codes == "cosine" else 2 * products - jnp.sum(codes**2, axis=-1)
        log_p = jax.nn.log_softmax(score / temperature, axis=-1)
        p = jnp.exp(log_p)
        mean_entropy, mean_p = sums
        mean_entropy = mean_entropy - jnp.sum(w[..., None] * p * log_p)
        return (mean_entropy, mean_p + jnp.einsum("bl,blv->v", w, p)), None

    # Chunks of whole sequence positions; the last one is padded with vectors of weight 0.
    positions = max(1, min(length, chunk // (b * codes.shape[0])))
    num_chunks = -(-length // positions)

    def split(x):
        padding = [(0, 0), (0, num_chunks * positions - length)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, padding)
        return x.reshape(b, num_chunks, positions, *x.shape[2:]).swapaxes(0, 1)

    start = jnp.zeros(()), jnp.zeros(codes.shape[0])
    (mean_entropy, mean_p), _ = jax.lax.scan(add_chunk, start, (split(vectors), split(weights)))
    return mean_entropy - _entropy(mean_p)


def scale_entropy_penalty(
    q: vq.Quantizer,
    vectors: Float[Array, "b L c"],
    temperature: float,
    counted: Bool[Array, "b l"] | None = None,
) -> Float[Array, ""]:
    """Returns the mean over scales of each scale's `entropy_penalty`.

    In one penalty of all vectors, those of the coarse scales, which collapse first, would hardly
    count.

    Args:
      vectors: the residuals of all scales.
      counted: as in `entropy_penalty`.
    """
    b, length, _ = vectors.shape
    counted = jnp.broadcast_to(True if counted is None else counted, (b, length))
    terms = [
        entropy_penalty(q, scale_vectors, temperature, scale_counted)
        for scale_vectors, scale_counted in zip(
            q.scales.split(vectors), q.scales.split(counted), strict=True
        )
    ]
    return sum(terms, jnp.zeros(())) / len(terms)


def _unit(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    return l2_normalize(x, floor=1e-6)


def _entropy(p: Float[Array, "*b v"]) -> Float[Array, "*b"]:
    return -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-30)), axis=-1)


def _bit_entropy(p: Float[Array, "*b"]) -> Float[Array, "*b"]:
    return _entropy(jnp.stack([p, 1 - p], axis=-1))
