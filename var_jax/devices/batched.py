"""Runs functions of rows in equal batches, on one device or split over several."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Images of a batch of `OverDevices`.
ROWS_PER_DEVICE = {"cpu": 64, "gpu": 256, "tpu": 128}


def local_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of one "data" axis over some of this process's devices, by default all."""
    return Mesh(np.asarray(jax.local_devices() if devices is None else devices), ("data",))


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays whose rows are split over the mesh."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns a tree of arrays copied to every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def pad_rows(array: np.ndarray, count: int) -> np.ndarray:
    """Returns an array filled up to `count` rows with copies of its last row."""
    missing = count - len(array)
    if not missing:
        return array
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def run_in_batches(
    function: Callable,
    arrays: Sequence[np.ndarray],
    *,
    batch_size: int,
    sharding: NamedSharding | None = None,
) -> Any:
    """Returns a function's result for all rows, computed in batches of one size.

    So few programs are compiled.

    Few rows take a smaller batch, a power of two per device; the last batch is filled up, and the
    results of the padding are cut off.

    Args:
      function: takes a batch of each array and returns a tree of arrays of as many rows.
      arrays: arrays of the same number of rows, at least one.
      batch_size: largest number of rows per device.
      sharding: how rows are split over devices; None for the default device.
    Returns:
      a tree of numpy arrays.
    """
    rows = len(arrays[0])
    num_devices = sharding.mesh.size if sharding else 1
    rows_per_device = math.ceil(rows / num_devices)
    batch_size = num_devices * min(batch_size, 2 ** math.ceil(math.log2(rows_per_device)))
    results = []
    for start in range(0, rows, batch_size):
        batch = [array[start : start + batch_size] for array in arrays]
        count = len(batch[0])
        batch = [pad_rows(array, batch_size) for array in batch]
        outputs = function(*(jax.device_put(batch, sharding) if sharding else batch))
        results.append(_first_rows(outputs, count))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


class OverDevices:
    """A function of parameters and rows, compiled for all devices of this process.

    Each device computes its share of every batch.

    Attributes:
      batch: largest number of rows of a call; fewer are filled up, so that one program is compiled.
    """

    def __init__(self, function: Callable, params: Any):
        mesh = local_mesh()
        self._sharding = row_sharding(mesh)
        self._params = replicate(params, mesh)
        self._run = jax.jit(function, out_shardings=self._sharding)
        self.batch = mesh.size * ROWS_PER_DEVICE.get(jax.default_backend(), ROWS_PER_DEVICE["gpu"])

    def __call__(self, *arrays: np.ndarray) -> Any:
        """Returns the function's result for arrays of the same number of rows, as numpy arrays."""
        padded = [pad_rows(array, self.batch) for array in arrays]
        outputs = self._run(self._params, *jax.device_put(padded, self._sharding))
        return _first_rows(outputs, len(arrays[0]))


def _first_rows(tree: Any, count: int) -> Any:
    """Returns the first rows of every array of a tree, as numpy arrays."""
    return jax.tree.map(lambda x: np.asarray(x[:count]), tree)
