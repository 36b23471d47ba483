"""What the tests of batches share."""

import itertools

import numpy as np


def take(batches, count: int):
    """The first ones; ends the threads or processes that read."""
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def same(ours, theirs) -> bool:
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
        for a, b in zip(ours, theirs, strict=True)
    )
