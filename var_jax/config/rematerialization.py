"""Values of `transformer.remat`: how much of a block the backward pass computes again.

A value names a policy, for all blocks ("dots"), or for a number of them ("dots:18"), which are the
last ones. The others then recompute everything: the backward pass goes through the last blocks
first, and what these kept is free when the others are computed again.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from var_jax.config.strict import require

FULL = "full"
OFFLOAD = "offload"
# From what keeps most on the device to what keeps least.
POLICIES = ("none", "dots", OFFLOAD, FULL)
AUTO = "auto"  # a choice that is left to `train.memory_rule`
KEY = "transformer.remat"
COUNT = re.compile(r"[1-9][0-9]{0,5}")  # of blocks


class Group(NamedTuple):
    """Neighboring blocks of one policy.

    Attributes:
      policy: of `POLICIES`.
      blocks: their number, at least 1.
    """

    policy: str
    blocks: int


def groups(remat: str, depth: int) -> tuple[Group, ...]:
    """Returns the groups of blocks of a value that is not "auto", from the first block on.

    Args:
      depth: number of blocks.
    Raises:
      UserError: the value is none of them, or more blocks than there are.
    """
    policy, colon, count = remat.partition(":")
    require(
        policy in POLICIES and not (colon and policy == FULL),
        KEY,
        remat,
        f"{', '.join(POLICIES)}, {AUTO}, or one of the first {len(POLICIES) - 1} for the last "
        "blocks alone, such as dots:1",
    )
    blocks = int(count) if COUNT.fullmatch(count) else 0 if colon else depth
    require(
        1 <= blocks <= depth,
        KEY,
        remat,
        f"{policy}:1 to {policy}:{depth}, by the number of blocks",
    )
    parts = (Group(FULL, depth - blocks), Group(policy, blocks))
    return tuple(group for group in parts if group.blocks)


def on_device(remat: str, depth: int) -> tuple[Group, ...]:
    """Returns the groups of a value that keep as much on the device, without the host's memory."""
    return tuple(
        group._replace(policy=FULL) if group.policy == OFFLOAD else group
        for group in groups(remat, depth)
    )


def mean(of_policy: Mapping[str, float], parts: Sequence[Group]) -> float:
    """Returns the mean over all blocks of a number that each policy has."""
    total = sum(of_policy[one.policy] * one.blocks for one in parts)
    return total / sum(one.blocks for one in parts)


def partial(policy: str, depth: int) -> list[str]:
    """Returns the values of a policy for three, two and one quarter of the blocks.

    They are what a choice among memory sizes tries between a policy and "full".
    """
    counts = dict.fromkeys(depth * quarter // 4 for quarter in (3, 2, 1))
    return [f"{policy}:{count}" for count in counts if 0 < count < depth]
