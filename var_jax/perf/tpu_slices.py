"""TPU slices to compile for: their devices as the compiler describes them, and their network."""

import dataclasses
import os
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import topologies

from var_jax.devices.chips import CHIPS, Chip
from var_jax.errors import UserError, did_you_mean

# Without these, the library looks for the slice of this host, and refuses a second process on it.
NOWHERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# V4, v5p and tpu7x: cubes of 4 x 4 x 4 are joined by optical switches, which close every dimension
# to a ring
CUBE = 4
WHOLE_POD = 16  # v5e and v6e: a dimension is a ring only when it spans the pod
DIE_LINKS = 6  # of tpu7x: the link between the devices of a chip, in links of the network


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice to compile for.

    Attributes:
      name: its name, such as "v5e:16x16".
      chip: the kind of its chips.
      dims: chips along each dimension of the torus or mesh.
      devices: JAX's description of its devices, which programs are compiled for, not run on.
    """

    name: str
    chip: Chip
    dims: tuple[int, ...]
    devices: tuple[jax.Device, ...]

    def is_ring(self, dim: int) -> bool:
        """Returns whether the chips along a dimension are joined to a ring."""
        size = self.dims[dim]
        return size % CUBE == 0 if len(self.dims) == 3 else size == WHOLE_POD

    def links(self, group: Sequence[jax.Device]) -> list[tuple[int, int]]:
        """Returns (devices, links per device) for every dimension in which a group extends.

        A whole ring is used both ways at once; on a part of one, its end devices have one link.
        """
        spread = [len(set(axis)) for axis in zip(*(device.coords for device in group), strict=True)]
        return [
            (extent, 2 if extent == size and self.is_ring(dim) else 1)
            for dim, (extent, size) in enumerate(zip(spread, self.dims, strict=False))
            if extent > 1
        ]

    def seconds(self, kind: str, size: float, group: Sequence[jax.Device]) -> float:
        """Returns the time of a collective over an array of `size` bytes at the links' full rate.

        The size is that of the whole array, on one device.

        Gathers and reductions use all dimensions of the group at once, as the compiler's ring
        algorithms do; in an all-to-all the bisection of the longest one is the limit; a permutation
        is one hop over one link. Where a chip is two devices, a group of one device per chip has
        half of every link, as the other devices' group uses it at the same time; a group of both
        sends each array to a chip once, and over the link inside of the chip meanwhile.
        """
        spread, n = self.links(group), len(group)
        if n == 1:
            return 0.0
        chips = len({tuple(device.coords) for device in group})
        passes = 2 if kind == "all-reduce" else 1
        inside = 0.0
        if chips < n:
            other = 1.0 if kind == "collective-permute" else passes * (n - chips) / n
            inside = size * other / (DIE_LINKS * self.chip.link_bandwidth)
        if not spread:
            return inside
        if kind == "collective-permute":
            return size * self.chip.devices_per_chip / self.chip.link_bandwidth
        link = self.chip.link_bandwidth * n / chips / self.chip.devices_per_chip
        if kind == "all-to-all":
            extent, rings = max(spread)
            outside = size * n / chips * extent / (4 * rings * link)
        else:
            rings = sum(rings for _, rings in spread)
            outside = passes * size * (chips - 1) / chips / (link * rings)
        return max(inside, outside)


def named(topology: str) -> Slice:
    """Returns the slice of a name such as "v5e:16x16" or "v5p:4x4x8".

    Raises:
      UserError: the name has another form, a GPU, an unknown chip, or a shape that the compiler
        does not know; or there is no compiler.
    """
    _refuse_gpu(topology)
    # Newer compilers end the whole process on an extent of 0.
    form = re.fullmatch(r"(\w+):([1-9]\d*(?:x[1-9]\d*)+)", topology)
    if not form:
        raise UserError(
            f"--topology is {topology}; it must be a chip and the slice's shape, such as v5e:16x16"
        )
    tpus = [name for name, chip in CHIPS.items() if chip.platform == "tpu"]
    if form[1] not in tpus:
        raise UserError(f"--topology names the unknown chip {form[1]}{did_you_mean(form[1], tpus)}")
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise UserError("the TPU compiler is not installed; pip install 'var-jax[aot]'") from error
    for key, value in NOWHERE.items():
        os.environ.setdefault(key, value)
    try:
        devices = topologies.get_topology_desc(topology, "tpu").devices
    except (
        Exception
    ) as error:  # the errors of the library's plug-in for a shape that does not exist
        raise UserError(
            f"--topology is {topology}; the TPU compiler knows no such slice ({error})"
        ) from error
    dims, chip = tuple(int(n) for n in form[2].split("x")), CHIPS[form[1]]
    if len(devices) != np.prod(dims) * chip.devices_per_chip:  # v4, whose chips JAX joins to one
        raise UserError(
            f"--topology is {topology}; the TPU compiler describes it as {len(devices)} "
            f"devices, which are not {chip.devices_per_chip} per chip as in JAX; give a slice of "
            "v5e, v5p, v6e or tpu7x"
        )
    return Slice(topology, chip, dims, tuple(devices))


def _refuse_gpu(topology: str):
    """Raises UserError, with the command that estimates, if a topology names a GPU."""
    name = topology.partition(":")[0].lower()
    for chip in CHIPS.values():
        if chip.platform == "gpu" and chip.name.lower() == name:
            raise UserError(
                f"--topology is {topology}, a GPU; aot compiles for TPU slices alone, such as "
                f"v5e:16x16: `var-jax plan --chip {name}` estimates the same for GPUs"
            )
