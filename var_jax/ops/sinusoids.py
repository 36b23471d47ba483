"""Sinusoidal embeddings of diffusion times and of the positions of a map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float

PERIOD = 10000.0  # of the slowest sine, over 2 pi


def time_features(times: Float[Array, " b"], channels: int) -> Float[Array, "b c"]:
    """Returns cosines and then sines of times, at frequencies from 1 to 1 / `PERIOD` (DiT)."""
    half = channels // 2
    angles = times.astype(jnp.float32)[:, None] * PERIOD ** (-np.arange(half) / half)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def place_table(size: tuple[int, int], channels: int) -> Float[np.ndarray, "n c"]:
    """Returns fixed position embeddings of a map, row by row (DiT; MAE, arXiv 2111.06377).

    The first half of the channels encodes the column and the second half the row: sines, then
    cosines, at frequencies from 1 to 1 / `PERIOD`.

    Args:
      size: rows and columns.
      channels: a multiple of 4.
    """
    rows, columns = np.mgrid[: size[0], : size[1]]
    quarter = channels // 4
    frequencies = PERIOD ** (-np.arange(quarter) / quarter)
    angles = [coordinate.reshape(-1, 1) * frequencies for coordinate in (columns, rows)]
    parts = [function(angle) for angle in angles for function in (np.sin, np.cos)]
    return np.concatenate(parts, axis=-1).astype(np.float32)
