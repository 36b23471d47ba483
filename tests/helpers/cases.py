"""Combinations of parameters of which the default suite runs a few, and the slow suite all."""

import itertools
from collections.abc import Sequence

import pytest


def combinations(*axes: Sequence) -> list:
    """Returns every combination of the axes' values, as parameters of `pytest.mark.parametrize`.

    Combinations in which more than one value is not the first of its axis are slow tests: each
    value is tried in the default suite, and every pair of values in the slow one.
    """
    cases = []
    for places in itertools.product(*(range(len(axis)) for axis in axes)):
        values = [axis[place] for axis, place in zip(axes, places, strict=True)]
        is_slow = sum(place > 0 for place in places) > 1
        cases.append(pytest.param(*values, marks=[pytest.mark.slow] if is_slow else []))
    return cases


def first_of(values: Sequence) -> list:
    """Returns parameters of which the first is run by default, and all others are slow tests."""
    first, *others = values
    return [first, *(pytest.param(value, marks=pytest.mark.slow) for value in others)]
