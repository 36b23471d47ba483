"""Compiled programs of a model: encoding, decoding, reconstruction, and teacher-forced logits."""

import functools
from typing import Any

import jax

from var_jax.config.model import ModelConfig
from var_jax.models import networks, refiner
from var_jax.models.tokenizer import Tokenizer


@functools.partial(jax.jit, static_argnames="config")
def encode(config: ModelConfig, params: dict[str, Any], images: jax.Array) -> jax.Array:
    """Returns tokens (b, L) of images (b, H, W, c) in [-1, 1]."""
    return _tokenizer(config, params)(images, method="encode")


@functools.partial(jax.jit, static_argnames="config")
def decode(config: ModelConfig, params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """Returns images (b, H, W, c) in [-1, 1] of tokens (b, L)."""
    return _tokenizer(config, params)(tokens, method="decode")


@functools.partial(jax.jit, static_argnames="config")
def reconstruct(config: ModelConfig, params: dict[str, Any], images: jax.Array) -> list[jax.Array]:
    """Returns images in [-1, 1] decoded after the first scale, the first two, ... and all.

    Without a quantizer there is one.
    """
    return _tokenizer(config, params)(images, method="by_scale")


@functools.partial(jax.jit, static_argnames="config")
def logits(
    config: ModelConfig, params: dict[str, Any], tokens: jax.Array, labels: jax.Array
) -> jax.Array:
    """Returns teacher-forced logits (b, L, V) of tokens (b, L), without dropout."""
    network = networks.find(config.transformer)
    inputs = network.inputs_of_tokens(_tokenizer(config, params), tokens)
    if config.refiner is not None:
        base = refiner.predictions(config.transformer, params["transformer"], inputs, labels)
        module = refiner.Refiner(config.refiner, config.transformer)
        return module.apply({"params": params["refiner"]}, *base, tokens)
    transformer = network.module(config.transformer)
    return transformer.apply({"params": params["transformer"]}, inputs, labels)


def _tokenizer(config: ModelConfig, params: dict[str, Any]):
    return functools.partial(Tokenizer(config.tokenizer).apply, {"params": params["tokenizer"]})
