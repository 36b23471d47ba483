"""The cosine schedule: how many tokens are masked in training and after each pass of decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.ops import mask_schedule


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (8, [251, 236, 212, 181, 142, 97, 49, 0]),
        (12, [253, 247, 236, 221, 203, 181, 155, 128, 97, 66, 33, 0]),
        (1, [0]),
    ],
)
def test_remaining_counts_are_those_of_the_published_decoder(steps, expected):
    """The counts of 256 tokens are those of the released code (google-research/maskgit,
    `parallel_decode.py`), whose last pass fills what remains."""
    assert mask_schedule.remaining_counts(steps, 256)[:, 256].tolist() == expected


def test_masked_counts_are_rounded_up_and_at_least_one():
    """The counts of 100 tokens are checked at the ends of the schedule and where the cosine is one
    half."""
    progress = jnp.array([0.0, 0.1, 2 / 3 - 1e-3, 0.9999999])
    assert mask_schedule.masked_counts(progress, 100).tolist() == [100, 99, 51, 1]


def test_random_masks_follow_the_cosine_schedule():
    """The mean share of masked tokens is that of the cosine, 2/pi, and every position is masked as
    often as any other."""
    masks = np.asarray(mask_schedule.random_masks(jax.random.key(0), 4000, 64))
    assert masks.sum(axis=1).min() == 1
    assert masks.mean() == pytest.approx(2 / np.pi + 0.5 / 64, abs=0.01)
    assert np.abs(masks.mean(axis=0) - masks.mean()).max() < 0.03


def test_fixed_masks_are_the_same_at_any_time():
    """Their sizes are those of the schedule at the middle of each quarter."""
    masks = mask_schedule.fixed_masks(4, 12)
    np.testing.assert_array_equal(masks, mask_schedule.fixed_masks(4, 12))
    assert masks.sum(axis=1).tolist() == [12, 10, 7, 3]


def test_lowest_takes_as_many_as_asked_for_among_equal_values():
    """Of equal values the first are taken, so that the number is exact."""
    values = jnp.array([[0.0, 0.0, 0.0, -1.0], [3.0, 1.0, 2.0, jnp.inf]])
    expected = [[True, False, False, True], [False, True, False, False]]
    assert mask_schedule.lowest(values, jnp.array([2, 1])).tolist() == expected
