"""Rows of new classes in a frozen class table, whose last row is that of "no class".

New rows come before the last one, so that "no class" stays the label after all classes. It is the
analogue of textual inversion (arXiv 2208.01618).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def start_rows(
    table: Float[np.ndarray, "rows w"], starts: Sequence[int | None]
) -> Float[np.ndarray, "new w"]:
    """Returns the rows that new classes start from, in float32.

    Args:
      table: the class table of the frozen model, on the host.
      starts: ids of classes, None for the mean of all classes.
    """
    table = np.asarray(table).astype(np.float64)
    mean = table[:-1].mean(axis=0)
    rows = [mean if start is None else table[start] for start in starts]
    return np.reshape(rows, (len(starts), table.shape[1])).astype(np.float32)


def extended(table: Float[Array, "rows w"], new: Float[Array, "new w"]) -> Float[Array, "more w"]:
    """Returns a class table with the rows of new classes before that of "no class"."""
    return jnp.concatenate([table[:-1], new.astype(table.dtype), table[-1:]])


def merge(
    table: Float[np.ndarray, "rows w"], new: Float[np.ndarray, "new w"]
) -> Float[np.ndarray, "more w"]:
    """Returns `extended` of arrays on the host."""
    return np.concatenate([table[:-1], new.astype(table.dtype), table[-1:]])
