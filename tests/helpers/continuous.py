"""Tiny autoencoders without a quantizer: a plain one and one with a KL term."""

import dataclasses
import functools

import jax

from helpers import small
from var_jax import Pipeline
from var_jax.config.model import ModelConfig, TokenizerConfig
from var_jax.config.scales import Scales
from var_jax.models import init

KINDS = ("none", "kl")


def tokenizer(codes: str) -> TokenizerConfig:
    return dataclasses.replace(small.TOKENIZER, scales=Scales.parse("4"), codes=codes)


@functools.cache
def pipeline(codes: str) -> Pipeline:
    """Returns the autoencoder alone, with fresh weights."""
    config = tokenizer(codes)
    params = init.fresh_params(config, jax.random.key(0))
    return Pipeline(ModelConfig(config), {"tokenizer": params})
