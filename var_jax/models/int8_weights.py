"""The blocks' weight matrices in int8, so that sampling reads a quarter of float32's bytes.

A value is rounded to one of 255 levels of its output channel, whose largest magnitude is the last.
Activations stay floats: a layer's matrices become floats where the scan over layers comes to it, so
that those of one layer are in memory at a time. Embeddings, biases and the head stay in bfloat16.

Source: Dettmers et al. 2022, LLM.int8(), section 2 (symmetric quantization by vectors).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from var_jax.config.transformer_config import INT8_REST, TransformerConfig

LEVELS = 127  # on either side of zero
VALUES, SCALE = "int8", "scale"  # keys of a matrix
# Number of axes after that of the layers which a matrix's product sums over, by parameter name.
INPUT_AXES = {"qkv": 1, "proj": 2, "kernel": 1}


def quantized(params: dict[str, Any]) -> dict[str, Any]:
    """Returns a transformer's parameters with its blocks' matrices in int8, the rest in bfloat16.

    Args:
      params: floats, or shapes under `jax.eval_shape`; boxed with logical axis names or plain.
    """
    rest = {name: part for name, part in params.items() if name != "blocks"}
    blocks = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _quantized_leaf(path[-1].key, leaf), params["blocks"], is_leaf=_is_boxed
    )
    return {**jax.tree.map(lambda x: x.astype(INT8_REST), rest), "blocks": blocks}


def dequantized(block: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Returns the parameters of one layer with its matrices in `dtype`."""

    def to_floats(node):
        if not _is_matrix(node):
            return node
        return (node[VALUES].astype(jnp.float32) * node[SCALE]).astype(dtype)

    return jax.tree.map(to_floats, block, is_leaf=_is_matrix)


def bytes_of(config: TransformerConfig, in_blocks: int, elsewhere: int) -> int:
    """Returns the bytes of weights, without the scales of int8, a number per output channel.

    Args:
      in_blocks: number of weights in the blocks' matrices, each as often as it is read.
      elsewhere: the same of all other weights.
    """
    stored, rest = map(jnp.dtype, (config.param_dtype, config.float_param_dtype))
    return stored.itemsize * in_blocks + rest.itemsize * elsewhere


def _quantized_leaf(name: str, leaf: Any) -> Any:
    """Returns a block's parameter as a matrix of int8, or in bfloat16 if it is none."""
    values = nn.meta.unbox(leaf)
    if name not in INPUT_AXES:
        return _boxed_as(leaf, values.astype(INT8_REST))
    summed = tuple(range(1, 1 + INPUT_AXES[name]))
    wide = values.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=summed, keepdims=True)
    scale = jnp.where(largest > 0, largest / LEVELS, 1.0)
    levels = jnp.round(wide / scale).astype(jnp.int8)
    return {VALUES: _boxed_as(leaf, levels), SCALE: _boxed_as(leaf, scale, without=summed)}


def _boxed_as(leaf: Any, values: jax.Array, without: tuple[int, ...] = ()) -> Any:
    """Returns values with the logical axis names of a leaf, but those of the axes `without`."""
    if not _is_boxed(leaf):
        return values
    names = [None if axis in without else name for axis, name in enumerate(leaf.names)]
    return leaf.replace(value=values, names=tuple(names))


def _is_boxed(node: Any) -> bool:
    return isinstance(node, nn.Partitioned)


def _is_matrix(node: Any) -> bool:
    return isinstance(node, dict) and node.keys() == {VALUES, SCALE}
