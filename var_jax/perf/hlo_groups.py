"""Which devices a collective joins, in the notations of HLO text."""

import math
import re

import numpy as np

MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)


def first_group(attributes: str) -> tuple[int, ...]:
    """Returns the partitions of the first group of a collective, in any notation of HLO.

    Raises:
      ValueError: another notation.
    """
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return int(pairs[1]), int(pairs[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(int(i) for i in listed[1].split(","))
    if iota := re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        return tuple(_iota(iota[3], iota[4])[: int(iota[2])])
    if mesh := MESH.search(attributes):
        return _along(mesh[1], mesh[2], mesh[3], mesh[4])
    raise ValueError(f"unknown notation of a collective's devices: {attributes[:200]}")


def _along(mesh: str, dims: str | None, order: str | None, taken: str) -> tuple[int, ...]:
    """Returns the devices along the named axes of a mesh, at the start of every other axis.

    An axis "'a':(m)k" is a part: the middle axis of m x k x the rest.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    total = math.prod(sizes.values())
    ids = np.array(_iota(dims or str(total), order)).reshape(list(sizes.values()) or [1])
    for axis, name in enumerate(sizes):
        part = re.search(rf"'{name}'(?::\((\d+)\)(\d+))?", taken)
        before, size = (int(part[1] or 1), int(part[2] or sizes[name])) if part else (1, 1)
        stride = sizes[name] // (before * size)
        ids = np.take(ids, range(0, stride * size, stride), axis=axis)
    return tuple(ids.ravel().tolist())


def _iota(dims: str, order: str | None) -> list[int]:
    """Returns the numbers from 0 of an array of some dimensions, transposed and flattened."""
    shape = [int(n) for n in dims.split(",")]
    axes = [int(i) for i in order.split(",")] if order else range(len(shape))
    return np.arange(math.prod(shape)).reshape(shape).transpose(axes).ravel().tolist()
