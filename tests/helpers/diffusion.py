"""A tiny diffusion model over a map of 4x4 positions."""

import dataclasses
import functools

import jax
import numpy as np

from helpers import small
from var_jax import Pipeline
from var_jax.config.model import ModelConfig, TransformerConfig
from var_jax.models import init

TOKENIZER = dataclasses.replace(small.TOKENIZER, scales=small.Scales.parse("1,2,4"))


def transformer(**changes) -> TransformerConfig:
    """Returns the small transformer's config for diffusion."""
    defaults = TransformerConfig()
    settings = {
        "objective": "diffusion",
        "scales": TOKENIZER.scales,
        "drop_path": 0.0,
        **{name: getattr(defaults, name) for name in ("init_head", "init_adaln_gamma")},
    }
    return dataclasses.replace(small.TRANSFORMER, **{**settings, **changes})


@functools.cache
def pipeline(**changes) -> Pipeline:
    """Returns a model with random weights, also where training starts from zeros."""
    config = ModelConfig(TOKENIZER, transformer(**changes))
    random = np.random.RandomState(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return (0.2 * random.standard_normal(leaf.shape)).astype(np.float32)

    weights = jax.tree.map(draw, init.param_shapes(config.transformer))
    weights["latent_std"] = np.full_like(weights["latent_std"], 0.5)
    tokenizer = init.fresh_params(TOKENIZER, jax.random.key(0))
    return Pipeline(config, {"tokenizer": tokenizer, "transformer": weights})
