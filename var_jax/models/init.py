"""The parameters that a model's config describes: freshly initialized, or only their shapes.

All code that makes or counts parameters calls this module: training states, meshes, benchmarks,
compilation ahead of time, and the table of published weights.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from var_jax.config.model import TokenizerConfig, TransformerConfig
from var_jax.models import int8_weights, networks
from var_jax.models.tokenizer import Tokenizer


def init_params(config: TokenizerConfig | TransformerConfig, key: jax.Array) -> Any:
    """Returns freshly initialized parameters, boxed with their logical axis names.

    Raises:
      UserError: a size is still 0, which leaves it to the data, or this version has no such
        objective.
    """
    if isinstance(config, TokenizerConfig):
        return Tokenizer(config).init(key, jnp.zeros((1, *config.image_shape)))["params"]
    if config.param_dtype == "int8":
        floats = dataclasses.replace(config, param_dtype=config.float_param_dtype)
        return int8_weights.quantized(init_params(floats, key))
    network = networks.find(config)
    return network.module(config).init(key, *network.example_inputs(config))["params"]


def fresh_params(config: TokenizerConfig | TransformerConfig, key: jax.Array) -> Any:
    """Returns freshly initialized parameters as plain arrays on the default device.

    Benchmarks and experiments use it; a training run creates its parameters sharded over its
    devices.
    """
    return jax.jit(lambda key: nn.meta.unbox(init_params(config, key)))(key)


def boxed_shapes(config: TokenizerConfig | TransformerConfig) -> Any:
    """Returns shapes and dtypes of the parameters, boxed with their logical axis names."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))


def param_shapes(config: TokenizerConfig | TransformerConfig) -> Any:
    """Returns shapes and dtypes of the parameters as nested dicts; nothing is allocated."""
    return nn.meta.unbox(boxed_shapes(config))
