"""Baseline fills against brute force."""

import numpy as np
import pytest

from var_jax.errors import UserError
from var_jax.studies import baselines

RANDOM = np.random.default_rng(0)
TRAINING = RANDOM.integers(0, 256, (30, 4, 6, 1), dtype=np.uint8)
LABELS = np.arange(30) % 3
KEPT = np.ones((4, 6), bool)
KEPT[1:3, 2:5] = False


def test_nearest_of_a_training_image_is_itself(monkeypatch):
    """A training image is its own nearest one, whatever its filled pixels are and also in chunks;
    of two equal images, the first one is returned."""
    monkeypatch.setattr(baselines, "TRAINING_IMAGES_AT_ONCE", 7)
    changed = np.where(KEPT[..., None], TRAINING, 255 - TRAINING)
    np.testing.assert_array_equal(baselines.nearest(changed, TRAINING, KEPT), np.arange(30))
    twice = np.concatenate([TRAINING, TRAINING])
    np.testing.assert_array_equal(baselines.nearest(TRAINING, twice, KEPT), np.arange(30))


def test_nearest_matches_brute_force_over_kept_pixels():
    """The nearest image is that of a brute-force search, among all training images and among those
    of a class; a class without any is refused."""
    images = RANDOM.integers(0, 256, (5, 4, 6, 1), dtype=np.uint8)
    difference = images[:, None][:, :, KEPT].astype(int) - TRAINING[:, KEPT].astype(int)
    distances = np.sum(difference**2, axis=(2, 3))
    index = baselines.nearest(images, TRAINING, KEPT)
    np.testing.assert_array_equal(index, distances.argmin(axis=1))
    labels = np.array([2, 0, 1, 1, 2])
    index = baselines.nearest_of_class(images, labels, TRAINING, LABELS, KEPT)
    of_class = np.where(labels[:, None] == LABELS, distances, np.inf)
    np.testing.assert_array_equal(index, of_class.argmin(axis=1))
    with pytest.raises(UserError, match="without one of class 3"):
        baselines.nearest_of_class(images[:1], np.array([3]), TRAINING, LABELS, KEPT)


def test_mean_image_is_rounded(monkeypatch):
    """Means over chunks of seven images are those over all of them."""
    monkeypatch.setattr(baselines, "TRAINING_IMAGES_AT_ONCE", 7)
    expected = np.rint(TRAINING.mean(axis=0)).astype(np.uint8)
    np.testing.assert_array_equal(baselines.mean_image(TRAINING), expected)
