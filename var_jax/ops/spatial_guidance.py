"""Scaled spatial guidance: logits move away from what the previous scale alone would predict.

The method is that of arXiv 2602.05534. Its authors publish no code, no strengths and no order of
operations; the order is described in `sampling.sampler`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jax.scipy import fft

from var_jax.ops.resize import resize

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def coarse_prior(
    coarse: Float[Array, "b h0 w0 v"], size: tuple[int, int]
) -> Float[Array, "b h w v"]:
    """Returns the logits of a scale as the logits of the scale before it predict them.

    The coarse logits are resized bicubically; then the low frequencies of the result, as many as
    the coarse grid has, are replaced by the coarse logits' own. Frequencies are those of an
    orthonormal DCT-II of each code's map, in which the coarse ones count sqrt(h w / (h0 w0)) times:
    so a constant map keeps its value.

    Args:
      size: (h, w) of the scale, at least (h0, w0).
    """
    height, width = coarse.shape[1:3]
    gain = (size[0] * size[1] / (height * width)) ** 0.5
    spectrum = _frequencies(resize(coarse, size, "bicubic"))
    spectrum = spectrum.at[:, :height, :width].set(gain * _frequencies(coarse))
    return fft.idctn(spectrum, axes=(1, 2), norm="ortho")


def guide_from_coarse(
    logits: Float[Array, "b l v"],
    coarse: Float[Array, "b l0 v"],
    strength: Float[Array, ""] | float,
    *,
    size: tuple[int, int],
    coarse_size: tuple[int, int],
) -> Float[Array, "b l v"]:
    """Returns logits + strength * (logits - prior), the prior being that of `coarse_prior`.

    Args:
      logits: logits of a scale, row by row.
      coarse: logits of the scale before it.
      strength: 0 leaves the logits as they are.
      size: (h, w) of the scale.
      coarse_size: (h0, w0) of the scale before it.
    """
    batch, _, vocab = coarse.shape
    prior = coarse_prior(coarse.reshape(batch, *coarse_size, vocab), size)
    return logits + strength * (logits - prior.reshape(logits.shape))


def _frequencies(maps: Float[Array, "b h w v"]) -> Float[Array, "b h w v"]:
    return fft.dctn(maps, axes=(1, 2), norm="ortho")
