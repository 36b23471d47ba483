"""Shardings: one table from the logical axis names that modules use to the mesh's axes.

Flax's own rules silently replicate a name without a rule, and resolve a collision by order; here
both raise before anything is compiled. A dimension that its mesh axis does not divide is replicated
along that axis, as `undivided_parameters` reports.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from var_jax.errors import UserError, did_you_mean

# A logical name's mesh axis, its mesh axes, or None for no sharding.
Rule = str | tuple[str, ...] | None

# Parameters: fully sharded over `data` along the model width, tensor parallel over `model` along
# axes that are independent between devices (heads, MLP columns, vocabulary). Devices along
# `replica` hold the same parameters. Activations: the transformer's batch over `replica` and
# `data`; a convolutional network has nothing to split over `model`, so its images are spread over
# all axes.
RULES: Mapping[str, Rule] = {
    # parameters
    "layers": None,
    "embed": "data",
    "heads": "model",
    "head_dim": None,
    "qkv": None,
    "mlp": "model",
    "modulation": None,
    "modulated": "data",
    "condition": "model",
    "vocab": "model",
    "classes": None,
    "levels": None,
    "positions": None,
    "code": None,
    "conv_in": None,
    "conv_out": "data",
    "kernel": None,
    "image_channels": None,
    "phi": None,
    "rank": None,
    # activations; a mesh without replicas lacks that axis
    "batch": ("replica", "data"),
    "group": "replica",  # the rows of all devices of a replica
    "images": ("replica", "data", "model"),
    "tokens": None,
    "act_embed": None,
    "act_heads": "model",
    "act_mlp": "model",
    "act_vocab": "model",
}


def spec(names: Sequence[str | None]) -> PartitionSpec:
    """Returns the mesh axes of an array whose dimensions have these logical names.

    Args:
      names: one per dimension; None for a dimension that is replicated.
    Raises:
      ValueError: a name has no rule, or two dimensions are on one mesh axis.
    """
    for name in names:
        if name is not None and name not in RULES:
            raise ValueError(f"logical axis {name!r} has no rule{did_you_mean(name, RULES)}")
    axes = [RULES[name] if name is not None else None for name in names]
    used = [axis for rule in axes for axis in _mesh_axes(rule)]
    if len(used) != len(set(used)):
        raise ValueError(
            f"logical axes {tuple(names)} collide: two of them are on one mesh axis of {used}"
        )
    return PartitionSpec(*axes)


def batch_axes(mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the axes of a mesh that a batch's rows are divided over.

    Args:
      mesh: number of devices along each mesh axis.
    """
    return _mesh_axes(_axes_in(RULES["batch"], mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch's rows over the devices of a mesh."""
    return NamedSharding(mesh, PartitionSpec(_axes_in(RULES["batch"], mesh.shape)))


def batch_parts(mesh: Mapping[str, int]) -> int:
    """Returns the number of parts that a mesh divides a batch into.

    Args:
      mesh: number of devices along each mesh axis.
    """
    return math.prod(mesh[axis] for axis in batch_axes(mesh))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Returns `x` constrained to the sharding of its logical names, or `x` if no mesh is set.

    Without constraints on activations the compiler may replicate the batch on every device. If the
    mesh axes of a name do not divide its dimension, it is split over the first axes that do.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec_for_shape(names, x.shape, mesh.shape))


def spec_for_shape(
    names: Sequence[str | None], shape: Sequence[int], mesh: Mapping[str, int]
) -> PartitionSpec:
    """Returns the mesh axes of an array, without axes that do not divide its dimensions.

    Args:
      names: the logical names of the array's dimensions.
      shape: the array's shape.
      mesh: number of devices along each mesh axis.
    """
    rules = zip(spec(names), shape, strict=True)
    return PartitionSpec(*(_dividing_axes(rule, size, mesh) for rule, size in rules))


def _axes_in(rule: Rule, mesh: Mapping[str, int]) -> Rule:
    """Returns the mesh axes of a rule that a mesh has."""
    axes = tuple(axis for axis in _mesh_axes(rule) if axis in mesh)
    return axes if len(axes) > 1 else next(iter(axes), None)


def _mesh_axes(rule: Rule) -> tuple[str, ...]:
    """Returns the mesh axes of a rule, as a tuple."""
    if rule is None:
        return ()
    return (rule,) if isinstance(rule, str) else rule


def _dividing_axes(rule: Rule, size: int, mesh: Mapping[str, int]) -> Rule:
    """Returns the first mesh axes of a rule whose devices divide a dimension."""
    rule = _axes_in(rule, mesh)
    if not isinstance(rule, tuple):
        return None if rule is None or size % mesh[rule] else rule
    while rule and size % math.prod(mesh[axis] for axis in rule):
        rule = rule[:-1]
    return rule


def shardings(boxed: Any, mesh: Mesh) -> Any:
    """Returns the NamedShardings of a tree of parameters with logical axis names.

    A dimension that its mesh axis does not divide is replicated along that axis.

    Args:
      boxed: parameters of `nn.with_logical_partitioning`, abstract or real.
    """
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, spec_for_shape(*names_and_shape(leaf), mesh.shape)),
        boxed,
        is_leaf=is_boxed,
    )


def undivided_parameters(boxed: Any, mesh: Mapping[str, int]) -> dict[str, int]:
    """Returns the parameters that stay whole along an axis that their rule would split.

    Args:
      boxed: parameters with logical axis names, abstract or real.
      mesh: number of devices along each mesh axis.
    Returns:
      by name, the bytes that one device holds beyond the even share of the rule.
    """
    excess = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_boxed):
        names, _ = names_and_shape(leaf)
        parts, parts_of_rule = _num_parts(leaf, mesh), spec_parts(spec(names), mesh)
        if parts < parts_of_rule:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            excess[name] = _num_bytes(leaf) // parts - _num_bytes(leaf) // parts_of_rule
    return excess


def bytes_per_device(boxed: Any, mesh: Mapping[str, int]) -> int:
    """Returns the bytes of parameters that one device of a mesh holds."""
    leaves = jax.tree.leaves(boxed, is_leaf=is_boxed)
    return sum(_num_bytes(leaf) // _num_parts(leaf, mesh) for leaf in leaves)


def replicated_share(boxed: Any, mesh: Mapping[str, int]) -> float:
    """Returns the share of the parameters' bytes, 0 to 1, that every device holds."""
    leaves = jax.tree.leaves(boxed, is_leaf=is_boxed)
    replicated = sum(_num_bytes(leaf) for leaf in leaves if _num_parts(leaf, mesh) == 1)
    return replicated / max(sum(_num_bytes(leaf) for leaf in leaves), 1)


def is_boxed(leaf: Any) -> bool:
    """Returns whether a parameter has logical axis names attached."""
    return isinstance(leaf, nn.LogicallyPartitioned)


def names_and_shape(leaf: Any) -> tuple[Sequence[str | None], tuple[int, ...]]:
    """Returns the logical axis names of a parameter, None for axes without one, and its shape."""
    if is_boxed(leaf):
        return leaf.names, leaf.value.shape
    return (None,) * len(leaf.shape), leaf.shape


def _num_parts(leaf: Any, mesh: Mapping[str, int]) -> int:
    """Returns the number of parts that a mesh splits a parameter into."""
    return spec_parts(spec_for_shape(*names_and_shape(leaf), mesh), mesh)


def spec_parts(partition: PartitionSpec, mesh: Mapping[str, int]) -> int:
    """Returns the number of parts that a partition splits an array into."""
    return math.prod(mesh[axis] for rule in partition for axis in _mesh_axes(rule))


def _num_bytes(leaf: Any) -> int:
    """Returns the bytes of an array, abstract or real, with or without logical axis names."""
    array = leaf.value if is_boxed(leaf) else leaf
    return math.prod(array.shape) * jnp.dtype(array.dtype).itemsize


def require_sharded(
    shardings: Any, abstract: Any, mesh: Mesh, largest_share: float, excused: Collection[str] = ()
):
    """Raises UserError if too large a share of the parameters is replicated on every device.

    That is the sign of a forgotten rule or a wrong mesh.

    Args:
      shardings: a tree of NamedShardings.
      abstract: the shapes and dtypes that the shardings are for.
      largest_share: the share of all bytes that may be replicated.
      excused: names of parameters that do not count, because no mesh divides them.
    Raises:
      UserError: a larger share is replicated; the message names the largest parameters.
    """
    if mesh.size == 1:
        return
    sizes = jax.tree.map(_num_bytes, abstract)
    replicated_sizes = jax.tree.map(
        lambda sharding, size: size if sharding.is_fully_replicated else 0, shardings, sizes
    )
    replicated = {}
    for path, size in jax.tree_util.tree_leaves_with_path(replicated_sizes):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if size and name not in excused:
            replicated[name] = size
    share = sum(replicated.values()) / max(sum(jax.tree.leaves(sizes)), 1)
    if share > largest_share:
        largest = sorted(replicated, key=lambda name: -replicated[name])[:3]
        examples = ", ".join(f"{name} ({replicated[name]:,} bytes)" for name in largest)
        raise UserError(
            f"{share:.0%} of the parameters' bytes would be replicated on each of {mesh.size} "
            f"devices, more than {largest_share:.0%}; the largest: {examples}; "
            f"the mesh is data={mesh.shape['data']}, model={mesh.shape['model']}"
        )


def parameter(
    module: nn.Module, name: str, init, shape: Sequence[int], names: Sequence[str | None], dtype
) -> Any:
    """Returns a parameter of `module` with its logical axis names attached."""
    return module.param(name, nn.with_logical_partitioning(init, tuple(names)), tuple(shape), dtype)


def place(tree: Any, shardings: Any) -> Any:
    """Returns arrays over devices, made from values that every process holds in full on its host.

    Each device receives its own part, and no process asks another. `jax.device_put` would compare
    the values of all processes, which gathers the whole tree on every one of them, and an array
    that is made on one device first has to fit there.

    Args:
      tree: numpy arrays; the caller ensures that they are the same on all processes.
      shardings: a tree of shardings of the same structure.
    """

    def place_array(values: np.ndarray, sharding: NamedSharding) -> jax.Array:
        values = np.asarray(values)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(place_array, tree, shardings)
