"""A tiny masked-prediction model over one map of 3x4 tokens."""

import dataclasses
import functools

import jax

from helpers import small
from var_jax import Pipeline
from var_jax.config.model import ModelConfig, TransformerConfig
from var_jax.config.scales import Scales
from var_jax.config.train import TrainConfig
from var_jax.models import init
from var_jax.objectives.frozen_tokenizer import FrozenTokenizer
from var_jax.objectives.masked import Masked

MAP = Scales.parse("3x4")
TOKENS = MAP.total
MASK = 16  # V, the token that means "masked"
TOKENIZER = dataclasses.replace(small.TOKENIZER, scales=MAP)


def transformer(**changes) -> TransformerConfig:
    """Returns the small transformer's config for masked prediction, one block deep."""
    settings = {"objective": "masked", "scales": MAP, "depth": 1, "drop_path": 0.0, **changes}
    return dataclasses.replace(small.TRANSFORMER, **settings)


@functools.cache
def params(**changes) -> dict:
    """Returns weights of both parts."""
    return {
        "tokenizer": init.fresh_params(TOKENIZER, jax.random.key(0)),
        "transformer": init.fresh_params(transformer(**changes), jax.random.key(1)),
    }


def pipeline(**changes) -> Pipeline:
    return Pipeline(ModelConfig(TOKENIZER, transformer(**changes)), params(**changes))


def train_config(data_dir, **changes) -> TrainConfig:
    """Returns a run of it."""
    settings = {"tokenizer": TOKENIZER, "transformer": transformer(), **changes}
    return small.train_config("transformer", data_dir, **settings)


def objective(config: TrainConfig) -> Masked:
    return Masked(config, FrozenTokenizer(params()["tokenizer"]))
