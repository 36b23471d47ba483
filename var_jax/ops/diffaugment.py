"""DiffAugment (Zhao et al. 2020): differentiable augmentations that a discriminator sees real and
fake images through.

Parameters are drawn an image; shifts and holes are masks and gathers of whole pixels, so that every
gradient is exact.
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

SHIFT = 1 / 8  # of a side, at most
HOLE = 1 / 2  # of a side
BLUR_REACH = 3  # standard deviations of a blur that its kernel spans on either side
HIGHEST = jax.lax.Precision.HIGHEST


def diff_augment(
    key: jax.Array,
    images: Float[Array, "b H W c"],
    policy: str,
    probability: float = 1.0,
    hole: float = HOLE,
) -> Float[Array, "b H W c"]:
    """Images through every augmentation of a policy, each image with `probability`, and left as it
    is otherwise.

    Args:
      images: in [-1, 1], though fakes may lie beyond.
      policy: of "color", "translation" and "cutout", joined by commas, in the order in which they
        act; "" for none.
      hole: share of each side that "cutout" takes.
    """
    if not policy or not probability:
        return images
    chosen_key, *keys = jax.random.split(key, 1 + len(names := policy_names(policy)))
    augmented = images
    for each, name in zip(keys, names, strict=True):
        augmented = AUGMENTATIONS[name](
            each, augmented, **({"hole": hole} if name == "cutout" else {})
        )
    if probability == 1:
        return augmented
    chosen = jax.random.bernoulli(chosen_key, probability, (images.shape[0], 1, 1, 1))
    return jnp.where(chosen, augmented, images)


def color(key: jax.Array, x: Float[Array, "b H W c"]) -> Float[Array, "b H W c"]:
    """Brightness + U(-0.5, 0.5); saturation times U(0, 2) about the pixel's grey (which leaves a
    grey image as it is); contrast times U(0.5, 1.5) about the image's mean."""
    brightness, saturation, contrast = jax.random.uniform(key, (3, x.shape[0], 1, 1, 1), x.dtype)
    x = x + (brightness - 0.5)
    grey = jnp.mean(x, axis=-1, keepdims=True)
    x = (x - grey) * (2 * saturation) + grey
    mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    return (x - mean) * (contrast + 0.5) + mean


def translation(key: jax.Array, x: Float[Array, "b H W c"]) -> Float[Array, "b H W c"]:
    """A shift by whole pixels, up to an eighth of each side either way; what comes in is 0.

    By products with matrices of zeros and ones: for a gather with places of its own an image, the
    compiler would copy a batch that lies over many devices to each of them.
    """
    for axis, one in zip((1, 2), jax.random.split(key), strict=True):
        places = jnp.arange(x.shape[axis])
        most = int(len(places) * SHIFT + 0.5)
        shift = jax.random.randint(one, (x.shape[0], 1, 1), -most, most + 1)
        moved = (places[:, None] - shift == places).astype(x.dtype)
        x = jnp.einsum(
            ("bij,bjwc->biwc", "bij,bhjc->bhic")[axis - 1],
            moved,
            x,
            precision=jax.lax.Precision.HIGHEST,
        )
    return x


def cutout(
    key: jax.Array, x: Float[Array, "b H W c"], hole: float = HOLE
) -> Float[Array, "b H W c"]:
    """A hole of that share of each side, filled with 0; its center lies anywhere in the image, so
    that it may hang over."""
    holes = []
    for axis, one in zip((1, 2), jax.random.split(key), strict=True):
        size = x.shape[axis]
        length = int(size * hole + 0.5)
        start = jax.random.randint(one, (x.shape[0], 1), 0, size + (1 - length % 2)) - length // 2
        places = jnp.arange(size)[None]
        holes.append((places >= start) & (places < start + length))
    inside = holes[0][:, :, None, None] & holes[1][:, None, :, None]
    return jnp.where(inside, 0, x)


def fading_blur(
    images: Float[Array, "b H W c"], strength: Float[Array, ""]
) -> Float[Array, "b H W c"]:
    """Images under a Gaussian kernel of the shape 2 ** -(x / s)^2 with s = strength sqrt(H / 2)
    pixels, mirrored at the borders without the border pixel repeated (vaex, as StyleGAN-T has it);
    as they are at strength 0.

    Called by the discriminator's part of the training step while the blur fades out.

    Args:
      strength: from 0 to 1, the same for all images.
    """
    most = (images.shape[1] / 2) ** 0.5

    def blurred(x):
        for axis, layout in ((1, "ij,bjwc->biwc"), (2, "ij,bhjc->bhic")):
            x = jnp.einsum(
                layout, _blur_matrix(x.shape[axis], strength * most, most), x, precision=HIGHEST
            )
        return x

    return jax.lax.cond(strength > 0, blurred, lambda x: x, images)


def _blur_matrix(side: int, width: Float[Array, ""], most: float) -> Float[Array, "n n"]:
    """(outputs, inputs) of one side, of a kernel that ends at floor(3 `width`) pixels.

    Args:
      most: the largest `width` there may be; what the arrays' sizes follow.
    """
    reach = int(BLUR_REACH * most)
    offsets = np.arange(-reach, reach + 1)
    weights = jnp.exp2(-((offsets / jnp.maximum(width, 1e-6)) ** 2))
    weights = jnp.where(np.abs(offsets) <= jnp.floor(BLUR_REACH * width), weights, 0)
    period = max(2 * (side - 1), 1)
    places = (np.arange(side)[:, None] + offsets) % period
    mirrored = np.minimum(places, period - places) if side > 1 else np.zeros_like(places)
    return (
        jnp.zeros((side, side))
        .at[np.arange(side)[:, None], mirrored]
        .add(weights / jnp.sum(weights))
    )


def framed(
    key: jax.Array, images: Float[Array, "b H W c"], side: int, crops: float
) -> Float[Array, "b n n c"]:
    """Images as a frozen network of one size sees them: a share of them cropped to it at random,
    the others resized.

    By products with matrices a side, drawn an image, for the reason that `translation` has.

    Args:
      side: height and width of what comes out.
      crops: share of images that are cropped, where both sides are larger than `side`; the rest,
        and all images otherwise, are averaged by area where they are higher than `side`, else
        resized bicubically.
    """
    both_larger = min(images.shape[1:3]) > side
    chosen_key, *keys = jax.random.split(key, 3)
    chosen = jax.random.bernoulli(chosen_key, crops, (images.shape[0], 1, 1))
    x = images
    for axis, one in zip((1, 2), keys, strict=True):
        size = x.shape[axis]
        if size == side and not both_larger:
            continue
        resized = jnp.asarray(
            matrix(size, side, "area" if images.shape[1] > side else "bicubic"), x.dtype
        )
        if not (both_larger and crops):
            x = jnp.einsum(
                ("ij,bjwc->biwc", "ij,bhjc->bhic")[axis - 1], resized, x, precision=HIGHEST
            )
            continue
        start = jax.random.randint(one, (x.shape[0], 1, 1), 0, size - side + 1)
        cropped = (jnp.arange(side)[:, None] + start == jnp.arange(size)).astype(x.dtype)
        x = jnp.einsum(
            ("bij,bjwc->biwc", "bij,bhjc->bhic")[axis - 1],
            jnp.where(chosen, cropped, resized),
            x,
            precision=HIGHEST,
        )
    return x


AUGMENTATIONS = {"color": color, "translation": translation, "cutout": cutout}
