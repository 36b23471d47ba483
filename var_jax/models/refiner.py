"""The logit refiner: what a token's logits change once the tokens before it in its scale are known.

Next-scale prediction samples the tokens of a scale independently of each other. A few causal blocks
on the frozen transformer's hidden states make the choice of a token depend on those before it.
Source: Logit Refiner (arXiv 2609.11804).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.model import TransformerConfig
from var_jax.config.refiner_config import RefinerConfig
from var_jax.devices.sharding import constrain, parameter
from var_jax.models.block_stack import block_stack
from var_jax.models.transformer import HIDDEN, Transformer
from var_jax.models.transformer_block import (
    Cache,
    Linear,
    TokenCache,
    head_norm,
    layer_norm,
    spread_norm,
)
from var_jax.ops.mixed_precision import add_bias

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class Predictions(NamedTuple):
    """The results of a pass of the frozen transformer.

    Attributes:
      logits: its own logits.
      hidden: the hidden states that they are computed from.
    """

    logits: Float[Array, "b l v"]
    hidden: Float[Array, "b l w"]


class RefinerState(NamedTuple):
    """The state that sampling of a scale carries from one token to the next.

    Attributes:
      cache: keys and values of the scale's tokens up to the last one.
      inputs: the blocks' inputs of all of its tokens, but for the token before each.
    """

    cache: TokenCache
    inputs: Float[Array, "b n w"]


class Refiner(nn.Module):
    """Causal blocks over the tokens of a scale in raster order, each scale by itself.

    A token's input is the transformer's hidden state there, the embedding of the token before it
    (of a learned one at the first), and a position embedding. The output is added to the
    transformer's logits. It is 0 at initialization: the refined logits are the transformer's own.

    Attributes:
      config: the refiner's sizes.
      model: the transformer's.
    """

    config: RefinerConfig
    model: TransformerConfig

    def setup(self):
        c = self.config.blocks(self.model)
        stored, normal = jnp.dtype(c.param_dtype), nn.initializers.normal(c.init_std)
        self.scales = self.config.scales(self.model)

        def table(name: str, rows: int, axis: str):
            return parameter(self, name, normal, (rows, c.width), (axis, "embed"), stored)

        self.token_embed = table("token_embed", c.vocab_size + 1, "code")
        self.pos_embed = table("pos_embed", self.scales.total, "positions")
        self.hidden_embed = Linear((c.width,), (None, "embed"), c)
        self.blocks = block_stack(c)
        self.head_norm = head_norm(self, c)
        self.head = Linear((c.vocab_size,), ("embed", "vocab"), c, init_factor=0.0, wide=True)

    def __call__(
        self,
        logits: Float[Array, "b l v"],
        hidden: Float[Array, "b l w"],
        tokens: Int[Array, "b l"],
    ) -> Float[Array, "b l v"]:
        """Returns the refined logits by teacher forcing; those of finer scales as they are.

        Args:
          logits: the transformer's own, of all scales or the first ones.
          hidden: its hidden states there.
          tokens: the true tokens.
        """
        scales = self.scales
        x = self._embed(hidden[:, : scales.total], slice(0, scales.total))
        x = x + self._tokens(self._previous(tokens[:, : scales.total]))
        x = constrain(x, "batch", "tokens", "act_embed")
        by_scale = [self.blocks(part, None, None, None)[0] for part in scales.split(x)]
        refined = logits[:, : scales.total] + self._changes(jnp.concatenate(by_scale, axis=1))
        return jnp.concatenate([refined, logits[:, scales.total :]], axis=1)

    def first_token(
        self, k: int, hidden: Float[Array, "b n w"]
    ) -> tuple[Float[Array, "b v"], RefinerState]:
        """Returns the change of the first token's logits in scale k, and the state for the second.

        Args:
          hidden: the transformer's hidden states of the scale.
        """
        inputs = self._embed(hidden, self.scales.span(k))
        start = jnp.full((len(hidden), 1), self.model.vocab_size)
        x, new = self.blocks(inputs[:, :1] + self._tokens(start), Cache(), None, None)
        padding = ((0, 0), (0, 0), (0, self.scales.lengths[k] - 1), (0, 0), (0, 0))
        keys, values = jnp.pad(new.k, padding), jnp.pad(new.v, padding)
        length = jnp.ones((self.config.depth,), jnp.int32)
        cache = TokenCache(keys, values, new.modulations, length)
        return self._changes(x)[:, 0], RefinerState(cache, inputs)

    def next_token(
        self, token: Int[Array, " b"], state: RefinerState
    ) -> tuple[Float[Array, "b v"], RefinerState]:
        """Returns the change of the next token's logits, and the state for the one after it.

        Args:
          token: the token that was sampled last.
          state: the state that `first_token` or the last `next_token` returned.
        """
        cache, inputs = state
        position = cache.length[0]
        x = jax.lax.dynamic_slice_in_dim(inputs, position, 1, axis=1)
        x, new = self.blocks(x + self._tokens(token[:, None]), cache, None, None)

        def insert(all_positions: jax.Array, one: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(all_positions, one, position, axis=2)

        cache = TokenCache(
            insert(cache.k, new.k), insert(cache.v, new.v), cache.modulations, cache.length + 1
        )
        return self._changes(x)[:, 0], RefinerState(cache, inputs)

    def _embed(self, hidden, span: slice):
        """Returns the blocks' inputs of the tokens in `span`, but for the token before each."""
        return add_bias(
            self.hidden_embed(hidden), self.pos_embed[span], jnp.dtype(self.model.gradient_dtype)
        )

    def _tokens(self, tokens):
        return jnp.take(self.token_embed, tokens, axis=0).astype(jnp.dtype(self.model.dtype))

    def _previous(self, tokens):
        """Returns the token before each in its scale; V, beyond the codebook, before the first."""
        first = np.zeros(self.scales.total, bool)
        first[list(self.scales.offsets[:-1])] = True
        shifted = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)))
        return jnp.where(first, self.model.vocab_size, shifted)

    def _changes(self, x):
        """Returns what is added to the transformer's logits, from the blocks' outputs."""
        scale, shift = jnp.moveaxis(spread_norm(self.head_norm, x[:, 0]), 1, 0)
        return constrain(self.head(layer_norm(x, scale, shift)), "batch", "tokens", "act_vocab")


def predictions(model: TransformerConfig, params: Any, *args: Any, method: str = "__call__"):
    """Returns the result of a method of the transformer with `Predictions` in place of its logits.

    Args:
      params: the transformer's parameters.
      args: the method's arguments.
      method: "__call__", whose result is then `Predictions`, or "next_scale", with the cache.
    """
    apply = functools.partial(Transformer(model).apply, {"params": params})
    result, shown = apply(*args, method=method, mutable=["intermediates"])
    hidden = shown["intermediates"][HIDDEN][0]
    if method == "__call__":
        return Predictions(result, hidden)
    logits, cache = result
    return Predictions(logits, hidden), cache


def init_params(config: RefinerConfig, model: TransformerConfig, key: jax.Array) -> Any:
    """Returns freshly initialized parameters, boxed with their logical axis names."""
    total = config.scales(model).total
    logits, hidden = jnp.zeros((1, total, model.vocab_size)), jnp.zeros((1, total, model.width))
    return Refiner(config, model).init(key, logits, hidden, jnp.zeros((1, total), jnp.int32))[
        "params"
    ]


def param_shapes(config: RefinerConfig, model: TransformerConfig) -> Any:
    """Returns shapes and dtypes of the parameters as nested dicts; nothing is allocated."""
    make = functools.partial(init_params, config, model)
    return nn.meta.unbox(jax.eval_shape(make, jax.random.key(0)))
