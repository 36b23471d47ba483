"""Groups of devices of a collective, in XLA's notations."""

import pytest

from var_jax.perf import hlo_groups


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("replica_groups={{0,4},{1,5}}, to_apply=%a", (0, 4)),
        ("replica_groups=[2,3]<=[6], x", (0, 1, 2)),
        ("replica_groups=[3,2]<=[2,3]T(1,0), x", (0, 3)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, x", (0, 2, 4, 6)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}", (0, 1, 2, 3)),
        (
            "replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=2], "
            "device_ids=([2,2]T(1,0)) {'axis_0'}, x",
            (0, 1),
        ),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0':(2)2}, x", (0, 4)),
        (
            "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a':(1)2,'b'}, x",
            (0, 4, 2, 6),
        ),
        ("source_target_pairs={{0,3},{3,0}}", (0, 3)),
    ],
)
def test_first_group_reads_every_notation(text, members):
    """The first group is read from explicit lists, from ranges with a transposition, from mesh axes
    and from pairs; the expected groups are written out by hand."""
    assert hlo_groups.first_group(text) == members


def test_first_group_refuses_an_unknown_notation():
    """A notation that is not known is an error, so that no report counts wrong groups."""
    with pytest.raises(ValueError, match="unknown notation"):
        hlo_groups.first_group("replica_groups=everyone")
