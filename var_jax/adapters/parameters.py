"""An adapter's trained parameters: their start, and the model's parameters with them merged in.

They are {"lora": {linear: {"a", "b"}}, "class_rows": changes of the rows that new classes start
from}, each only where the adapter has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from var_jax.adapters import class_rows, lora, targets
from var_jax.config.adapter_config import TARGETS, AdapterConfig
from var_jax.config.model import TransformerConfig
from var_jax.devices.sharding import constrain

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def init_params(config: AdapterConfig, model: TransformerConfig, key: jax.Array) -> dict[str, Any]:
    """Returns an adapter's parameters at their start, boxed with their logical axis names.

    With them the adapted model is the frozen one to the last bit, and the row of a new class is the
    one that it starts from.

    Raises:
      UserError: the model has no linear of a name.
    """
    params: dict[str, Any] = {}
    if kernels := targets.find(model, config.target_names):
        params["lora"] = {
            # The key of a linear does not depend on the choice of the others.
            name: lora.init_factors(
                target, config.rank, jax.random.fold_in(key, TARGETS.index(name))
            )
            for name, target in kernels.items()
        }
    if config.class_names:
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("classes", "embed"))
        shape = (len(config.class_names), model.width)
        params["class_rows"] = zeros(key, shape, jnp.float32)
    return params


def merged(
    config: AdapterConfig,
    model: TransformerConfig,
    params: Mapping[str, Any],
    base: Mapping[str, Any],
    starts: Float[Array, "new w"],
) -> dict[str, Any]:
    """Returns the parameters of the adapted transformer, as a pure function to be differentiated.

    Args:
      model: the transformer, with its new classes.
      params: the adapter's parameters.
      base: the frozen transformer's parameters, in float32.
      starts: the rows that new classes start from.
    """
    leaves: dict[str, Any] = flatten_dict(base, sep="/")
    for name, target in targets.find(model, config.target_names).items():
        change = lora.delta(target, params["lora"][name], config.scale)
        names = (*target.layers.names, *target.inputs.names, *target.outputs.names)
        leaves[target.path] = constrain(leaves[target.path] + change, *names)
    if config.class_names:
        new = starts + params["class_rows"]
        leaves["class_embed"] = class_rows.extended(leaves["class_embed"], new)
    return unflatten_dict(leaves, sep="/")


def shapes(config: AdapterConfig, model: TransformerConfig) -> dict[str, list[int]]:
    """Returns the shapes of an adapter's parameters by their names, joined by "/".

    Raises:
      UserError: the model has no linear of a name.
    """
    boxed = jax.eval_shape(lambda key: init_params(config, model, key), jax.random.key(0))
    leaves: dict[str, Any] = flatten_dict(nn.meta.unbox(boxed), sep="/")
    return {name: list(leaf.shape) for name, leaf in leaves.items()}
