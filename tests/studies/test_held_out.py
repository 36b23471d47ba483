"""The split of held-out images."""

import numpy as np
import pytest

from var_jax.errors import UserError
from var_jax.evaluate.image_sets import open_images
from var_jax.studies import held_out

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 4, 6, 1), dtype=np.uint8)
LABELS = np.arange(30) % 3


def test_split_is_disjoint_and_complete(tmp_path):
    """Every image is in one part, in order and with its label; other seeds give other sets; four
    images have to be left to compare with."""
    np.savez(tmp_path / "a.npz", IMAGES, LABELS)
    images = open_images(str(tmp_path / "a.npz"))
    split = held_out.split(images, 11, seed=3)
    assert [part.count for part in split] == [11, 19]
    indices = []
    for part in split:
        pixels, labels = (np.concatenate(column) for column in zip(*part.read(4), strict=True))
        part_indices = [np.flatnonzero((image == IMAGES).all((1, 2, 3)))[0] for image in pixels]
        assert part_indices == sorted(part_indices) and len(part_indices) == part.count
        np.testing.assert_array_equal(labels, LABELS[part_indices])
        indices += part_indices
    assert sorted(indices) == list(range(30))
    other = held_out.split(images, 11, seed=4)
    assert len({part.fingerprint for part in (images, *split, *other)}) == 5
    with pytest.raises(UserError, match="--num is 27; it must be at most 26"):
        held_out.split(images, 27, seed=0)
