"""The cosine schedule of masked prediction: how many tokens are masked in training and in decoding.

Source: MaskGIT (arXiv 2202.04200); google-research/maskgit `libml/mask_schedule.py`
and `libml/parallel_decode.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


def masked_counts(progress: Float[Array, " b"], tokens: int) -> Int[Array, " b"]:
    """Returns how many tokens of each training image are masked.

    They are the share cos(pi/2 progress), rounded up, and at least one.

    Args:
      progress: progress of unmasking in [0, 1); uniformly random in training.
    """
    counts = jnp.ceil(jnp.cos(jnp.pi / 2 * progress) * tokens)
    return jnp.clip(counts, 1, tokens).astype(jnp.int32)


def random_masks(key: PRNGKeyArray, images: int, tokens: int) -> Bool[Array, "b L"]:
    """Returns where training images are masked: at a random number of random tokens of each."""
    progress_key, place_key = jax.random.split(key)
    counts = masked_counts(jax.random.uniform(progress_key, (images,)), tokens)
    return lowest(jax.random.uniform(place_key, (images, tokens)), counts)


def fixed_masks(number: int, tokens: int) -> Bool[np.ndarray, "n L"]:
    """Returns masks that are the same in every run, for measurements that can be compared.

    Mask i is at progress (i + 1/2) / number of the schedule; its tokens are the first of a
    permutation that is drawn from seed i.
    """
    progress = (np.arange(number) + 0.5) / number
    counts = np.clip(np.ceil(np.cos(np.pi / 2 * progress) * tokens), 1, tokens).astype(int)
    masks = np.zeros((number, tokens), bool)
    for i, count in enumerate(counts):
        masks[i, np.random.RandomState(i).permutation(tokens)[:count]] = True
    return masks


def remaining_counts(steps: int, tokens: int) -> Int[np.ndarray, "t n"]:
    """Returns how many tokens remain masked after each pass of decoding.

    Row t is of pass t, column u of images that began with u masked tokens, from 0 to `tokens`:
    floor(u cos(pi/2 (t + 1) / steps)), at least one before the last pass, and none after it. A
    decoder also masks fewer than before, while there are two.
    """
    progress = np.arange(1, steps) / steps
    share = np.cos(np.pi / 2 * progress)
    counts = np.floor(share[:, None] * np.arange(tokens + 1)).astype(np.int32)
    return np.pad(np.maximum(counts, 1), ((0, 1), (0, 0)))


def lowest(values: Float[Array, "b L"], counts: Int[Array, " b"]) -> Bool[Array, "b L"]:
    """Returns True at the `counts` lowest values of each row; of equal ones, at the first."""
    ranks = jnp.argsort(jnp.argsort(values, axis=-1), axis=-1)
    return ranks < counts[:, None]
