"""What an edit keeps of its source image: leading scales, and tokens of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from var_jax.config.scales import Scales
from var_jax.ops.resize import resize

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

# The published rule for edits: scales of at most this many tokens, which hold the overall color,
# stay those of the source image.
MAX_KEPT_TOKENS = 3


def published_keep_scales(scales: Scales) -> int:
    """Returns the number of leading scales that an edit keeps by the published rule.

    They are the scales of at most `MAX_KEPT_TOKENS` tokens.
    """
    return sum(length <= MAX_KEPT_TOKENS for length in scales.lengths)


def keep_by_scale(
    keep: Bool[Array, "b h w"], scales: Scales, *, keep_scales: int | None = None
) -> list[Bool[Array, "b l"]]:
    """Returns which tokens of each scale an edit keeps.

    They are those where the finest grid's mask, resized bilinearly, is above one half.

    Args:
      keep_scales: number of leading scales whose tokens are all kept; None for the published rule.
    """
    keep_scales = num_kept(keep_scales, scales)
    mask = keep[..., None].astype(jnp.float32)
    kept_per_scale = []
    for k, (size, length) in enumerate(zip(scales.sizes, scales.lengths, strict=True)):
        at_scale = (resize(mask, size, "bilinear") > 0.5).reshape(keep.shape[0], length)
        kept_per_scale.append(at_scale | (k < keep_scales))
    return kept_per_scale


def num_kept(keep_scales: int | None, scales: Scales) -> int:
    """Returns how many leading scales of an edit are the source image's everywhere."""
    return published_keep_scales(scales) if keep_scales is None else keep_scales
