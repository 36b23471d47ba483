"""Separable resizes with PyTorch's conventions, as products with fixed matrices.

`jax.image.resize` differs from PyTorch's: its cubic kernel antialiases or weighs the border
differently, and its area average is wrong for ratios that are not integers. One matrix per side is
exact for any ratio, needs no gather, and is computed once in numpy float64.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Method = Literal["area", "bicubic", "bicubic_corners", "bilinear", "bilinear_tensorflow1"]


@functools.lru_cache(maxsize=512)
def matrix(source: int, target: int, method: Method) -> np.ndarray:
    """Returns float32 (target, source) weights that resize one side of an image.

    All but the last are those of torch.nn.functional.interpolate without antialiasing and, where
    nothing else is said, with half-pixel centers:

    - area: the mean over source pixels floor(i s/t) to ceil((i+1) s/t) - 1.
    - bicubic: Keys' kernel with a = -0.75, the border pixel repeated.
    - bicubic_corners: as bicubic, but the centers of the first and the last pixels fall on those of
      the source (align_corners).
    - bilinear: the two nearest pixels, the border pixel repeated.
    - bilinear_tensorflow1: as bilinear, but pixel i lies at i s/t, which shifts the image; it is
      the ResizeBilinear of TensorFlow 1 without half_pixel_centers and without align_corners.

    Args:
      source: pixels of the side before.
      target: pixels of the side after.
    """
    weights = np.zeros((target, source), np.float64)
    for i in range(target):
        if method == "area":
            start, stop = (i * source) // target, -((-(i + 1) * source) // target)
            weights[i, start:stop] = 1 / (stop - start)
            continue
        center = (i + 0.5) * source / target - 0.5
        if method == "bilinear":
            center = max(center, 0.0)
        elif method == "bilinear_tensorflow1":
            center = i * source / target
        elif method == "bicubic_corners":
            center = i * (source - 1) / max(target - 1, 1)
        base = int(np.floor(center))
        is_cubic = method.startswith("bicubic")
        for tap in (-1, 0, 1, 2) if is_cubic else (0, 1):
            distance = abs(center - (base + tap))
            weight = _keys_cubic(distance) if is_cubic else 1 - distance
            weights[i, min(max(base + tap, 0), source - 1)] += weight
    return weights.astype(np.float32)


def _keys_cubic(x: float, a: float = -0.75) -> float:
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0


def resize(
    x: Float[Array, "b h w c"], size: tuple[int, int], method: Method
) -> Float[Array, "b H W c"]:
    """Returns `x` resized to a (height, width), or `x` itself when it has that size."""
    h, w = x.shape[1:3]
    if (h, w) == tuple(size):
        return x
    rows = jnp.asarray(matrix(h, size[0], method), x.dtype)
    columns = jnp.asarray(matrix(w, size[1], method), x.dtype)
    highest = jax.lax.Precision.HIGHEST  # codes are chosen from the result: no bfloat16 passes
    x = jnp.einsum("Hh,bhwc->bHwc", rows, x, precision=highest)
    return jnp.einsum("Ww,bhwc->bhWc", columns, x, precision=highest)
