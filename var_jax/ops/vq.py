"""The multi-scale residual quantizer as pure functions (VAR, section 3.2, algorithms 1 and 2).

Feature maps are NHWC at the finest scale's size. Tokens of all scales form one (B, L) array, coarse
to fine. `f_hat` is the paper's name for the accumulated feature map: the sum, over the scales so
far, of the code vectors after upsampling and phi.

There are three kinds of codes. "euclidean" and "cosine" look up the nearest vector of a learned
codebook. "bsq" (binary spherical quantization, Zhao et al. 2024) has neither a codebook nor a
search: a code is sign(u) / sqrt(C) for the direction u of a vector, which is the nearest corner of
the cube inscribed in the unit sphere, and its token holds the signs as bits (channel 0 the lowest
bit, 1 for positive). As in Infinity (Han et al. 2024), every scale adds a code of length 1 whatever
the length of its residual: the encoder learns features of a fitting length, and phi learns how much
of a scale's code is added.
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
MAX_TABLE = 2**16  # the most "bsq" codes that `code_vectors` lists


def phi_index(num_scales: int, num_convs: int) -> list[int]:
    """Returns, for each scale, the index of the residual convolution (phi) that serves it.

    It is the nearest of the published code's ticks, the first of equally near ones. The distances
    are computed in float64: with four convolutions over ten scales there are ties, which float32
    would break otherwise.
    """
    edge = 1 / 3 / num_convs if num_convs == 4 else 1 / 2 / num_convs
    ticks = np.linspace(edge, 1 - edge, num_convs)
    positions = [k / (num_scales - 1) if num_scales > 1 else 0.0 for k in range(num_scales)]
    return [int(np.argmin(np.abs(ticks - position))) for position in positions]


@flax.struct.dataclass
class Quantizer:
    """The quantizer's weights, and the settings that its functions share.

    Attributes:
      codebook: code vectors; None for "bsq".
      phi_kernel: kernels of the residual convolutions.
      phi_bias: their biases.
      scales: as in `TokenizerConfig`, as are the next two.
      phi_ratio: share of phi's output in a scale's contribution.
      codes: "euclidean", "cosine" or "bsq".
    """

    codebook: Float[Array, "v c"] | None
    phi_kernel: Float[Array, "n 3 3 c c"]
    phi_bias: Float[Array, "n c"]
    scales: Scales = flax.struct.field(pytree_node=False)
    phi_ratio: float = flax.struct.field(pytree_node=False, default=0.5)
    codes: str = flax.struct.field(pytree_node=False, default="euclidean")

    @property
    def channels(self) -> int:
        """C, the number of channels of a code vector."""
        return self.phi_kernel.shape[-1]

    @property
    def table(self) -> Float[Array, "v c"]:
        """The learned codebook, for kinds of codes that have one."""
        assert self.codebook is not None, f"codes {self.codes!r} have no codebook"
        return self.codebook


class Quantized(NamedTuple):
    """The result of `quantize`.

    Attributes:
      tokens: tokens of all scales.
      f_hats: the accumulated feature map after each scale.
      residuals: at every token, the vector whose nearest code the token is: the feature map minus
        the coarser scales' sum, area-averaged to the token's scale. Gradients flow through them to
        the feature map (for `codebook_entropy.entropy_penalty`), but not to the codes or phi.
    """

    tokens: Int[Array, "b L"]
    f_hats: list[Float[Array, "b h w c"]]
    residuals: Float[Array, "b L c"]


def nearest_code(q: Quantizer, z: Float[Array, "*b c"]) -> Int[Array, "*b"]:
    """Returns the index of the code nearest to each vector, the first of equally near ones."""
    if q.codes == "bsq":
        bits = (z > 0).astype(jnp.int32) << jnp.arange(z.shape[-1], dtype=jnp.int32)
        return jnp.sum(bits, axis=-1)
    codebook = q.table
    if q.codes == "cosine":
        # The vector's own length does not change which code is nearest.
        cosines = jnp.matmul(z, l2_normalize(codebook).T, precision=HIGHEST)
        return jnp.argmax(cosines, axis=-1).astype(jnp.int32)
    squares = jnp.sum(codebook**2, axis=-1)
    distance = (
        jnp.sum(z**2, axis=-1, keepdims=True)
        + squares
        - 2 * jnp.matmul(z, codebook.T, precision=HIGHEST)
    )
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)


def lookup(q: Quantizer, tokens: Int[Array, "*b"]) -> Float[Array, "*b c"]:
    """Returns the code vectors of tokens."""
    if q.codes != "bsq":
        return jnp.take(q.table, tokens, axis=0)
    bits = (tokens[..., None] >> jnp.arange(q.channels, dtype=jnp.int32)) & 1
    return (2 * bits - 1).astype(jnp.float32) / q.channels**0.5


def code_vectors(q: Quantizer) -> Float[Array, "v c"]:
    """Returns all code vectors, by token.

    Raises:
      UserError: the codes are "bsq" and more than 65,536.
    """
    if q.codes != "bsq":
        return q.table
    if 2**q.channels > MAX_TABLE:
        raise UserError(
            f"a table of all 2**{q.channels} codes is too large; this needs a vocabulary of at "
            f"most {MAX_TABLE} codes (smooth sampling mixes all of them: sample without it)"
        )
    return lookup(q, jnp.arange(2**q.channels, dtype=jnp.int32))


def upsample_and_phi(q: Quantizer, codes: Float[Array, "b l c"], k: int) -> Float[Array, "b h w c"]:
    """Returns the contribution of scale k's code vectors to the feature map.

    It is their map, upsampled bicubically and mixed with its residual convolution phi.
    """
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


def accumulate(
    q: Quantizer,
    f_hat: Float[Array, "b h w c"] | None,
    codes: Float[Array, "b l c"],
    k: int,
    *,
    active: Bool[Array, " b"] | None = None,
) -> Float[Array, "b h w c"]:
    """Returns the accumulated feature map with scale k's code vectors added.

    Encoding, decoding and sampling all build their maps with it, scale after scale.

    Args:
      f_hat: the map after the scales before k; None before the first.
      codes: scale k's code vectors.
      active: the images that the scale is added for; None for all.
    """
    update = upsample_and_phi(q, codes, k)
    if active is not None:
        update = update * active[:, None, None, None]
    return update if f_hat is None else f_hat + update


def area_tokens(q: Quantizer, feature: Float[Array, "b h w c"], k: int) -> Float[Array, "b l c"]:
    """Returns a feature map area-averaged to scale k, as a sequence."""
    down = resize(feature, q.scales.sizes[k], "area")
    return down.reshape(down.shape[0], -1, down.shape[-1])


def quantize(
    q: Quantizer, feature: Float[Array, "b h w c"], num_scales: Int[Array, " b"] | None = None
) -> Quantized:
    """Quantizes a feature map scale by scale (VAR, algorithm 1).

    Gradients flow through the accumulated maps into the codebook and phi; the choice of the nearest
    code has none.

    Args:
      num_scales: number of leading scales per image that its accumulated maps are made of
        (`sample_num_scales`); None for all. The finer scales still have tokens, which
        `active_tokens` marks.
    """
    feature = feature.astype(jnp.float32)
    f_hat = jnp.zeros_like(feature)
    tokens, f_hats, residuals = [], [], []
    for k in range(len(q.scales)):
        residual = area_tokens(q, feature - jax.lax.stop_gradient(f_hat), k)
        scale_tokens = nearest_code(q, jax.lax.stop_gradient(residual))
        active = None if num_scales is None else k < num_scales
        f_hat = accumulate(q, f_hat, lookup(q, scale_tokens), k, active=active)
        tokens.append(scale_tokens)
        f_hats.append(f_hat)
        residuals.append(residual)
    return Quantized(jnp.concatenate(tokens, axis=1), f_hats, jnp.concatenate(residuals, axis=1))


def exact_residuals(q: Quantizer, feature: Float[Array, "b h w c"]) -> Float[Array, "b L c"]:
    """Returns the residuals that `quantize` would have if every vector were itself a code.

    They do not depend on the present codes, so a codebook can be initialized from them.
    """
    f_hat = jnp.zeros_like(feature)
    residuals = []
    for k in range(len(q.scales)):
        residuals.append(area_tokens(q, feature - f_hat, k))
        f_hat = accumulate(q, f_hat, residuals[-1], k)
    return jnp.concatenate(residuals, axis=1)


def decode(q: Quantizer, tokens: Int[Array, "b l"]) -> list[Float[Array, "b h w c"]]:
    """Returns the accumulated feature map after each scale (VAR, algorithm 2).

    Args:
      tokens: tokens of all scales, or of some leading ones.
    """
    num_scales = q.scales.offsets.index(tokens.shape[1])
    f_hat = None
    f_hats = []
    for k in range(num_scales):
        f_hat = accumulate(q, f_hat, lookup(q, tokens[:, q.scales.span(k)]), k)
        f_hats.append(f_hat)
    return f_hats


def teacher_input(q: Quantizer, tokens: Int[Array, "b L"]) -> Float[Array, "b L-1 c"]:
    """Returns the transformer's inputs for all scales but the first under teacher forcing."""
    return scale_inputs(q, decode(q, tokens)[:-1], tokens.shape[0])


def scale_inputs(
    q: Quantizer, f_hats: list[Float[Array, "b h w c"]], batch: int
) -> Float[Array, "b l c"]:
    """Returns the transformer's inputs for the scales that follow given maps.

    Each is an accumulated feature map, area-averaged to the size of the next scale.

    Args:
      f_hats: the maps after the first scale, the first two, and so on; there may be none.
      batch: number of images.
    """
    inputs = [jnp.zeros((batch, 0, q.channels), q.phi_kernel.dtype)]
    inputs += [area_tokens(q, f_hat, k + 1) for k, f_hat in enumerate(f_hats)]
    return jnp.concatenate(inputs, axis=1)


def vq_loss(
    feature: Float[Array, "b h w c"],
    f_hats: list[Float[Array, "b h w c"]],
    beta: float,
    num_scales: Int[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Returns the quantizer's loss, a mean over scales (VAR, section 3.2).

    Each scale's term is beta * mse(sg(f_hat), f) + mse(f_hat, sg(f)), where sg stops the gradient.

    Args:
      beta: weight of the commitment term, whose gradient goes to the feature map.
      num_scales: as in `quantize`; the mean of an image is then over its own scales, and all images
        have the same weight.
    """
    fixed = jax.lax.stop_gradient
    if num_scales is None:
        terms = [
            beta * jnp.mean((fixed(f_hat) - feature) ** 2) + jnp.mean((f_hat - fixed(feature)) ** 2)
            for f_hat in f_hats
        ]
        return sum(terms, jnp.zeros(())) / len(terms)
    errors = [
        beta * (fixed(f_hat) - feature) ** 2 + (f_hat - fixed(feature)) ** 2 for f_hat in f_hats
    ]
    means = jnp.stack([jnp.mean(error, axis=(1, 2, 3)) for error in errors])
    active = jnp.arange(len(f_hats))[:, None] < num_scales
    return jnp.mean(jnp.sum(means * active, axis=0) / num_scales)


def sample_num_scales(
    key: PRNGKeyArray, batch: int, scales: int, *, rate: float, start: int
) -> Int[Array, " b"]:
    """Samples, for each image, how many leading scales quantizer dropout leaves.

    Quantizer dropout makes the coarse scales hold as much of the image as they can (Zeghidour et
    al. 2021 for residual quantizers; XQ-GAN, Li et al. 2024, with rate 0.1 for this tokenizer).

    Args:
      scales: number of all scales.
      rate: probability that an image's number is uniform from `start` + 1 to `scales`; otherwise it
        is `scales`.
      start: the coarsest scale, counted from 0, that may be an image's last.
    """
    dropped_key, last_key = jax.random.split(key)
    last_scale = jax.random.randint(last_key, (batch,), start, scales)
    return jnp.where(jax.random.bernoulli(dropped_key, rate, (batch,)), last_scale, scales - 1) + 1


def active_tokens(scales: Scales, num_scales: Int[Array, " b"]) -> Bool[Array, "b L"]:
    """Returns True for the tokens of the leading scales that quantizer dropout keeps."""
    return jnp.asarray(scales.level_ids) < num_scales[:, None]
