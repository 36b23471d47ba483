"""Sampling within a scale by a logit refiner: token after token in raster order, with a cache.

Source: Logit Refiner (arXiv 2609.11804).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from var_jax.config.model import ModelConfig
from var_jax.models import refiner

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def num_refined(config: ModelConfig) -> int:
    """Returns how many leading scales are sampled token by token; 0 without a refiner."""
    if config.refiner is None or config.transformer is None:
        return 0
    return len(config.refiner.scales(config.transformer))


def sample_scale(
    config: ModelConfig,
    weights: dict[str, Any],
    k: int,
    predictions: refiner.Predictions,
    choose: Callable[[Float[Array, "rows v"], Any], Int[Array, " b"]],
) -> Int[Array, "b n"]:
    """Returns the tokens of scale k, each from its refined logits.

    Args:
      config: that of a model with a refiner.
      weights: {"tokenizer", "transformer", "refiner"}.
      predictions: the transformer's own for the scale, of all rows of guidance.
      choose: returns the batch's tokens at a place of the scale from all rows' refined logits.
    """
    assert config.refiner is not None and config.transformer is not None  # `num_refined` asks
    module = refiner.Refiner(config.refiner, config.transformer)
    apply = functools.partial(module.apply, {"params": weights["refiner"]})
    logits, hidden = predictions
    change, state = apply(k, hidden, method="first_token")
    first = choose(logits[:, 0] + change, 0)
    copies = len(logits) // len(first)

    def step(carry, place):
        token, state = carry
        change, state = apply(jnp.tile(token, copies), state, method="next_token")
        own = jax.lax.dynamic_index_in_dim(logits, place, axis=1, keepdims=False)
        token = choose(own + change, place)
        return (token, state), token

    _, later = jax.lax.scan(step, (first, state), jnp.arange(1, logits.shape[1]))
    return jnp.concatenate([first[None], later]).T
