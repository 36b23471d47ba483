"""Which tokens and pixels an edit's mask keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from var_jax.config.model import TokenizerConfig
from var_jax.config.strict import require
from var_jax.ops.resize import resize

if TYPE_CHECKING:
    from jaxtyping import Bool


def kept_tokens(config: TokenizerConfig, keep) -> Bool[np.ndarray, "*b h w"]:
    """Returns a mask on the finest token grid.

    If the mask is at image resolution, a token is kept where more than half of its pixels are.

    Raises:
      UserError: the mask has another shape, or other values than 0 and 1.
    """
    keep = _mask(config, keep)
    grid = config.scales.finest
    rows = jnp.asarray(keep, jnp.float32).reshape(-1, *keep.shape[-2:], 1)
    return np.asarray(resize(rows, grid, "area") > 0.5).reshape(*keep.shape[:-2], *grid)


def kept_pixels(config: TokenizerConfig, keep) -> Bool[np.ndarray, "*b H W"]:
    """Returns a mask at image resolution.

    If the mask is on the finest token grid, a token stands for all of its pixels.

    Raises:
      UserError: the mask has another shape, or other values than 0 and 1.
    """
    keep = _mask(config, keep)
    if keep.shape[-2:] == config.image_shape[:2]:
        return keep
    return keep.repeat(config.downsampling, axis=-2).repeat(config.downsampling, axis=-1)


def _mask(config: TokenizerConfig, keep) -> Bool[np.ndarray, "*b h w"]:
    """Returns a checked mask of either resolution as bool."""
    keep = np.asarray(keep)
    grid = config.scales.finest
    pixels = config.image_shape[:2]
    require(
        keep.ndim in (2, 3) and keep.shape[-2:] in (grid, pixels),
        "the mask's shape",
        keep.shape,
        f"(h, w) or (B, h, w), at {grid} tokens or {pixels} pixels",
    )
    is_binary = keep.dtype == bool or (
        np.issubdtype(keep.dtype, np.number) and bool(np.all((keep == 0) | (keep == 1)))
    )
    require(
        is_binary,
        "the mask",
        f"of {keep.dtype} values other than 0 and 1",
        "bool, or 0 and 1 (kept)",
    )
    return keep.astype(bool)
