"""Fills that need no model: the mean training image, and the nearest one by its kept pixels."""

import numpy as np
from jaxtyping import Bool, Int, UInt8

from var_jax.config.strict import require

TRAINING_IMAGES_AT_ONCE = 4096  # training images that distances are computed to at once


def nearest(
    images: UInt8[np.ndarray, "n H W c"],
    training: UInt8[np.ndarray, "m H W c"],
    keep: Bool[np.ndarray, "H W"],
) -> Int[np.ndarray, " n"]:
    """Returns, for each image, the index of the nearest training image by its kept pixels.

    The distance is the sum of squared differences; the first of equally near images is taken.

    The result is exact: products of levels are integers, and their sums far below 2^53.
    """
    kept_pixels = images[:, keep].reshape(len(images), -1).astype(np.float64)
    least_distance = np.full(len(images), np.inf)
    index = np.zeros(len(images), np.int64)
    for start in range(0, len(training), TRAINING_IMAGES_AT_ONCE):
        chunk = training[start : start + TRAINING_IMAGES_AT_ONCE][:, keep]
        chunk = chunk.reshape(-1, kept_pixels.shape[1]).astype(np.float64)
        # Without the image's own square, which is the same for all.
        distances = np.sum(chunk**2, axis=1) - 2 * (kept_pixels @ chunk.T)
        chunk_index = distances.argmin(axis=1)
        distance = distances[np.arange(len(images)), chunk_index]
        nearer = distance < least_distance
        least_distance[nearer] = distance[nearer]
        index[nearer] = chunk_index[nearer] + start
    return index


def nearest_of_class(
    images: UInt8[np.ndarray, "n H W c"],
    labels: Int[np.ndarray, " n"],
    training: UInt8[np.ndarray, "m H W c"],
    training_labels: Int[np.ndarray, " m"],
    keep: Bool[np.ndarray, "H W"],
) -> Int[np.ndarray, " n"]:
    """Returns the indices of `nearest` among the training images of each image's label.

    Args:
      labels: the class that each image's fill is to have.
    Raises:
      UserError: there is no training image of such a class.
    """
    index = np.zeros(len(images), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        of_class = np.flatnonzero(training_labels == label)
        require(
            len(of_class) > 0,
            "the training images",
            f"without one of class {label}",
            "of every class of the model",
        )
        index[rows] = of_class[nearest(images[rows], training[of_class], keep)]
    return index


def mean_image(training: UInt8[np.ndarray, "m H W c"]) -> UInt8[np.ndarray, "H W c"]:
    """Returns the mean of training images, rounded."""
    total = np.zeros(training.shape[1:], np.int64)
    for start in range(0, len(training), TRAINING_IMAGES_AT_ONCE):
        total += training[start : start + TRAINING_IMAGES_AT_ONCE].sum(axis=0, dtype=np.int64)
    return np.rint(total / len(training)).astype(np.uint8)
