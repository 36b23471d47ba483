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
        if method.startswith("bicubic"):
            _add_cubic(weights[i], center)
            continue
        base = int(np.floor(center))
        for tap in (0, 1):
            weights[i, min(max(base + tap, 0), source - 1)] += 1 - abs(center - (base + tap))
    return weights.astype(np.float32)


def scaled_bicubic(source: int, target: int, offset: float) -> np.ndarray:
    """Returns the "bicubic" weights of `matrix` for a ratio of target + offset to source.

    It is what torch.nn.functional.interpolate does with `scale_factor`, which some published code
    gives as the ratio of sides with a small offset.
    """
    weights = np.zeros((target, source), np.float64)
    for i in range(target):
        _add_cubic(weights[i], (i + 0.5) * source / (target + offset) - 0.5)
    return weights.astype(np.float32)


def _add_cubic(weights: np.ndarray, center: float):
    """Adds Keys' kernel around a position of the source to its pixels, the border's repeated."""
    base = int(np.floor(center))
    for tap in (-1, 0, 1, 2):
        place = min(max(base + tap, 0), len(weights) - 1)
        weights[place] += _keys_cubic(abs(center - (base + tap)))


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
    return resize_by_matrices(x, matrix(h, size[0], method), matrix(w, size[1], method))


def resize_by_matrices(
    x: Float[Array, "b h w c"], rows: np.ndarray, columns: np.ndarray
) -> Float[Array, "b H W c"]:
    """Returns `x` resized by weights (H, h) and (W, w) of its two sides."""
    highest = jax.lax.Precision.HIGHEST  # codes are chosen from the result: no bfloat16 passes
    x = jnp.einsum("Hh,bhwc->bHwc", jnp.asarray(rows, x.dtype), x, precision=highest)
    return jnp.einsum("Ww,bhwc->bhWc", jnp.asarray(columns, x.dtype), x, precision=highest)
