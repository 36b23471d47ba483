"""The multi-scale residual quantizer as pure functions (VAR, section 3.2, algorithms 1 and 2).

Feature maps are NHWC at the finest scale's size; tokens of all scales lie in one (B, L), coarse to fine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from var_jax.ops.resize import resize
from var_jax.ops.scales import Scales

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

HIGHEST = jax.lax.Precision.HIGHEST


def phi_index(scales: int, count: int) -> list[int]:
    """Which of `count` residual convolutions serves each of `scales` scales.

    The nearest of the published code's ticks, in float64, the first of equals: ties are real (four convolutions
    over ten scales) and float32 breaks them otherwise.
    """
    edge = 1 / 3 / count if count == 4 else 1 / 2 / count
    ticks = np.linspace(edge, 1 - edge, count)
    at = [k / (scales - 1) if scales > 1 else 0.0 for k in range(scales)]
    return [int(np.argmin(np.abs(ticks - x))) for x in at]


@flax.struct.dataclass
class Quantizer:
    """The quantizer's weights and the settings that its functions share.

    Attributes:
      codebook: (V, C) code vectors.
      phi_kernel: (n, 3, 3, C, C) and phi_bias (n, C) of the residual convolutions.
      scales, phi_ratio, cosine: see `TokenizerConfig`.
    """

    codebook: Float[Array, "v c"]
    phi_kernel: Float[Array, "n 3 3 c c"]
    phi_bias: Float[Array, "n c"]
    scales: Scales = flax.struct.field(pytree_node=False)
    phi_ratio: float = flax.struct.field(pytree_node=False, default=0.5)
    cosine: bool = flax.struct.field(pytree_node=False, default=False)


def nearest_code(q: Quantizer, z: Float[Array, "*b c"]) -> Int[Array, "*b"]:
    """The index of the code nearest to each vector, the first of equals."""
    if q.cosine:
        unit = q.codebook / jnp.maximum(jnp.linalg.norm(q.codebook, axis=-1, keepdims=True), 1e-12)
        # The query's own length does not change which code wins.
        return jnp.argmax(jnp.matmul(z, unit.T, precision=HIGHEST), axis=-1).astype(jnp.int32)
    squares = jnp.sum(q.codebook**2, axis=-1)
    distance = jnp.sum(z**2, axis=-1, keepdims=True) + squares - 2 * jnp.matmul(z, q.codebook.T, precision=HIGHEST)
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)


def contribution(q: Quantizer, codes: Float[Array, "b l c"], k: int) -> Float[Array, "b h w c"]:
    """What scale k's code vectors add to the feature map: bicubic up, then phi."""
    h, w = q.scales.sizes[k]
    up = resize(codes.reshape(codes.shape[0], h, w, -1), q.scales.finest, "bicubic")
    i = phi_index(len(q.scales), q.phi_kernel.shape[0])[k]
    conv = jax.lax.conv_general_dilated(
        up, q.phi_kernel[i].astype(up.dtype), (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=HIGHEST)
    return up * (1 - q.phi_ratio) + (conv + q.phi_bias[i].astype(up.dtype)) * q.phi_ratio


def area_tokens(q: Quantizer, feature: Float[Array, "b h w c"], k: int) -> Float[Array, "b l c"]:
    """The feature map averaged down to scale k, as a sequence."""
    down = resize(feature, q.scales.sizes[k], "area")
    return down.reshape(down.shape[0], -1, down.shape[-1])


def lookup(q: Quantizer, tokens: Int[Array, "b l"]) -> Float[Array, "b l c"]:
    return jnp.take(q.codebook, tokens, axis=0)


def encode(q: Quantizer, feature: Float[Array, "b h w c"]) -> tuple[Int[Array, "b L"], list[Float[Array, "b h w c"]]]:
    """Tokens of all scales, and the cumulative quantised map after each (VAR, algorithm 1).

    Gradients flow into the codebook and phi through the maps; the choice of codes has none.
    """
    fixed = jax.lax.stop_gradient(feature.astype(jnp.float32))
    total = jnp.zeros_like(fixed)
    tokens, totals = [], []
    for k in range(len(q.scales)):
        chosen = nearest_code(q, area_tokens(q, fixed - jax.lax.stop_gradient(total), k))
        total = total + contribution(q, lookup(q, chosen), k)
        tokens.append(chosen)
        totals.append(total)
    return jnp.concatenate(tokens, axis=1), totals


def decode(q: Quantizer, tokens: Int[Array, "b L"]) -> list[Float[Array, "b h w c"]]:
    """The cumulative quantised map after each scale (VAR, algorithm 2)."""
    totals = []
    for k, part in enumerate(q.scales.split(tokens)):
        step = contribution(q, lookup(q, part), k)
        totals.append(totals[-1] + step if totals else step)
    return totals


def teacher_input(q: Quantizer, tokens: Int[Array, "b L"]) -> Float[Array, "b L-1 c"]:
    """What the transformer sees for scales 2..K: the map so far, averaged down to the next scale's size."""
    totals = decode(q, tokens)[:-1]
    parts = [area_tokens(q, total, k + 1) for k, total in enumerate(totals)]
    first = jnp.zeros((tokens.shape[0], 0, q.codebook.shape[1]), q.codebook.dtype)
    return jnp.concatenate([first, *parts], axis=1)


def vq_loss(feature: Float[Array, "b h w c"], totals: list[Float[Array, "b h w c"]], beta: float) -> Float[Array, ""]:
    """Mean over scales of beta * mse(sg f_hat, f) + mse(f_hat, sg f), on the cumulative maps."""
    fixed = jax.lax.stop_gradient
    terms = [beta * jnp.mean((fixed(t) - feature) ** 2) + jnp.mean((t - fixed(feature)) ** 2) for t in totals]
    return sum(terms, jnp.zeros(())) / len(terms)


def code_counts(scales: Scales, tokens: Int[Array, "b L"], vocab_size: int) -> Int[Array, "k v"]:
    """How often each code was chosen at each scale."""
    return jnp.stack([jnp.bincount(part.reshape(-1), length=vocab_size) for part in scales.split(tokens)])
