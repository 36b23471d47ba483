"""TPU slices: links between groups of chips, times of collectives, and names."""

import dataclasses
import itertools
import types

import pytest

from var_jax.devices.chips import CHIPS
from var_jax.errors import UserError
from var_jax.perf import tpu_slices


def fake(chip, *dims):
    per_chip = range(CHIPS[chip].devices_per_chip)
    devices = tuple(
        types.SimpleNamespace(coords=coords, core_on_chip=core)
        for coords in itertools.product(*map(range, dims))
        for core in per_chip
    )
    return tpu_slices.Slice("fake", CHIPS[chip], dims, devices)


def part(where, **fixed):
    """The devices with these coordinates, x, y or z."""
    return [
        d
        for d in where.devices
        if all(d.coords["xyz".index(axis)] == value for axis, value in fixed.items())
    ]


@pytest.mark.parametrize(
    ("where", "fixed", "links"),
    [
        (fake("v5e", 16, 16), {}, [(16, 2), (16, 2)]),
        (fake("v5e", 16, 16), {"y": 0}, [(16, 2)]),
        (fake("v5e", 4, 8), {}, [(4, 1), (8, 1)]),  # no ring short of the whole pod
        (fake("v5p", 4, 4, 8), {}, [(4, 2), (4, 2), (8, 2)]),
        (fake("v5p", 2, 2, 1), {}, [(2, 1), (2, 1)]),
    ],
)
def test_links_of_a_group_have_lengths_and_directions(where, fixed, links):
    """A full side of a pod is a ring with links both ways, a shorter one a line."""
    assert where.links(part(where, **fixed)) == links


def test_links_of_a_part_of_a_ring_are_a_line():
    """Four of the eight chips of a ring have no link that closes them to a ring, so that each has
    one link along it."""
    where = fake("v5p", 4, 4, 8)
    assert where.links([d for d in part(where, x=0, y=0) if d.coords[2] < 4]) == [(4, 1)]


def test_seconds_are_bytes_over_the_links_in_use():
    """The time of each collective is the number of bytes that cross the links, divided by their
    bandwidth, as computed by hand. A single device needs no time."""
    where = fake("v5p", 4, 4, 8)  # six links of 100 GB/s each way
    gather = where.seconds("all-gather", 1e9, where.devices)
    assert gather == pytest.approx(1e9 * 127 / 128 / 600e9)
    assert where.seconds("reduce-scatter", 1e9, where.devices) == gather
    assert where.seconds("all-reduce", 1e9, where.devices) == 2 * gather
    assert where.seconds("collective-permute", 1e9, where.devices[:2]) == pytest.approx(1e9 / 100e9)
    # half of what each of 8 devices has crosses the middle of the ring, over two links each way
    assert where.seconds("all-to-all", 1e9, part(where, x=0, y=0)) == pytest.approx(
        8 * 1e9 / 4 / 2 / 100e9
    )
    assert where.seconds("all-gather", 1e9, where.devices[:1]) == 0.0


def test_seconds_where_a_chip_is_two_devices():
    """By hand: a group of both devices of each chip has all links of a chip, and an array comes to
    a chip once; a group of one device per chip has half of them; the two devices of one chip have
    the six times faster link between them."""
    where = fake("tpu7x", 4, 4, 4)  # as v5p: six links of 100 GB/s each way
    both, one = where.devices, [d for d in where.devices if d.core_on_chip == 0]
    assert len(both) == 128 and len(one) == 64
    at_full_rate = 1e9 * 63 / 64 / 600e9
    assert where.seconds("all-gather", 1e9, both) == pytest.approx(at_full_rate)
    assert where.seconds("all-gather", 1e9, one) == pytest.approx(2 * at_full_rate)
    assert where.seconds("all-reduce", 1e9, both) == pytest.approx(2 * at_full_rate)
    pair = both[:2]
    assert where.seconds("all-gather", 1e9, pair) == pytest.approx(1e9 / 2 / 600e9)
    assert where.seconds("all-reduce", 1e9, pair) == pytest.approx(1e9 / 600e9)
    assert where.seconds("collective-permute", 1e9, pair) == pytest.approx(1e9 / 600e9)
    # Both devices of a chip send over the same link.
    assert where.seconds("collective-permute", 1e9, one[:2]) == pytest.approx(2e9 / 100e9)
    # Half of what the 8 devices of 4 chips have crosses the middle of a ring, two links each way.
    line = [d for d in both if d.coords[:2] == (0, 0)]
    expected = 8 * 1e9 / 2 / 2 / 2 / 100e9
    assert where.seconds("all-to-all", 1e9, line) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "such as v5e:16x16"),
        ("v5f:4x4", "unknown chip v5f; did you mean 'v5"),
        ("H100:2x4", "is H100:2x4, a GPU; aot compiles for TPU slices alone"),
        ("a100", "`var-jax plan --chip a100` estimates"),
        ("v5e:4", "such as v5e:16x16"),
    ],
)
def test_named_refuses_what_is_no_slice(name, message):
    """The error has a name that would do, or the nearest chip."""
    with pytest.raises(UserError, match=message):
        tpu_slices.named(name)


def test_named_refuses_a_shape_that_does_not_exist():
    """The compiler knows the slices, and v4's two cores per chip are no devices of their own."""
    pytest.importorskip(
        "libtpu", reason="libtpu, the TPU compiler, is not installed (pip install 'var-jax[aot]')"
    )
    with pytest.raises(UserError, match="knows no such slice"):
        tpu_slices.named("v5e:3x5")
    with pytest.raises(UserError, match="as 128 devices, which are not 1 per chip"):
        tpu_slices.named("v4:4x4x4")


def test_slice_has_its_chip_and_devices():
    """4 x 4 x 8 chips are 128 devices, whose longest side alone is a ring; chips of tpu7x are two
    devices each, which the table knows by JAX's name."""
    pytest.importorskip(
        "libtpu", reason="libtpu, the TPU compiler, is not installed (pip install 'var-jax[aot]')"
    )
    where = tpu_slices.named("v5p:4x4x8")
    assert where.chip == CHIPS["v5p"] and len(where.devices) == 128 and where.dims == (4, 4, 8)
    two = tpu_slices.named("tpu7x:2x2x1")
    assert len(two.devices) == 8 and {d.device_kind for d in two.devices} == set(two.chip.kinds)
    assert dataclasses.replace(where, name="x").links(where.devices) == [(4, 2), (4, 2), (8, 2)]
