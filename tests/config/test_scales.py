"""Scales: lengths, parsing, and levels of tokens."""

import numpy as np
import pytest

from var_jax.config.scales import Scales
from var_jax.errors import UserError
from var_jax.ops import masks


def test_scales_have_the_published_lengths_and_pairs():
    """680 tokens at 256 pixels with the published offsets and mask, and 2240 at 512 pixels."""
    scales = Scales.parse("1,2,3,4,5,6,8,10,13,16")
    assert scales.total == 680
    assert scales.offsets == (0, 1, 5, 14, 30, 55, 91, 155, 255, 424, 680)
    assert masks.attended_pairs(scales, "block_causal") == 286_434
    assert Scales.parse("1,2,3,4,6,9,13,18,24,32").total == 2240


def test_scales_of_non_square_sizes():
    """Level ids, splits and the text form keep height and width apart."""
    scales = Scales.parse("1,1x2,2x3")
    assert scales.sizes == ((1, 1), (1, 2), (2, 3))
    np.testing.assert_array_equal(scales.level_ids, [0, 1, 1, 2, 2, 2, 2, 2, 2])
    assert [part.shape[1] for part in scales.split(np.zeros((2, 9)))] == [1, 2, 6]
    assert Scales.parse(str(scales)) == scales == Scales.parse([(1, 1), (1, 2), (2, 3)])


def test_progress_runs_from_0_to_1_and_one_scale_is_at_0():
    """Progress rises evenly from 0 at the first scale to 1 at the last. A single scale has progress
    0, although there is no interval to divide by."""
    assert [Scales.parse("1,2,4").progress(k) for k in range(3)] == [0, 0.5, 1]
    assert Scales.parse("4").progress(0) == 0


@pytest.mark.parametrize(
    "spec, word",
    [
        ("", "size"),
        ("1,0", "positive"),
        ("4,2", "coarse to fine"),
        ("1,a", "'a'"),
        ("2x2x2", "2x2x2"),
        ([], "empty"),
        ([1.5], "1.5"),
    ],
)
def test_parse_names_bad_sizes(spec, word):
    """The error has the size that is wrong."""
    with pytest.raises(UserError, match=word):
        Scales.parse(spec)
