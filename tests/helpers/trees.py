"""Comparisons of trees of arrays."""

from typing import Any

import jax
import numpy as np


def assert_same(tree: Any, expected: Any):
    """Asserts that two trees have the same structure, dtypes and values."""
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
