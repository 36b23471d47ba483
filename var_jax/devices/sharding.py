"""One table from logical axis names to mesh axes; the modules know only the logical names.

Flax's own rules leave a name without a rule replicated in silence, and resolve a collision by
order; here both raise before anything is compiled. A dimension that its mesh axis does not divide
is replicated along that axis, as `undivided` reports.
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

# Parameters: fully sharded over `data` along the model width, tensor parallel over `model` along
# what is independent between devices (heads, MLP columns, vocabulary). Activations: the
# transformer's batch over `data`; a convolutional network has nothing to split over `model`, so
# that its images are spread over both.
RULES: Mapping[str, str | tuple[str, ...] | None] = {
    # parameters
    "layers": None,
    "embed": "data",
    "heads": "model",
    "head_dim": None,
    "qkv": None,
    "mlp": "model",
    "modulation": None,
    "modulated": "model",
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
    # activations
    "batch": "data",
    "images": ("data", "model"),
    "tokens": None,
    "act_embed": None,
    "act_heads": "model",
    "act_mlp": "model",
    "act_vocab": "model",
}


def spec(names: Sequence[str | None]) -> PartitionSpec:
    """The mesh axes of an array whose dimensions have these logical names (None: replicated).

    Raises:
      ValueError: a name without a rule, or two dimensions on one mesh axis.
    """
    for name in names:
        if name is not None and name not in RULES:
            raise ValueError(f"logical axis {name!r} has no rule{did_you_mean(name, RULES)}")
    axes = [RULES[name] if name is not None else None for name in names]
    used = [axis for rule in axes for axis in _each(rule)]
    if len(used) != len(set(used)):
        raise ValueError(
            f"logical axes {tuple(names)} collide: two of them lie on one mesh axis of {used}"
        )
    return PartitionSpec(*axes)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """`x` held to the sharding of its logical names; `x` itself where no mesh is set.

    Without constraints on activations the compiler may replicate the batch on every device. Where
    mesh axes do not divide a dimension, it lies on as many of the first ones as do.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, fitting(names, x.shape, mesh.shape))


def fitting(
    names: Sequence[str | None], shape: Sequence[int], mesh: Mapping[str, int]
) -> PartitionSpec:
    """Returns the mesh axes of an array without those that do not divide its dimensions.

    Args:
      mesh: devices along each axis.
    """
    return PartitionSpec(
        *(_dividing(rule, size, mesh) for rule, size in zip(spec(names), shape, strict=True))
    )


def _each(rule: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if rule is None else (rule,) if isinstance(rule, str) else rule


def _dividing(
    rule: str | tuple[str, ...] | None, size: int, mesh: Mapping[str, int]
) -> str | tuple[str, ...] | None:
    if not isinstance(rule, tuple):
        return None if rule is None or size % mesh[rule] else rule
    while rule and size % math.prod(mesh[axis] for axis in rule):
        rule = rule[:-1]
    return rule


def shardings(boxed: Any, mesh: Mesh) -> Any:
    """NamedShardings for a tree of boxed parameters (`nn.with_logical_partitioning`, abstract or
    real).

    A dimension that its mesh axis does not divide is replicated along that axis.
    """
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, fitting(*_named_shape(leaf), mesh.shape)),
        boxed,
        is_leaf=_is_boxed,
    )


def undivided(boxed: Any, mesh: Mapping[str, int]) -> dict[str, int]:
    """Returns the parameters that have a rule which the mesh does not divide.

    Args:
      mesh: devices along each axis.
    Returns:
      {name: bytes that one device holds beyond the even share which the rule would give it}.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=_is_boxed):
        names, shape = _named_shape(leaf)
        wanted, parts = _parts(spec(names), mesh), _parts(fitting(names, shape, mesh), mesh)
        if parts < wanted:
            size = _bytes(leaf.value if _is_boxed(leaf) else leaf)
            found[jax.tree_util.keystr(path, simple=True, separator="/")] = (
                size // parts - size // wanted
            )
    return found


def held_bytes(boxed: Any, mesh: Mapping[str, int]) -> int:
    """Returns the bytes of parameters that one device of a mesh holds."""
    return sum(
        _bytes(leaf.value if _is_boxed(leaf) else leaf)
        // _parts(fitting(*_named_shape(leaf), mesh), mesh)
        for leaf in jax.tree.leaves(boxed, is_leaf=_is_boxed)
    )


def whole_share(boxed: Any, mesh: Mapping[str, int]) -> float:
    """Returns the share of the parameters' bytes, 0 to 1, that lies whole on every device of a
    mesh."""
    leaves = jax.tree.leaves(boxed, is_leaf=_is_boxed)
    sizes = [_bytes(leaf.value if _is_boxed(leaf) else leaf) for leaf in leaves]
    whole = [_parts(fitting(*_named_shape(leaf), mesh), mesh) == 1 for leaf in leaves]
    return sum(size for size, alone in zip(sizes, whole, strict=True) if alone) / max(sum(sizes), 1)


def _is_boxed(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def _named_shape(leaf: Any) -> tuple[Sequence[str | None], tuple[int, ...]]:
    if _is_boxed(leaf):
        return leaf.names, leaf.value.shape
    return (None,) * len(leaf.shape), leaf.shape


def _parts(partition: PartitionSpec, mesh: Mapping[str, int]) -> int:
    """How many parts an array of this partition lies in."""
    return math.prod(mesh[axis] for rule in partition for axis in _each(rule))


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize


def require_sharded(
    shardings: Any, abstract: Any, mesh: Mesh, largest_share: float, excused: Collection[str] = ()
):
    """Checks that not too much lies whole on every device: that is what a forgotten rule or a wrong
    mesh looks like.

    Args:
      shardings: a tree of NamedShardings.
      abstract: the shapes and dtypes that they are for, in a tree of the same structure.
      largest_share: of all bytes, what may be replicated.
      excused: names of parameters that do not count, because no mesh divides them.
    Raises:
      UserError: more is; it names the largest of them.
    """
    if mesh.size == 1:
        return
    sizes = jax.tree.map(_bytes, abstract)
    whole = jax.tree.map(
        lambda sharding, size: size if sharding.is_fully_replicated else 0, shardings, sizes
    )
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): size
        for path, size in jax.tree_util.tree_leaves_with_path(whole)
        if size
    }
    named = {name: size for name, size in named.items() if name not in excused}
    share = sum(named.values()) / max(sum(jax.tree.leaves(sizes)), 1)
    if share > largest_share:
        largest = sorted(named, key=lambda name: -named[name])[:3]
        raise UserError(
            f"{share:.0%} of the parameters' bytes would lie whole on each of {mesh.size} devices, more than "
            f"{largest_share:.0%}; the largest: {', '.join(f'{name} ({named[name]:,} bytes)' for name in largest)}; "
            f"the mesh is data={mesh.shape['data']}, model={mesh.shape['model']}"
        )


def parameter(
    module: nn.Module, name: str, init, shape: Sequence[int], names: Sequence[str | None], dtype
) -> Any:
    """A parameter of `module` with its logical axis names attached."""
    return module.param(name, nn.with_logical_partitioning(init, tuple(names)), tuple(shape), dtype)


def place(tree: Any, shardings: Any) -> Any:
    """Returns arrays over devices, made of values that every process holds whole on its host.

    Each device is given its own part, and no process asks another: `jax.device_put` would compare
    the values of all processes, which gathers the whole tree on every one of them, and an array
    that is made on one device first has to fit there.

    Args:
      tree: numpy arrays, the same on all processes, which is for the caller to see to.
      shardings: a tree of shardings of the same structure.
    """

    def one(values: np.ndarray, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(values)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, tree, shardings)
