"""Which devices take part in a collective, read off the attributes that HLO gives it."""

import math
import re

import numpy as np

MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}")


def first(attributes: str) -> tuple[int, ...]:
    """The partitions of the first group of a collective, in any of the notations of HLO.

    Raises:
      ValueError: another notation.
    """
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return int(pairs[1]), int(pairs[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(int(i) for i in listed[1].split(","))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        return tuple(_iota(iota[3], iota[4])[:int(iota[2])])
    if mesh := MESH.search(attributes):
        return _along(mesh[1], mesh[2], mesh[3], mesh[4])
    raise ValueError(f"unknown notation of a collective's devices: {attributes[:200]}")


def _along(mesh: str, dims: str | None, order: str | None, taken: str) -> tuple[int, ...]:
    """The devices at the start of every axis of a named mesh but the taken ones, of which "'a':(m)k" takes a part:
    the middle one of m x k x the rest."""
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
    shape = [int(n) for n in dims.split(",")]
    array = np.arange(math.prod(shape)).reshape(shape)
    return array.transpose([int(i) for i in order.split(",")] if order else range(len(shape))).ravel().tolist()
