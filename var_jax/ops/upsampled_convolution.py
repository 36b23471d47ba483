"""A 3x3 convolution of a map that is doubled by repetition, as four convolutions of the map itself.

Half of the rows that a kernel meets on a doubled map are copies, so that their weights can be added
first: each parity of rows and columns of the result is a 2x2 convolution, with 16 products in place
of 36.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from var_jax.ops.mixed_precision import LAYOUT

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def doubled(x: Float[Array, "b h w i"]) -> Float[Array, "b H W i"]:
    """Returns maps of twice the height and width, with each pixel four times."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def by_parity(
    x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "b H W o"]:
    """Returns the convolution of `doubled(x)`, with its size kept, without doubling x."""
    rows = []
    for row in (0, 1):
        columns = []
        for column in (0, 1):
            merged = _merged(_merged(kernel, row, axis=0), column, axis=1)
            padding = ((1 - row, row), (1 - column, column))
            columns.append(
                jax.lax.conv_general_dilated(x, merged, (1, 1), padding, dimension_numbers=LAYOUT)
            )
        rows.append(jnp.stack(columns, axis=3))
    b, h, w, _ = x.shape
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, kernel.shape[-1])


def _merged(kernel: Array, parity: int, axis: int) -> Array:
    """Returns the two taps along an axis with which a kernel of three meets the map itself.

    An even row of the result sees the pixel before once and its own twice, an odd one its own twice
    and the next one once.
    """
    first, second, third = jnp.moveaxis(kernel, axis, 0)
    taps = (first, second + third) if parity == 0 else (first + second, third)
    return jnp.stack(taps, axis=axis)
