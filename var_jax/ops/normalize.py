"""Normalization of pixels to [-1, 1], and L2 normalization with a finite gradient everywhere.

Neither `jnp.linalg.norm` nor `optax.safe_norm` serves: at a zero vector the gradient of the first
is NaN, and that of the second is a division by its floor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float


Images = TypeVar("Images", Any, np.ndarray)


def normalize_images(images: Images) -> Images:
    """Returns uint8 pixels (..., H, W, c) as float32 in [-1, 1], as the models take them.

    A numpy array stays a numpy array: no device is used.
    """
    return images.astype(np.float32) / 127.5 - 1  # pyright: ignore[reportReturnType]


def l2_norm(x: Float[Array, "*b c"]) -> Float[Array, "*b 1"]:
    """Returns the L2 norm over the last axis, kept with size 1; its gradient at zero is 0."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    nonzero = square > 0
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1)), 0)


def l2_normalize(
    x: Float[Array, "*b c"], floor: float = 1e-12, added: float = 0.0
) -> Float[Array, "*b c"]:
    """Returns x / (max(|x|, floor) + added) along the last axis.

    A zero vector stays zero, and its gradient is 0: there is no direction that it could turn to.

    Args:
      floor: the smallest divisor.
      added: constant that some published distances add to the norm.
    """
    norm = l2_norm(x)
    scaled = x / (jnp.maximum(norm, floor) + added)
    return jnp.where(norm > 0, scaled, 0)
