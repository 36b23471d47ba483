"""Batches that tests compare, and small ones to compute with."""

import itertools

import numpy as np

from helpers import small


def take(batches, count: int):
    """Returns the first batches, and ends the threads or processes that read."""
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def same(batches, expected) -> bool:
    """Returns whether two lists of batches have the same keys and values."""
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
        for a, b in zip(batches, expected, strict=True)
    )


def image_batch(rows: int) -> dict[str, np.ndarray]:
    """Returns random images of the small model's size."""
    random = np.random.default_rng(0)
    return {"image": random.integers(0, 256, (rows, *small.TOKENIZER.image_shape), dtype=np.uint8)}


def token_batch() -> dict[str, np.ndarray]:
    """Returns four rows of images, tokens and labels, the second of which is padding."""
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (4, *small.TOKENIZER.image_shape), dtype=np.uint8),
        "tokens": random.integers(0, 16, (4, small.SCALES.total)).astype(np.int32),
        "label": np.array([1, 0, 9, 10], np.int32),
        "mask": np.array([True, False, True, True]),
    }


def labeled_tokens(rows: int) -> dict[str, np.ndarray]:
    """Returns random tokens of the small model with their labels."""
    random = np.random.default_rng(0)
    return {
        "tokens": random.integers(0, 16, (rows, small.SCALES.total)).astype(np.int32),
        "label": random.integers(0, small.CLASSES, rows).astype(np.int32),
    }
