"""Masks over scales, against their definition written out for every pair of tokens."""

import numpy as np
import pytest

from var_jax.config.scales import SCALES_256, Scales
from var_jax.ops import masks

SCALES = Scales.parse("1,2,2x3,4")
# Which of the scales 0..3 each scale sees.
SEEN = {
    "block_causal": [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]],
    "markov": [[0], [0, 1], [1, 2], [2, 3]],
    "block_diagonal": [[0], [1], [2], [3]],
}


@pytest.mark.parametrize("mask", SEEN)
def test_dense_spans_and_pairs_follow_the_definition(mask):
    """The dense mask, the number of pairs and the span of visible keys are those of a table that
    lists the scales each scale sees."""
    level = SCALES.level_ids
    expected = np.array(
        [[level[key] in SEEN[mask][level[query]] for key in range(27)] for query in range(27)]
    )
    np.testing.assert_array_equal(masks.dense(SCALES, mask), expected)
    assert masks.attended_pairs(SCALES, mask) == expected.sum()
    for k in range(4):
        seen = np.flatnonzero(expected[level == k][0])
        np.testing.assert_array_equal(np.arange(27)[masks.visible(SCALES, mask, k)], seen)


def test_attended_pairs_at_256_pixels():
    """The counts at the published scales are sums of fourth powers, written out."""
    scales = Scales.parse(SCALES_256)
    sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    own = sum(n**4 for n in sides)
    before = sum((a * b) ** 2 for a, b in zip(sides, sides[1:], strict=False))
    assert masks.attended_pairs(scales, "block_causal") == 286_434
    assert masks.attended_pairs(scales, "markov") == own + before
    assert masks.attended_pairs(scales, "block_diagonal") == own
