"""The multi-scale residual quantizer as pure functions (VAR, section 3.2, algorithms 1 and 2).

Feature maps are NHWC at the finest scale's size; tokens of all scales lie in one (B, L), coarse to
fine.

Three kinds of codes stand behind the same functions. "euclidean" and "cosine" look a vector up in a
learned table. "bsq" (binary spherical quantization, Zhao et al. 2024) has neither table nor search:
a code is the corner sign(u) / sqrt(C) of the cube within the unit sphere that is nearest to the
vector's direction u, and its token holds the signs, channel d as bit d (channel 0 the lowest), 1
where positive. As in Infinity (Han et al. 2024), every scale quantises the direction of its
residual and adds a code of length 1, whatever the residual's own length: the encoder learns
features of a fitting length, and phi learns how much of a scale's code is added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.scales import Scales
from var_jax.errors import UserError
from var_jax.ops.normalize import l2_normalize
from var_jax.ops.resize import resize

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

HIGHEST = jax.lax.Precision.HIGHEST
MAX_TABLE = 2**16  # codes of a vocabulary without a table, of which one is made
COUNTED = 2**16  # codes that are counted one by one


def phi_index(scales: int, count: int) -> list[int]:
    """Which of `count` residual convolutions serves each of `scales` scales.

    The nearest of the published code's ticks, in float64, the first of equals: ties are real (four
    convolutions over ten scales) and float32 breaks them otherwise.
    """
    edge = 1 / 3 / count if count == 4 else 1 / 2 / count
    ticks = np.linspace(edge, 1 - edge, count)
    at = [k / (scales - 1) if scales > 1 else 0.0 for k in range(scales)]
    return [int(np.argmin(np.abs(ticks - x))) for x in at]


@flax.struct.dataclass
class Quantizer:
    """The quantizer's weights and the settings that its functions share.

    Attributes:
      codebook: (V, C) code vectors; None for "bsq".
      phi_kernel: (n, 3, 3, C, C) and phi_bias (n, C) of the residual convolutions.
      scales, phi_ratio, codes: see `TokenizerConfig`.
    """

    codebook: Float[Array, "v c"] | None
    phi_kernel: Float[Array, "n 3 3 c c"]
    phi_bias: Float[Array, "n c"]
    scales: Scales = flax.struct.field(pytree_node=False)
    phi_ratio: float = flax.struct.field(pytree_node=False, default=0.5)
    codes: str = flax.struct.field(pytree_node=False, default="euclidean")

    @property
    def channels(self) -> int:
        """C, the width of a code."""
        return self.phi_kernel.shape[-1]

    @property
    def table(self) -> Float[Array, "v c"]:
        """The learned codebook, of codes that have one."""
        assert self.codebook is not None, f"codes {self.codes!r} have no codebook"
        return self.codebook


class Quantized(NamedTuple):
    """What `quantize` gives.

    Attributes:
      tokens: of all scales.
      totals: the cumulative quantised map after each scale.
      searched: the vectors that tokens stand for, residuals averaged down to each scale; gradients
        flow from here to the feature (for `codebook.entropy_penalty`), and none to codes or phi.
    """

    tokens: Int[Array, "b L"]
    totals: list[Float[Array, "b h w c"]]
    searched: Float[Array, "b L c"]


def nearest_code(q: Quantizer, z: Float[Array, "*b c"]) -> Int[Array, "*b"]:
    """The index of the code nearest to each vector, the first of equals."""
    if q.codes == "bsq":
        return jnp.sum(
            (z > 0).astype(jnp.int32) << jnp.arange(z.shape[-1], dtype=jnp.int32), axis=-1
        )
    codebook = q.table
    if q.codes == "cosine":
        # The query's own length does not change which code wins.
        return jnp.argmax(
            jnp.matmul(z, l2_normalize(codebook).T, precision=HIGHEST), axis=-1
        ).astype(jnp.int32)
    squares = jnp.sum(codebook**2, axis=-1)
    distance = (
        jnp.sum(z**2, axis=-1, keepdims=True)
        + squares
        - 2 * jnp.matmul(z, codebook.T, precision=HIGHEST)
    )
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)


def lookup(q: Quantizer, tokens: Int[Array, "*b"]) -> Float[Array, "*b c"]:
    """The code vectors of tokens."""
    if q.codes != "bsq":
        return jnp.take(q.table, tokens, axis=0)
    bits = (tokens[..., None] >> jnp.arange(q.channels, dtype=jnp.int32)) & 1
    return (2 * bits - 1).astype(jnp.float32) / q.channels**0.5


def code_vectors(q: Quantizer) -> Float[Array, "v c"]:
    """All code vectors, by token.

    Raises:
      UserError: codes without a table, and more than 65,536 of them.
    """
    if q.codes != "bsq":
        return q.table
    if 2**q.channels > MAX_TABLE:
        raise UserError(
            f"a table of all 2**{q.channels} codes is too large; this needs a vocabulary of at most "
            f"{MAX_TABLE} codes (smooth sampling mixes all of them: sample without it)"
        )
    return lookup(q, jnp.arange(2**q.channels, dtype=jnp.int32))


def contribution(q: Quantizer, codes: Float[Array, "b l c"], k: int) -> Float[Array, "b h w c"]:
    """What scale k's code vectors add to the feature map: bicubic up, then phi."""
    h, w = q.scales.sizes[k]
    up = resize(codes.reshape(codes.shape[0], h, w, -1), q.scales.finest, "bicubic")
    i = phi_index(len(q.scales), q.phi_kernel.shape[0])[k]
    conv = jax.lax.conv_general_dilated(
        up,
        q.phi_kernel[i].astype(up.dtype),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=HIGHEST,
    )
    return up * (1 - q.phi_ratio) + (conv + q.phi_bias[i].astype(up.dtype)) * q.phi_ratio


def area_tokens(q: Quantizer, feature: Float[Array, "b h w c"], k: int) -> Float[Array, "b l c"]:
    """The feature map averaged down to scale k, as a sequence."""
    down = resize(feature, q.scales.sizes[k], "area")
    return down.reshape(down.shape[0], -1, down.shape[-1])


def quantize(
    q: Quantizer, feature: Float[Array, "b h w c"], last: Int[Array, " b"] | None = None
) -> Quantized:
    """Tokens, maps and searched vectors of all scales (VAR, algorithm 1).

    Gradients flow into the codebook and phi through the maps; the choice of codes has none.

    Args:
      last: each image's last scale that adds to its maps (`draw_last`), None for all. Finer scales
        still have tokens, which count for nothing (`kept`).
    """
    feature = feature.astype(jnp.float32)
    total = jnp.zeros_like(feature)
    tokens, totals, searched = [], [], []
    for k in range(len(q.scales)):
        wanted = area_tokens(q, feature - jax.lax.stop_gradient(total), k)
        chosen = nearest_code(q, jax.lax.stop_gradient(wanted))
        step = contribution(q, lookup(q, chosen), k)
        total = total + (step if last is None else step * (k <= last)[:, None, None, None])
        tokens.append(chosen)
        totals.append(total)
        searched.append(wanted)
    return Quantized(jnp.concatenate(tokens, axis=1), totals, jnp.concatenate(searched, axis=1))


def encode(
    q: Quantizer, feature: Float[Array, "b h w c"]
) -> tuple[Int[Array, "b L"], list[Float[Array, "b h w c"]]]:
    """Tokens of all scales, and the cumulative quantised map after each: two of the things that
    `quantize` gives."""
    return quantize(q, feature)[:2]


def ideal_vectors(q: Quantizer, feature: Float[Array, "b h w c"]) -> Float[Array, "b L c"]:
    """What would be searched if every vector were a code itself: what codes to come should
    represent, whatever the present ones are."""
    total, searched = jnp.zeros_like(feature), []
    for k in range(len(q.scales)):
        searched.append(area_tokens(q, feature - total, k))
        total = total + contribution(q, searched[-1], k)
    return jnp.concatenate(searched, axis=1)


def decode(q: Quantizer, tokens: Int[Array, "b L"]) -> list[Float[Array, "b h w c"]]:
    """The cumulative quantised map after each scale (VAR, algorithm 2)."""
    totals = []
    for k, part in enumerate(q.scales.split(tokens)):
        step = contribution(q, lookup(q, part), k)
        totals.append(totals[-1] + step if totals else step)
    return totals


def teacher_input(q: Quantizer, tokens: Int[Array, "b L"]) -> Float[Array, "b L-1 c"]:
    """What the transformer sees for scales 2..K: the map so far, averaged down to the next scale's
    size."""
    totals = decode(q, tokens)[:-1]
    parts = [area_tokens(q, total, k + 1) for k, total in enumerate(totals)]
    first = jnp.zeros((tokens.shape[0], 0, q.channels), q.phi_kernel.dtype)
    return jnp.concatenate([first, *parts], axis=1)


def vq_loss(
    feature: Float[Array, "b h w c"],
    totals: list[Float[Array, "b h w c"]],
    beta: float,
    last: Int[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Mean over scales of beta * mse(sg f_hat, f) + mse(f_hat, sg f), on the cumulative maps.

    With `last`, an image's mean is over the scales up to its last alone, and all images weigh the
    same.
    """
    fixed = jax.lax.stop_gradient
    if last is None:
        terms = [
            beta * jnp.mean((fixed(t) - feature) ** 2) + jnp.mean((t - fixed(feature)) ** 2)
            for t in totals
        ]
        return sum(terms, jnp.zeros(())) / len(terms)
    squares = jnp.stack(
        [
            jnp.mean(beta * (fixed(t) - feature) ** 2 + (t - fixed(feature)) ** 2, axis=(1, 2, 3))
            for t in totals
        ]
    )
    counted = jnp.arange(len(totals))[:, None] <= last
    return jnp.mean(jnp.sum(squares * counted, axis=0) / (last + 1))


def draw_last(
    key: PRNGKeyArray, batch: int, scales: int, rate: float, start: int
) -> Int[Array, " b"]:
    """Quantizer dropout: each image's last scale, with probability `rate` uniform from `start` to
    the finest (scales counted from 0), else the finest.

    It makes the coarse scales hold as much of the image as they can (Zeghidour et al. 2021 for
    residual quantizers; XQ-GAN, Li et al. 2024, with rate 0.1 for this tokenizer).
    """
    dropped_key, last_key = jax.random.split(key)
    last = jax.random.randint(last_key, (batch,), start, scales)
    return jnp.where(jax.random.bernoulli(dropped_key, rate, (batch,)), last, scales - 1)


def kept(scales: Scales, last: Int[Array, " b"]) -> Bool[Array, "b L"]:
    """Which tokens are of a scale up to their image's last."""
    return jnp.asarray(scales.level_ids) <= last[:, None]


def count_bins(vocab_size: int) -> int:
    """Columns of `code_counts`: V, and 65,536 where codes are too many to be counted one by one."""
    return min(vocab_size, COUNTED)


def code_counts(
    scales: Scales,
    tokens: Int[Array, "b L"],
    vocab_size: int,
    counted: Bool[Array, "b l"] | None = None,
) -> Int[Array, "k v"]:
    """How often each code was chosen at each scale.

    In a vocabulary of more than 65,536 codes, tokens fall together that agree in their lowest 16
    bits.

    Args:
      counted: which tokens count, per token or (b, 1) per image; None for all.
    """
    bins = count_bins(vocab_size)
    tokens = tokens % bins if bins < vocab_size else tokens
    if counted is not None:
        tokens = jnp.where(counted, tokens, bins)  # a bin that is cut off
    return jnp.stack(
        [jnp.bincount(part.reshape(-1), length=bins + 1)[:-1] for part in scales.split(tokens)]
    )
