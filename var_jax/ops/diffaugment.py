"""DiffAugment: differentiable augmentations of the real and fake images that a discriminator sees.

Every image draws its own parameters. Shifts and holes move or mask whole pixels, so that every
gradient is exact. Source: Zhao et al. 2020.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.tokenizer_training import policy_names
from var_jax.ops.resize import matrix

if TYPE_CHECKING:
    from jaxtyping import Array, Float

MAX_SHIFT = 1 / 8  # largest shift, as a share of a side
HOLE = 1 / 2  # side of the hole, as a share of the image's
BLUR_REACH = 3  # standard deviations of a blur that its kernel spans on either side
# Products along the height and along the width of images, with one matrix for all images or one
# matrix per image.
SIDE_LAYOUTS = ("ij,bjwc->biwc", "ij,bhjc->bhic")
IMAGE_LAYOUTS = ("bij,bjwc->biwc", "bij,bhjc->bhic")
HIGHEST = jax.lax.Precision.HIGHEST


def diff_augment(
    key: jax.Array,
    images: Float[Array, "b H W c"],
    policy: str,
    probability: float = 1.0,
    hole: float = HOLE,
) -> Float[Array, "b H W c"]:
    """Returns images after every augmentation of a policy.

    Args:
      images: in [-1, 1]; fakes may go beyond.
      policy: names among "color", "translation" and "cutout", joined by commas, in the order in
        which they act; "" for none.
      probability: probability of each image to be augmented at all.
      hole: share of each side that "cutout" takes.
    """
    if not policy or not probability:
        return images
    names = policy_names(policy)
    chosen_key, *keys = jax.random.split(key, 1 + len(names))
    augmented = images
    for augmentation_key, name in zip(keys, names, strict=True):
        settings = {"hole": hole} if name == "cutout" else {}
        augmented = AUGMENTATIONS[name](augmentation_key, augmented, **settings)
    if probability == 1:
        return augmented
    chosen = jax.random.bernoulli(chosen_key, probability, (images.shape[0], 1, 1, 1))
    return jnp.where(chosen, augmented, images)


def color(key: jax.Array, x: Float[Array, "b H W c"]) -> Float[Array, "b H W c"]:
    """Returns images with random brightness, saturation and contrast.

    Brightness adds U(-0.5, 0.5); saturation multiplies by U(0, 2) about the pixel's gray, which
    leaves a gray image unchanged; contrast multiplies by U(0.5, 1.5) about the image's mean.
    """
    brightness, saturation, contrast = jax.random.uniform(key, (3, x.shape[0], 1, 1, 1), x.dtype)
    x = x + (brightness - 0.5)
    gray = jnp.mean(x, axis=-1, keepdims=True)
    x = (x - gray) * (2 * saturation) + gray
    mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    return (x - mean) * (contrast + 0.5) + mean


def translation(key: jax.Array, x: Float[Array, "b H W c"]) -> Float[Array, "b H W c"]:
    """Returns images shifted by whole pixels, up to MAX_SHIFT of each side; new pixels are 0.

    The shifts are products with matrices of zeros and ones: for a gather with indices of its own
    per image, the compiler would copy a batch that is sharded over many devices to each of them.
    """
    for axis, side_key in zip((1, 2), jax.random.split(key), strict=True):
        positions = jnp.arange(x.shape[axis])
        max_shift = int(len(positions) * MAX_SHIFT + 0.5)
        shift = jax.random.randint(side_key, (x.shape[0], 1, 1), -max_shift, max_shift + 1)
        shifted = (positions[:, None] - shift == positions).astype(x.dtype)
        x = jnp.einsum(IMAGE_LAYOUTS[axis - 1], shifted, x, precision=HIGHEST)
    return x


def cutout(
    key: jax.Array, x: Float[Array, "b H W c"], hole: float = HOLE
) -> Float[Array, "b H W c"]:
    """Returns images with a hole of 0, whose sides are a share `hole` of the image's.

    The hole's center may be anywhere in the image, so that the hole may reach beyond the border.
    """
    spans = []
    for axis, side_key in zip((1, 2), jax.random.split(key), strict=True):
        size = x.shape[axis]
        length = int(size * hole + 0.5)
        center = jax.random.randint(side_key, (x.shape[0], 1), 0, size + (1 - length % 2))
        start = center - length // 2
        positions = jnp.arange(size)[None]
        spans.append((positions >= start) & (positions < start + length))
    inside = spans[0][:, :, None, None] & spans[1][:, None, :, None]
    return jnp.where(inside, 0, x)


def fading_blur(
    images: Float[Array, "b H W c"], strength: Float[Array, ""]
) -> Float[Array, "b H W c"]:
    """Returns images under a Gaussian blur, or unchanged at strength 0.

    The kernel is 2 ** -(x / s)^2 with s = strength sqrt(H / 2) pixels, mirrored at the borders
    without the border pixel repeated. The discriminator's part of the training step calls it while
    the blur fades out. Source: vaex, after StyleGAN-T.

    Args:
      strength: from 0 to 1, the same for all images.
    """
    max_width = (images.shape[1] / 2) ** 0.5

    def blur(x):
        for axis, layout in zip((1, 2), SIDE_LAYOUTS, strict=True):
            weights = _blur_matrix(x.shape[axis], strength * max_width, max_width)
            x = jnp.einsum(layout, weights, x, precision=HIGHEST)
        return x

    return jax.lax.cond(strength > 0, blur, lambda x: x, images)


def _blur_matrix(side: int, width: Float[Array, ""], max_width: float) -> Float[Array, "n n"]:
    """Returns the (outputs, inputs) weights of one side's blur, cut at floor(3 `width`) pixels.

    Args:
      max_width: the largest `width`, which determines the sizes of arrays.
    """
    reach = int(BLUR_REACH * max_width)
    offsets = np.arange(-reach, reach + 1)
    weights = jnp.exp2(-((offsets / jnp.maximum(width, 1e-6)) ** 2))
    weights = jnp.where(np.abs(offsets) <= jnp.floor(BLUR_REACH * width), weights, 0)
    period = max(2 * (side - 1), 1)
    positions = (np.arange(side)[:, None] + offsets) % period
    mirrored = np.minimum(positions, period - positions) if side > 1 else np.zeros_like(positions)
    empty = jnp.zeros((side, side))
    return empty.at[np.arange(side)[:, None], mirrored].add(weights / jnp.sum(weights))


def crop_or_resize(
    key: jax.Array, images: Float[Array, "b H W c"], side: int, crops: float
) -> Float[Array, "b n n c"]:
    """Returns images at a frozen network's size, some randomly cropped and the others resized.

    Both are products with one matrix per image, for the reason that `translation` gives.

    Args:
      side: height and width of the results.
      crops: share of images that are cropped, where both sides are larger than `side`. All others
        are averaged by area where they are higher than `side`, else resized bicubically.
    """
    both_larger = min(images.shape[1:3]) > side
    chosen_key, *keys = jax.random.split(key, 3)
    chosen = jax.random.bernoulli(chosen_key, crops, (images.shape[0], 1, 1))
    x = images
    method = "area" if images.shape[1] > side else "bicubic"
    for axis, side_key in zip((1, 2), keys, strict=True):
        size = x.shape[axis]
        if size == side and not both_larger:
            continue
        resized = jnp.asarray(matrix(size, side, method), x.dtype)
        if not (both_larger and crops):
            x = jnp.einsum(SIDE_LAYOUTS[axis - 1], resized, x, precision=HIGHEST)
            continue
        start = jax.random.randint(side_key, (x.shape[0], 1, 1), 0, size - side + 1)
        cropped = (jnp.arange(side)[:, None] + start == jnp.arange(size)).astype(x.dtype)
        weights = jnp.where(chosen, cropped, resized)
        x = jnp.einsum(IMAGE_LAYOUTS[axis - 1], weights, x, precision=HIGHEST)
    return x


AUGMENTATIONS = {"color": color, "translation": translation, "cutout": cutout}
