"""Random keys of sampled images, which do not depend on the batch that an image is in."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax

if TYPE_CHECKING:
    from jaxtyping import Array, Int, Key


class KeySource(NamedTuple):
    """A seed and image indices, from which the program derives one key per image."""

    seed: Int[Array, ""] | int
    indices: Int[Array, " b"]


def image_keys(seed: Int[Array, ""] | int, indices: Int[Array, " b"]) -> Key[Array, " b"]:
    """Returns one key per image, derived from the seed and the image's index.

    So an image does not depend on its batch.
    """
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(indices)


def as_keys(keys: Key[Array, " b"] | KeySource) -> Key[Array, " b"]:
    """Returns keys as they are, or those of a seed and indices."""
    return image_keys(*keys) if isinstance(keys, KeySource) else keys
