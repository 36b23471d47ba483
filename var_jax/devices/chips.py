"""The known accelerators, with the peak rates and memory that their makers publish.

Peak FLOP/s are those of dense bfloat16 products (NVIDIA also prints twice that, with sparsity). A
link's bandwidth is that of one direction; the makers' figures per chip are for all links, and for
both directions where they say "bidirectional".

Sources (TPU pages read in November 2026; NVIDIA's sheets through public summaries that agree on
them):

- v4: https://cloud.google.com/tpu/docs/v4 (275 TFLOP/s, 32 GiB, 1200 GB/s, six ports of a 3-D torus
  at 2400 Gbit/s in all, each way); Jouppi et al. 2023, arXiv 2304.01433, table 4 (50 GB/s per link)
- v5e: https://docs.cloud.google.com/tpu/docs/v5e (197 TFLOP/s, 16 GB, 819 GB/s, 400 GB/s
  bidirectional over four ports; data-center network 6.4 Tbit/s per pod of 256)
- v5p: https://docs.cloud.google.com/tpu/docs/v5p (459 TFLOP/s, 95 GiB, 2765 GB/s, 1200 GB/s
  bidirectional over the six ports of a 3-D torus; data-center network 50 Gbit/s per chip)
- v6e: https://docs.cloud.google.com/tpu/docs/v6e (918 TFLOP/s, 32 GB, 1600 GB/s, 800 GB/s
  bidirectional over four ports; data-center network 25.6 Tbit/s per pod of 256)
- tpu7x: https://docs.cloud.google.com/tpu/docs/tpu7x (2307 TFLOP/s, 192 GiB, 7380 GB/s, 1200 GB/s
  bidirectional over the six ports of a 3-D torus; a chip is two devices of JAX, whose link to each
  other is six times one port)
- A TPU's way to the memory of its host: https://jax-ml.github.io/scaling-book/tpus (PCIe at 16 GB/s
  each way for v4, about 15 GB/s per chip, 32 GB/s for v6e; nothing about tpu7x)
- A100: https://www.nvidia.com/en-us/data-center/a100 (SXM, 80 GB) and the DGX A100 data sheet
  (network); A100-40GB, the first version: NVIDIA's A100 data sheet (40 GB, 1555 GB/s)
- H100: https://www.nvidia.com/en-us/data-center/h100 (SXM) and the DGX H100 data sheet
- H200: https://www.nvidia.com/en-us/data-center/h200 (SXM) and the DGX H200 data sheet
- B200: https://www.nvidia.com/en-us/data-center/dgx-b200 (a DGX's figures over its eight GPUs)
"""

import dataclasses
import math
import re
import types
from collections.abc import Mapping
from typing import Literal

from var_jax.errors import UserError, did_you_mean

GIB = 2**30
# Share of a GPU's memory that JAX takes at its start, and a program can use, unless
# XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise (docs.jax.dev, "GPU memory allocation").
GPU_MEMORY_SHARE = 0.75
MOST_CHIPS = 100_000  # more than any maker joins; each is described to choose a mesh
ASSUMED_MFU = 0.4  # of a run whose speed nobody has measured: an assumption


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator's published peaks; FLOP/s and memory are those of one JAX device.

    Attributes:
      kinds: its names in JAX (`jax.Device.device_kind`).
      peak_flops: dense bfloat16 FLOP/s.
      hbm_bytes: memory, in bytes.
      hbm_bandwidth: bandwidth of the memory, in bytes/s.
      links: a chip's links of the network inside a slice (ICI) or node (NVLink).
      link_bandwidth: bytes/s per link and direction.
      dcn_bandwidth: bytes/s per chip and direction between slices or nodes; None if the maker
        publishes none.
      host_bandwidth: bytes/s between a chip's memory and its host's, in one direction; None if not
        known.
      devices_per_chip: JAX devices that a chip is, which share its links.
    """

    name: str
    kinds: tuple[str, ...]
    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    links: int
    link_bandwidth: float
    dcn_bandwidth: float | None
    host_bandwidth: float | None = None
    devices_per_chip: int = 1

    @property
    def interconnect_bandwidth(self) -> float:
        """Returns the bytes/s of all links of a chip together, in one direction."""
        return self.links * self.link_bandwidth

    @property
    def platform(self) -> Literal["tpu", "gpu"]:
        """The platform that JAX runs it as."""
        return "tpu" if self.kinds[0].startswith("TPU") else "gpu"

    @property
    def usable_bytes(self) -> float:
        """Bytes of memory that a program can use by default: three quarters of a GPU's."""
        return self.hbm_bytes * (GPU_MEMORY_SHARE if self.platform == "gpu" else 1.0)


_ALL = (
    Chip("v4", ("TPU v4",), 275e12, 32 * GIB, 1.2e12, 6, 50e9, None, 16e9),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 4, 50e9, 3.125e9, 15e9),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2765e9, 6, 100e9, 6.25e9, 15e9),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1600e9, 4, 100e9, 12.5e9, 32e9),
    Chip("tpu7x", ("TPU7x",), 1153.5e12, 96 * GIB, 3690e9, 6, 100e9, None, devices_per_chip=2),
    Chip("A100", ("NVIDIA A100-SXM4-80GB",), 312e12, 80 * GIB, 2039e9, 12, 25e9, 25e9),
    Chip("A100-40GB", ("NVIDIA A100-SXM4-40GB",), 312e12, 40 * GIB, 1555e9, 12, 25e9, 25e9),
    Chip("H100", ("NVIDIA H100 80GB HBM3",), 989.5e12, 80 * GIB, 3.35e12, 18, 25e9, 50e9),
    Chip("H200", ("NVIDIA H200",), 989.5e12, 141e9, 4.8e12, 18, 25e9, 50e9),
    Chip("B200", ("NVIDIA B200",), 2.25e15, 180e9, 8e12, 18, 50e9, 50e9),
)
CHIPS: Mapping[str, Chip] = types.MappingProxyType({chip.name: chip for chip in _ALL})
_BY_KIND = {kind: chip for chip in _ALL for kind in chip.kinds}


def chip_of_kind(kind: str) -> Chip | None:
    """Returns the chip of a `jax.Device.device_kind`, or None if the table has no such kind.

    A kind has to match exactly: another card of the same name, such as a PCIe one, has other peaks.
    """
    return _BY_KIND.get(kind)


def named(name: str, flag: str = "--chip") -> Chip:
    """Returns the chip of a name such as "v5e" or "h200", in upper or lower case.

    Raises:
      UserError: the table has no such chip.
    """
    by_lower = {chip.name.lower(): chip for chip in _ALL}
    if name.lower() not in by_lower:
        near = did_you_mean(name.lower(), by_lower)
        raise UserError(f"{flag} {name!r} is not in the table{near}")
    return by_lower[name.lower()]


def several(text: str, flag: str = "--chip") -> tuple[Chip, int]:
    """Returns the chip and the number of chips of "h200", "h200:8" or "v5e:16x16".

    Raises:
      UserError: the text has another form or more than MOST_CHIPS, or the table has no such chip.
    """
    name, colon, shape = text.partition(":")
    if colon and not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})*", shape):
        raise UserError(
            f"{flag} is {text!r}; after the colon it must have a number of chips or a slice's "
            "shape, such as h200:8 or v5e:16x16"
        )
    count = math.prod(map(int, shape.split("x"))) if colon else 1
    if count > MOST_CHIPS:
        raise UserError(f"{flag} is {text!r}, {count:,} chips; it must be at most {MOST_CHIPS:,}")
    return named(name, flag), count
