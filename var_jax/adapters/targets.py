"""The linears of a transformer that LoRA changes: their parameters, axes and logical names."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from var_jax.config.model import TransformerConfig
from var_jax.config.strict import require
from var_jax.models import init

LAYERS = "layers"  # the logical axis of stacked layers, which is always the first


class Linear(NamedTuple):
    """Where a linear's kernel is among the parameters.

    Attributes:
      paths: the path of its kernel, or those of several layouts, of which a model has one.
      inputs: the number of axes of its input, without that of the layers.
    """

    paths: tuple[str, ...]
    inputs: int = 1


LINEARS = {
    "qkv": Linear(("blocks/attn/qkv",)),
    "proj": Linear(("blocks/attn/proj",), inputs=2),
    "fc1": Linear(("blocks/fc1/kernel",)),
    "fc2": Linear(("blocks/fc2/kernel",)),
    "ada": Linear(("blocks/ada/kernel", "shared_ada/kernel")),
    "head_ada": Linear(("head_ada/kernel",)),
    "head": Linear(("head/kernel",)),
}


class Axes(NamedTuple):
    """The sizes of some axes of an array, and their logical names."""

    sizes: tuple[int, ...]
    names: tuple[str | None, ...]


class Target(NamedTuple):
    """A kernel that LoRA changes.

    Attributes:
      path: its path among the transformer's parameters, joined by "/".
      layers: the axis of stacked layers; no axis for a kernel of one layer.
      inputs: the axes that a product sums over.
      outputs: the axes of the product.
    """

    path: str
    layers: Axes
    inputs: Axes
    outputs: Axes


def find(model: TransformerConfig, names: Sequence[str]) -> dict[str, Target]:
    """Returns the kernels of some linears of a transformer, by the linears' names.

    Raises:
      UserError: the transformer has no such linear.
    """
    return {name: _target(_kernels(model), name) for name in names}


@functools.cache
def _kernels(model: TransformerConfig) -> dict[str, Any]:
    """Returns the boxed shapes of all parameters by their paths; tracing a model takes a second."""
    return flatten_dict(init.boxed_shapes(model), sep="/")


def _target(kernels: dict[str, Any], name: str) -> Target:
    linear = LINEARS[name]
    path = next((path for path in linear.paths if path in kernels), None)
    present = [other for other, each in LINEARS.items() if set(each.paths) & set(kernels)]
    require(path, "adapter.targets", repr(name), f"of the model's {', '.join(present)}")
    assert path is not None
    kernel = kernels[path]
    stacked = int(kernel.names[0] == LAYERS)
    first_output = stacked + linear.inputs

    def axes(first: int, last: int | None) -> Axes:
        return Axes(kernel.value.shape[first:last], tuple(kernel.names[first:last]))

    return Target(path, axes(0, stacked), axes(stacked, first_output), axes(first_output, None))
