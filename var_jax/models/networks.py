"""The network of each objective: its module and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from var_jax.config.model import ModelConfig, TransformerConfig
from var_jax.config.objective_keys import entry_of
from var_jax.errors import UserError
from var_jax.models.diffusion_transformer import DiffusionTransformer
from var_jax.models.masked_transformer import MaskedTransformer
from var_jax.models.token_transformer import TokenTransformer
from var_jax.models.transformer import Transformer

if TYPE_CHECKING:
    from jaxtyping import Array, Int


class Network(NamedTuple):
    """A network over the tokens of a tokenizer, or over continuous latents.

    Attributes:
      module: made of a `TransformerConfig`.
      example_inputs: returns the arguments that its parameters are initialized with.
      inputs_of_tokens: returns its first argument from tokens (b, L) by the tokenizer's `apply`;
        its second is the labels, and it returns logits. None for a network without tokens.
      takes_mask_token: whether a token V, one beyond the codebook, means "masked".
    """

    module: type[nn.Module]
    example_inputs: Callable[[TransformerConfig], tuple[Any, ...]]
    inputs_of_tokens: Callable[[Callable[..., Any], Int[Array, "b L"]], Any] | None
    takes_mask_token: bool = False


def _next_scale_example(config: TransformerConfig) -> tuple[Any, ...]:
    later_tokens = config.scales.total - config.scales.lengths[0]
    inputs = jnp.zeros((1, later_tokens, config.z_channels))
    return inputs, jnp.zeros((1,), jnp.int32)


def _tokens_example(config: TransformerConfig) -> tuple[Any, ...]:
    return jnp.zeros((1, config.scales.total), jnp.int32), jnp.zeros((1,), jnp.int32)


def _latents_example(config: TransformerConfig) -> tuple[Any, ...]:
    latents, times = jnp.zeros((1, *config.latent_shape)), jnp.zeros((1,))
    return latents, times, jnp.zeros((1,), jnp.int32)


# By `transformer.objective`.
NETWORKS = {
    "next_scale": Network(
        Transformer,
        _next_scale_example,
        lambda tokenizer, tokens: tokenizer(tokens, method="teacher_input"),
    ),
    "next_token": Network(TokenTransformer, _tokens_example, lambda _, tokens: tokens),
    "masked": Network(
        MaskedTransformer, _tokens_example, lambda _, tokens: tokens, takes_mask_token=True
    ),
    "diffusion": Network(DiffusionTransformer, _latents_example, None),
}


def find(config: TransformerConfig) -> Network:
    """Returns the network of a config's objective.

    Raises:
      UserError: this version has no such objective.
    """
    return entry_of(NETWORKS, config.objective)


def require_tokens(config: ModelConfig, purpose: str) -> None:
    """Raises UserError for a tokenizer without codes or a network without tokens.

    Args:
      purpose: the caller's aim, such as "logits".
    """
    if not config.tokenizer.quantizes:
        reason = f"tokenizer.codes is {config.tokenizer.codes!r}"
    elif config.transformer is not None and find(config.transformer).inputs_of_tokens is None:
        reason = f"objective is {config.transformer.objective!r}"
    else:
        return
    raise UserError(
        f"the model's {reason}, which has no tokens; {purpose} must be asked of a model that has"
    )
