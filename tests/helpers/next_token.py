"""A tiny next-token model over one map of 4x4 tokens."""

import dataclasses
import functools

import jax

from helpers import small
from var_jax import Pipeline
from var_jax.config.model import ModelConfig, TransformerConfig
from var_jax.config.scales import Scales
from var_jax.models import init

MAP = Scales.parse("4")
TOKENIZER = dataclasses.replace(small.TOKENIZER, scales=MAP)


def transformer(**changes) -> TransformerConfig:
    """Returns the small transformer's config for next-token prediction, one block deep."""
    return dataclasses.replace(
        small.TRANSFORMER, objective="next_token", scales=MAP, depth=1, drop_path=0.0, **changes
    )


@functools.cache
def params(**changes) -> dict:
    """Returns weights of both parts, which are the same for every order."""
    return {
        "tokenizer": init.fresh_params(TOKENIZER, jax.random.key(0)),
        "transformer": init.fresh_params(transformer(**changes), jax.random.key(1)),
    }


def pipeline(order: str = "raster", **changes) -> Pipeline:
    """Returns the model with some order."""
    config = ModelConfig(TOKENIZER, transformer(order=order, **changes))
    return Pipeline(config, params(**changes))
