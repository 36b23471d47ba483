"""A 3x3 convolution after nearest-neighbor upsampling, as a convolution of the map itself.

Half of the rows that a kernel meets on an upsampled map are copies, so that their weights can be
added first: each phase of the result, its even or odd rows and columns, is a 2x2 convolution, with
16 products in place of 36.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from var_jax.ops.mixed_precision import convolve

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def upsampled(x: Float[Array, "b h w i"]) -> Float[Array, "b H W i"]:
    """Returns maps of twice the height and width by nearest-neighbor upsampling."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


@jax.custom_vjp
def by_phase(
    x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "b H W o"]:
    """Returns the convolution of `upsampled(x)`, with its size kept, without upsampling x.

    Gradients are computed on the upsampled map, since those of 2x2 convolutions take a CPU longer.
    """
    b, h, w, _ = x.shape
    phases = [(row, column) for row in (0, 1) for column in (0, 1)]
    kernels = [_merged(_merged(kernel, row, axis=0), column, axis=1) for row, column in phases]
    # All four at once, over the map with a border: an even row begins at the pixel before its own.
    y = convolve(x, jnp.concatenate(kernels, axis=-1), (1, 1), ((1, 1), (1, 1)))
    y = y.reshape(b, h + 1, w + 1, 4, kernel.shape[-1])
    even_top, even_bottom = y[:, :h, :w, 0], y[:, 1:, :w, 2]
    odd_top, odd_bottom = y[:, :h, 1:, 1], y[:, 1:, 1:, 3]
    rows = [jnp.stack((even_top, odd_top), axis=3), jnp.stack((even_bottom, odd_bottom), axis=3)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, kernel.shape[-1])


def _merged(kernel: Array, phase: int, axis: int) -> Array:
    """Returns the two taps along an axis with which a kernel of three meets the map itself.

    An even row of the result sees the pixel before once and its own twice, an odd one its own twice
    and the next one once.
    """
    first, second, third = jnp.moveaxis(kernel, axis, 0)
    taps = (first, second + third) if phase == 0 else (first + second, third)
    return jnp.stack(taps, axis=axis)


def _forward(x, kernel):
    return by_phase(x, kernel), (x, kernel)


def _backward(operands, cotangent):
    def on_upsampled_map(x, kernel):
        return convolve(upsampled(x), kernel, (1, 1), "SAME")

    return jax.vjp(on_upsampled_map, *operands)[1](cotangent)


by_phase.defvjp(_forward, _backward)
