"""DiffAugment (Zhao et al. 2020): differentiable augmentations that a discriminator sees real and fake images through.

Parameters are drawn an image; shifts and holes are masks and gathers of whole pixels, so that every gradient is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from var_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from jaxtyping import Array, Float

SHIFT = 1 / 8  # of a side, at most
HOLE = 1 / 2  # of a side


def diff_augment(key: jax.Array, images: Float[Array, "b H W c"], policy: str,
                 probability: float = 1.0) -> Float[Array, "b H W c"]:
    """Images through every augmentation of a policy, each image with `probability`, and left as it is otherwise.

    Args:
      images: in [-1, 1], though fakes may lie beyond.
      policy: of "color", "translation" and "cutout", joined by commas; "" for none.
    """
    if not policy or not probability:
        return images
    chosen_key, *keys = jax.random.split(key, 1 + len(names := policy_names(policy)))
    augmented = images
    for each, name in zip(keys, names, strict=True):
        augmented = AUGMENTATIONS[name](each, augmented)
    if probability == 1:
        return augmented
    chosen = jax.random.bernoulli(chosen_key, probability, (images.shape[0], 1, 1, 1))
    return jnp.where(chosen, augmented, images)


def policy_names(policy: str) -> list[str]:
    """The augmentations of a policy.

    Raises:
      UserError: one is not known.
    """
    names = [name for name in policy.replace(" ", "").split(",") if name]
    for name in names:
        if name not in AUGMENTATIONS:
            raise UserError(f"adversarial.diffaugment names {name!r}{did_you_mean(name, AUGMENTATIONS)}")
    return names


def color(key: jax.Array, x: Float[Array, "b H W c"]) -> Float[Array, "b H W c"]:
    """Brightness + U(-0.5, 0.5); saturation times U(0, 2) about the pixel's grey (which leaves a grey image as it is);
    contrast times U(0.5, 1.5) about the image's mean."""
    brightness, saturation, contrast = jax.random.uniform(key, (3, x.shape[0], 1, 1, 1), x.dtype)
    x = x + (brightness - 0.5)
    grey = jnp.mean(x, axis=-1, keepdims=True)
    x = (x - grey) * (2 * saturation) + grey
    mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    return (x - mean) * (contrast + 0.5) + mean


def translation(key: jax.Array, x: Float[Array, "b H W c"]) -> Float[Array, "b H W c"]:
    """A shift by whole pixels, up to an eighth of each side either way; what comes in is 0.

    By products with matrices of zeros and ones: for a gather with places of its own an image, the compiler would copy
    a batch that lies over many devices to each of them.
    """
    for axis, one in zip((1, 2), jax.random.split(key), strict=True):
        places = jnp.arange(x.shape[axis])
        most = int(len(places) * SHIFT + 0.5)
        shift = jax.random.randint(one, (x.shape[0], 1, 1), -most, most + 1)
        moved = (places[:, None] - shift == places).astype(x.dtype)
        x = jnp.einsum(("bij,bjwc->biwc", "bij,bhjc->bhic")[axis - 1], moved, x, precision=jax.lax.Precision.HIGHEST)
    return x


def cutout(key: jax.Array, x: Float[Array, "b H W c"]) -> Float[Array, "b H W c"]:
    """A hole of half each side, filled with 0; its centre lies anywhere in the image, so that it may hang over."""
    holes = []
    for axis, one in zip((1, 2), jax.random.split(key), strict=True):
        size = x.shape[axis]
        length = int(size * HOLE + 0.5)
        start = jax.random.randint(one, (x.shape[0], 1), 0, size + (1 - length % 2)) - length // 2
        places = jnp.arange(size)[None]
        holes.append((places >= start) & (places < start + length))
    hole = holes[0][:, :, None, None] & holes[1][:, None, :, None]
    return jnp.where(hole, 0, x)


AUGMENTATIONS = {"color": color, "translation": translation, "cutout": cutout}
