"""Position and level embeddings of a transformer, resized to the token maps of another size.

Each table is taken as a function of the relative position: of the row and the column within a map,
and of the scale among all scales. It is interpolated there with Keys' cubic kernel, as position
embeddings of vision transformers are for another image size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from var_jax.config.model import TransformerConfig
from var_jax.config.scales import Scales
from var_jax.ops import orders
from var_jax.ops.resize import matrix

if TYPE_CHECKING:
    from jaxtyping import Float

TABLES = ("pos_start", "pos_embed", "level_embed")


def resized(
    params: Mapping[str, Any], before: TransformerConfig, after: TransformerConfig
) -> dict[str, Any]:
    """Returns a transformer's parameters for other scales; all but its tables stay the same.

    Call it where a run on images of another size starts from a trained model. With the same scales,
    and the same order of a next-token model, the parameters are returned as they are.

    Args:
      params: the parameters of a transformer `before`, on the host.
      before: the config that they were trained with.
      after: the config that they are to serve; only its scales and its order count.
    Raises:
      UserError: `after.order` is not an order of its token map.
    """
    changed = dict(params)
    is_ordered = before.objective == "next_token"  # its rows are in the order of its sequence
    if before.scales == after.scales and (not is_ordered or before.order == after.order):
        return changed
    between_levels = level_weights(len(before.scales), len(after.scales))
    if "level_embed" in params:
        levels = np.asarray(params["level_embed"])
        changed["level_embed"] = (between_levels @ levels).astype(levels.dtype)
    if "pos_start" in params:
        first = np.asarray(params["pos_start"])
        changed["pos_start"] = resized_map(
            first, before.scales.sizes[0], after.scales.sizes[0]
        ).astype(first.dtype)
    if "pos_embed" in params:
        table = np.asarray(params["pos_embed"])
        if is_ordered:
            table = table[orders.inverse(orders.forward(before.order, before.scales.finest))]
        positions = _positions(table, before.scales, after.scales, between_levels)
        if is_ordered:
            positions = positions[orders.forward(after.order, after.scales.finest)]
        changed["pos_embed"] = positions.astype(table.dtype)
    return changed


def level_weights(before: int, after: int) -> Float[np.ndarray, "after before"]:
    """Returns weights that give each new scale a mixture of the trained ones.

    The first and the last scale are the first and the last trained ones, and one alone is the last
    of the trained ones, which has the size of the feature map.
    """
    if after == 1:
        return np.eye(before)[-1:]
    return matrix(before, after, "bicubic_corners").astype(np.float64)


def resized_map(
    rows: Float[np.ndarray, "n w"], before: tuple[int, int], after: tuple[int, int]
) -> Float[np.ndarray, "m w"]:
    """Returns one map's rows, in raster order, for a map of another size.

    Args:
      before: (height, width) of the map that has the n rows.
      after: (height, width) of the map that has the m rows.
    """
    vertical, horizontal = (
        matrix(source, target, "bicubic").astype(np.float64)
        for source, target in zip(before, after, strict=True)
    )
    grid = rows.reshape(*before, -1)
    return np.einsum("Hh,Ww,hwc->HWc", vertical, horizontal, grid).reshape(-1, rows.shape[-1])


def _positions(
    table: Float[np.ndarray, "L w"],
    before: Scales,
    after: Scales,
    between_levels: Float[np.ndarray, "after before"],
) -> Float[np.ndarray, "M w"]:
    """Returns the position embeddings of all new scales, coarse to fine."""
    scales = []
    for size, weights in zip(after.sizes, between_levels, strict=True):
        mixed = [
            weight * resized_map(table[before.span(k)], before.sizes[k], size)
            for k, weight in enumerate(weights)
            if weight
        ]
        scales.append(np.sum(mixed, axis=0))
    return np.concatenate(scales)
