"""Generation orders of the tokens of one map, as permutations of its raster order.

The named orders are those of VQGAN's `permuter.py`. An order is an array `forward`: `forward[s]` is
the raster index of the token at position s of the sequence, so that a sequence is
`tokens[forward]`, and `tokens` is `sequence[inverse(forward)]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from var_jax.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Int


def forward(order: str, size: tuple[int, int]) -> Int[np.ndarray, " n"]:
    """Returns the raster index of each position of the sequence.

    Args:
      order: a name of `ORDERS`, or the permutation itself, such as "2,0,1,3".
      size: (height, width) of the token map.
    Raises:
      UserError: the order is unknown, not one of this map, or not a permutation.
    """
    height, width = size
    grid = np.arange(height * width).reshape(size)
    if order in ORDERS:
        return np.asarray(ORDERS[order](grid), np.int32)
    try:
        numbers = np.array([int(number) for number in order.split(",")], np.int64)
    except ValueError:
        raise UserError(
            f"transformer.order is {order!r:.60}; it must be {', '.join(ORDERS)}, or a permutation "
            f"of 0 to {grid.size - 1} with commas between its numbers"
        ) from None
    if not np.array_equal(np.sort(numbers), grid.ravel()):
        raise UserError(
            f"transformer.order is a list of {len(numbers)} numbers; it must be a permutation of "
            f"0 to {grid.size - 1}, as the token map is {height}x{width}"
        )
    return numbers.astype(np.int32)


def inverse(forward: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Returns the position in the sequence of each raster index."""
    return np.argsort(forward).astype(np.int32)


def _raster(grid: np.ndarray) -> np.ndarray:
    return grid.ravel()


def _alternate(grid: np.ndarray) -> np.ndarray:
    """Returns the tokens row by row, every second row from right to left."""
    rows = grid.copy()
    rows[1::2] = rows[1::2, ::-1]
    return rows.ravel()


def _z_curve(grid: np.ndarray) -> np.ndarray:
    """Returns tokens by Morton code: the column's bits at the even places, the row's at the odd."""
    rows, columns = np.indices(grid.shape)
    code = np.zeros(grid.shape, np.int64)
    for bit in range(16):
        code |= (columns >> bit & 1) << 2 * bit
        code |= (rows >> bit & 1) << 2 * bit + 1
    return grid.ravel()[np.argsort(code.ravel())]


def _spiral_out(grid: np.ndarray) -> np.ndarray:
    """Returns tokens from the center: legs up 1, right 1, down 2, left 2, up 3, and so on."""
    side = grid.shape[0]
    if grid.shape != (side, side) or side % 2:
        raise UserError(
            f"transformer.order is a spiral, and the token map is {side}x{grid.shape[1]}; it must "
            "be square with an even side"
        )
    row, column = side // 2, side // 2 - 1
    visited = [grid[row, column]]
    directions = ((-1, 0), (0, 1), (1, 0), (0, -1))
    leg = 0
    while len(visited) < grid.size:
        down, right = directions[leg % 4]
        # The last leg is cut at the border.
        for _ in range(min(leg // 2 + 1, grid.size - len(visited))):
            row, column = row + down, column + right
            visited.append(grid[row, column])
        leg += 1
    return np.array(visited)


def _spiral_in(grid: np.ndarray) -> np.ndarray:
    return _spiral_out(grid)[::-1]


def _subsample(grid: np.ndarray) -> np.ndarray:
    """Returns four interleaved subgrids one after the other, each ordered in the same way.

    They are the even rows' even columns, even rows' odd ones, odd rows' even ones and odd rows' odd
    ones.
    """
    if grid.size <= 1:
        return grid.ravel()
    parts = [grid[row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return np.concatenate([_subsample(part) for part in parts])


ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "raster": _raster,
    "zcurve": _z_curve,
    "spiral_out": _spiral_out,
    "spiral": _spiral_out,
    "spiral_in": _spiral_in,
    "alternate": _alternate,
    "subsample": _subsample,
}
