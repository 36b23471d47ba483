"""Convolutions, pools and linear layers of the frozen networks, with NHWC maps and HWIO kernels."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.pretrained.weights import Layer

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Padding = str | Sequence[tuple[int, int]]


def rgb(images: Float[Array, "b H W c"]) -> Float[Array, "b H W 3"]:
    """Returns images of three channels in float32 (or float64); a single channel is repeated."""
    images = jnp.asarray(images)
    images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images are of shape {images.shape}; they must be (batch, height, width, 1 or 3)"
        )
    return jnp.broadcast_to(images, (*images.shape[:-1], 3))


def conv(
    layer: Layer,
    x: Float[Array, "b h w i"],
    stride: int = 1,
    padding: Padding = "SAME",
) -> Float[Array, "b H W o"]:
    """Returns a convolution plus its bias.

    "SAME" pads as TensorFlow does: at stride 2 more below and to the right.
    """
    kernel = jnp.asarray(layer["kernel"])
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return x @ kernel[0, 0] + layer["bias"]
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=numbers
    )
    return y + layer["bias"]


def depthwise(layer: Layer, x: Float[Array, "b h w c"], stride: int = 1) -> Float[Array, "b H W c"]:
    """Returns a depthwise convolution plus its bias, padded "SAME"; the kernel is (k, k, 1, c).

    It is a sum of shifted products, which a CPU computes 20 to 100 times as fast as XLA's grouped
    convolution.
    """
    return _depthwise(jnp.asarray(layer["kernel"])[:, :, 0], x, stride) + layer["bias"]


# The gradient is written out because autodiff's adds up padded arrays, which takes twice the time
# of a whole network.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(
    kernel: Float[Array, "k k c"], x: Float[Array, "b h w c"], stride: int
) -> Float[Array, "b H W c"]:
    terms = [kernel[i, j] * part for (i, j), part in _shifted(x, len(kernel), stride)]
    return sum(terms[1:], terms[0])


def _forward(kernel, x, stride):
    return _depthwise(kernel, x, stride), (kernel, x)


def _backward(stride, saved, dy):
    kernel, x = saved
    size = len(kernel)
    dkernel = jnp.stack([jnp.sum(part * dy, (0, 1, 2)) for _, part in _shifted(x, size, stride)])
    pads = []
    for n, m in zip(x.shape[1:3], dy.shape[1:3], strict=True):
        before = size - 1 - same_padding(n, size, stride)[0]
        pads.append((before, n + size - 2 - before - (m - 1) * stride, stride - 1))
    spread = jax.lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    h, w = x.shape[1:3]
    dx = sum(
        kernel[size - 1 - i, size - 1 - j] * spread[:, i : i + h, j : j + w]
        for i in range(size)
        for j in range(size)
    )
    return dkernel.reshape(kernel.shape), dx


_depthwise.defvjp(_forward, _backward)


def _shifted(x: Float[Array, "b h w c"], size: int, stride: int):
    """Yields ((i, j), the pixels that it multiplies) for every pixel (i, j) of a square kernel."""
    rows, columns = (-(-n // stride) for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), *(same_padding(n, size, stride) for n in x.shape[1:3]), (0, 0)))
    for i, j in itertools.product(range(size), repeat=2):
        row_slice = slice(i, i + (rows - 1) * stride + 1, stride)
        column_slice = slice(j, j + (columns - 1) * stride + 1, stride)
        yield (i, j), x[:, row_slice, column_slice]


def same_padding(n: int, size: int, stride: int) -> tuple[int, int]:
    """Returns the pixels that TensorFlow's "SAME" adds before and after a side of `n` pixels."""
    pad = max((-(-n // stride) - 1) * stride + size - n, 0)
    return pad // 2, pad - pad // 2


def relu6(x: Array) -> Array:
    """Returns values clipped to [0, 6]."""
    return jnp.clip(x, 0, 6)


def max_pool(
    x: Float[Array, "b h w c"], size: int, stride: int, pad: int = 0
) -> Float[Array, "b H W c"]:
    """Returns the maximum over windows of the padded map; the padding is never the maximum."""
    padding = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    return jax.lax.reduce_window(
        x, -np.inf, jax.lax.max, (1, size, size, 1), (1, stride, stride, 1), padding
    )


def average_pool(
    x: Float[Array, "b h w c"], size: int, *, count_padding: bool
) -> Float[Array, "b h w c"]:
    """Returns the mean over windows of an odd size at stride 1, zero-padded to the same size.

    Args:
      count_padding: whether the padding counts as pixels of the mean.
    """

    def total(x):
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, size, size, 1), (1, 1, 1, 1), "SAME")

    return total(x) / (size * size if count_padding else total(jnp.ones((1, *x.shape[1:3], 1))))


def linear(layer: Layer, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
    """Returns a linear map over the last axis plus its bias."""
    return x @ layer["kernel"] + layer["bias"]
