"""The table of chips."""

import pytest

from var_jax.devices.chips import CHIPS, chip_of_kind, named, several
from var_jax.errors import UserError


@pytest.mark.parametrize(
    ("name", "teraflops", "links_gbit"),
    [
        ("v4", 275, 2400),
        ("v5e", 197, 1600),
        ("v5p", 459, 4800),
        ("v6e", 918, 3200),
        ("tpu7x", 2307, 4800),
    ],
)
def test_chips_have_the_published_peaks(name, teraflops, links_gbit):
    """FLOP/s and interconnect bandwidth are those of Google's pages."""
    assert CHIPS[name].peak_flops * CHIPS[name].devices_per_chip == teraflops * 1e12
    assert CHIPS[name].interconnect_bandwidth * 8 == links_gbit * 1e9


def test_chip_of_kind_finds_every_chip_by_jax_names():
    """Every chip of the table is found by each name that JAX has for it."""
    for chip in CHIPS.values():
        assert all(chip_of_kind(kind) is chip for kind in chip.kinds)


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "TPU v3"])
def test_chip_of_kind_of_an_unknown_chip_is_none(kind):
    """A device that is not in the table is no chip, even if its name resembles that of one."""
    assert chip_of_kind(kind) is None


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [("h200", "H200", 1), ("A100-40GB:8", "A100-40GB", 8), ("v5e:16x16", "v5e", 256)],
)
def test_several_chips_have_a_name_and_a_number(text, name, count):
    """A number or a slice's shape follows the name, in upper or lower case."""
    assert several(text) == (CHIPS[name], count)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h20:8", "--chip 'h20' is not in the table; did you mean 'h200'"),
        ("h200:x8", "such as h200:8 or v5e:16x16"),
        ("h200:", "after the colon"),
        ("v5e:99999x99999", "9,999,800,001 chips; it must be at most 100,000"),
    ],
)
def test_several_chips_of_another_form_are_refused(text, message):
    """The error has the nearest chip, or texts or a number that would do."""
    with pytest.raises(UserError, match=message):
        several(text)


def test_usable_memory_of_gpus_is_what_jax_takes():
    """JAX takes three quarters of a GPU's memory by default, and all of a TPU's."""
    assert named("h100").usable_bytes == 60 * 2**30
    assert named("v5e").usable_bytes == named("v5e").hbm_bytes
