"""The table of chips."""

import pytest

from var_jax.devices.chips import CHIPS, chip_of_kind


@pytest.mark.parametrize(
    ("name", "teraflops", "links_gbit"),
    [("v4", 275, 2400), ("v5e", 197, 1600), ("v5p", 459, 4800), ("v6e", 918, 3200)],
)
def test_chips_have_the_published_peaks(name, teraflops, links_gbit):
    """FLOP/s and interconnect bandwidth are those of Google's pages."""
    assert CHIPS[name].peak_flops == teraflops * 1e12
    assert CHIPS[name].interconnect_bandwidth * 8 == links_gbit * 1e9


def test_chip_of_kind_finds_every_chip_by_jax_names():
    """Every chip of the table is found by each name that JAX has for it."""
    for chip in CHIPS.values():
        assert all(chip_of_kind(kind) is chip for kind in chip.kinds)


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "TPU v3"])
def test_chip_of_kind_of_an_unknown_chip_is_none(kind):
    """A device that is not in the table is no chip, even if its name resembles that of one."""
    assert chip_of_kind(kind) is None
