"""How a step brings the parts of a weight together, and divides the sum of its gradient.

Weights are stored divided over the `data` axis. A product takes the whole weight, and the sum of
its gradient over all rows is divided again. Under the policy "fsdp" the compiler arranges both.
Under the others a product does it by name, with an all-gather in the dtype of the computation and a
reduce-scatter: left alone, the TPU compiler sums copies that are padded with zeros where a chip has
a few rows of a weight, which sends twice the bytes.

A convolution's kernel is whole under every policy (`undivided`).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from var_jax.devices import sharding, target

# What a weight of a product has beside "embed", and an embedding or a bias has not.
WEIGHT_AXES = {"heads", "mlp", "vocab", "code"}
TILE = (8, 128)  # of an array in a TPU's memory, rows and columns
TILES = 4  # a part of a reduce-scatter has a multiple of so many
GATHERED = "gathered_weight"  # the name of whole weights for policies of rematerialization

_policy = contextvars.ContextVar("_policy", default="")  # "" outside of training steps


@contextlib.contextmanager
def under(policy: str) -> Iterator[None]:
    """Makes a policy (`mesh.policy`) that of the programs that are traced in the block."""
    token = _policy.set(policy)
    try:
        yield
    finally:
        _policy.reset(token)


def is_training() -> bool:
    """Returns whether a training step is traced, whose weights lie divided over the data axis."""
    return bool(_policy.get())


def keeps_weights() -> bool:
    """Returns whether whole weights stay from the forward to the backward pass."""
    return _policy.get() == "zero1"


def undivided(kernel: jax.Array) -> jax.Array:
    """Returns a convolution's kernel, or the sum of its gradient, whole on every device.

    Left alone, the TPU compiler convolves with one chip's output channels after the other while
    these go around the ring: on 16 chips, 10 of 160 channels at a time, each time reading all of
    the map, and with 10 of the 128 columns of a matrix unit in use. The gradient would be computed
    likewise; to sum it whole costs an all-reduce, twice the bytes of a reduce-scatter.
    """
    return sharding.constrain(kernel, *[None] * kernel.ndim)


@dataclasses.dataclass(frozen=True)
class Gather:
    """How the parts of one weight come together for a product.

    Attributes:
      stored: mesh axes of the weight as it is stored.
      used: those of the whole weight that the product takes.
      dimension: the dimension of the weight that is gathered.
      axis: the mesh axis that it is gathered along.
      rows: the mesh axes that the rows of the product's operand are divided over.
    """

    stored: PartitionSpec
    used: PartitionSpec
    dimension: int
    axis: str
    rows: tuple[str, ...]

    def gather(self, kernel: jax.Array) -> jax.Array:
        """Returns the whole weight."""

        def of_device(part):
            return jax.lax.all_gather(part, self.axis, axis=self.dimension, tiled=True)

        return jax.shard_map(of_device, in_specs=self.stored, out_specs=self.used, check_vma=False)(
            kernel
        )

    def divided_sum(
        self,
        product: Callable[[jax.Array, jax.Array], jax.Array],
        terms: tuple[str, str, str],
        operands: tuple[jax.Array, jax.Array],
    ) -> jax.Array:
        """Returns the sum over all rows of a product of operands, divided as the weight is stored.

        Args:
          product: the product of a device's rows, of the weight's shape.
          terms: the axes of both operands and of the weight, a letter each; an operand's first axis
            is that of its rows.
          operands: the product's operands.
        """
        *inputs, kernel = terms
        axes = dict(zip(kernel, (*self.used, *[None] * len(kernel)), strict=False))
        specs = [PartitionSpec(self.rows, *map(axes.get, letters[1:])) for letters in inputs]

        def of_device(left, right):
            parts = self._sum_scattered(product(left, right))
            others = tuple(axis for axis in self.rows if axis != self.axis)
            return jax.lax.psum(parts, others) if others else parts

        return jax.shard_map(
            of_device, in_specs=tuple(specs), out_specs=self.stored, check_vma=False
        )(*operands)

    def _sum_scattered(self, array: jax.Array) -> jax.Array:
        """Returns a device's part of the sum of the devices' arrays of the whole weight's shape."""
        size, devices = array.shape[self.dimension], jax.lax.axis_size(self.axis)
        numbers = array.size // size
        columns = columns_of_tiles(size // devices, numbers) if target.platform() == "tpu" else None
        if columns is None:
            return jax.lax.psum_scatter(
                array, self.axis, scatter_dimension=self.dimension, tiled=True
            )
        rows = jnp.moveaxis(array, self.dimension, 0)
        matrix = jnp.pad(rows.reshape(size, numbers), ((0, 0), (0, columns - numbers)))
        matrix = with_layout_constraint(matrix, Layout((0, 1)))
        part = jax.lax.psum_scatter(matrix, self.axis, scatter_dimension=0, tiled=True)
        part = part[:, :numbers].reshape(-1, *rows.shape[1:])
        return jnp.moveaxis(part, 0, self.dimension)


def columns_of_tiles(rows: int, columns: int) -> int | None:
    """Returns the columns with which a TPU sums a matrix in parts of so many rows along one ring.

    The TPU compiler makes an all-reduce, which sends twice the bytes, of a reduce-scatter unless
    each part is whole tiles, in number a multiple of four. A tile is 8 rows by 128 columns, so that
    the rows of an array of more dimensions, or of a matrix whose columns lie together, are none.

    Args:
      rows: of a device's part.
      columns: of the matrix.
    Returns:
      at least `columns`; None if the rows are not whole tiles, which further columns do not change.
    """
    height, width = TILE
    if rows % height:
        return None
    # The fewest columns of tiles that make the number of tiles a multiple of four.
    unit = width * (TILES // math.gcd(TILES, rows // height))
    return -(-columns // unit) * unit


def gathered_numbers(boxed: Any, mesh: Mapping[str, int]) -> float:
    """Returns how many of all numbers of the weights that products gather lie on one device.

    Args:
      boxed: parameters with logical axis names, abstract or real.
      mesh: number of devices along each mesh axis.
    """
    undivided = {**mesh, sharding.RULES["embed"]: 1}
    total = 0.0
    for leaf in jax.tree.leaves(boxed, is_leaf=sharding.is_boxed):
        names, shape = sharding.names_and_shape(leaf)
        if "embed" in names and len(set(names) & WEIGHT_AXES):
            parts = sharding.spec_parts(sharding.spec_for_shape(names, shape, undivided), undivided)
            total += math.prod(shape) / parts
    return total


def plan(names: Sequence[str | None], shape: Sequence[int], rows: int) -> Gather | None:
    """Returns how a weight is gathered under the policy and mesh that are set.

    Args:
      names: logical names of the weight's dimensions.
      shape: the weight's shape.
      rows: rows of the operand that it is multiplied with.
    Returns:
      None where the compiler decides: under "fsdp", without a mesh, or where the mesh does not
      divide the weight or the rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if _policy.get() in ("", "fsdp") or mesh.empty or "embed" not in names:
        return None
    dimension, axis = list(names).index("embed"), sharding.RULES["embed"]
    stored = sharding.spec_for_shape(names, shape, mesh.shape)
    parts = sharding.batch_parts(mesh.shape)
    if stored[dimension] != axis or mesh.shape[axis] == 1 or rows % parts:
        return None
    used = PartitionSpec(*(None if i == dimension else a for i, a in enumerate(stored)))
    return Gather(stored, used, dimension, axis, sharding.batch_axes(mesh.shape))
