"""Values of `transformer.remat` name a policy for all blocks or for the last ones."""

import dataclasses

import pytest

from helpers import small
from var_jax.config import rematerialization
from var_jax.config.rematerialization import Group
from var_jax.errors import UserError


def test_groups_are_full_blocks_and_then_those_of_the_policy():
    """The last blocks keep their products: the backward pass begins with them."""
    assert rematerialization.groups("dots", 8) == (Group("dots", 8),)
    assert rematerialization.groups("dots:3", 8) == (Group("full", 5), Group("dots", 3))
    assert rematerialization.groups("dots:8", 8) == (Group("dots", 8),)


@pytest.mark.parametrize(
    "remat",
    [
        "dot",
        "",
        "dots:",
        "dots:0",
        "dots:3",
        "dots:-1",
        "dots:1.5",
        "dots:" + 5000 * "9",
        "dots:٣",
        "full:1",
        "auto:1",
    ],
)
def test_transformer_refuses_other_values(remat):
    """The message has the key, the value and what would be right."""
    with pytest.raises(UserError) as error:
        dataclasses.replace(small.TRANSFORMER, remat=remat)
    assert f"transformer.remat is {remat}; it must be " in str(error.value)


def test_partial_has_values_between_a_policy_and_full():
    """Each is a value of its own that a transformer of the depth takes, down to one of depth 1."""
    for depth in (1, 2, 3, 36):
        values = rematerialization.partial("dots", depth)
        blocks = [rematerialization.groups(value, depth)[-1].blocks for value in values]
        assert blocks == sorted(set(blocks), reverse=True) and all(0 < n < depth for n in blocks)
    assert rematerialization.partial("dots", 36) == ["dots:27", "dots:18", "dots:9"]
