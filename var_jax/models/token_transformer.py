"""The next-token transformer: logits of each token of a map from those before it and a class.

Sources: VQGAN (arXiv 2012.09841), section 3.2; LlamaGen (arXiv 2406.06525). The blocks are those of
next-scale prediction, so that the two differ only in their predictions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from var_jax.config.model import TransformerConfig
from var_jax.config.strict import require_from_data
from var_jax.devices.sharding import constrain, parameter
from var_jax.models.block_stack import block_stack
from var_jax.models.dropout import drop
from var_jax.models.transformer_block import (
    Cache,
    Linear,
    Modulation,
    TokenCache,
    head_norm,
    layer_norm,
    spread_norm,
)
from var_jax.ops import orders
from var_jax.ops.mixed_precision import add_bias

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PRNGKeyArray


class TokenState(NamedTuple):
    """The state that generation carries from one token to the next.

    Attributes:
      cache: keys and values of all layers and positions, filled up to the last token.
      head: the head's scale and shift.
    """

    cache: TokenCache
    head: Float[Array, "b 2 w"]


class TokenTransformer(nn.Module):
    """The transformer over one token map in a fixed order, conditioned on a class.

    Its sequence is the class, then the tokens in order without the last; the output at each place
    predicts the next token. Training calls it on all tokens at once; sampling calls `first_token`
    and then `next_token` for every further one.
    """

    config: TransformerConfig

    def setup(self):
        c = self.config
        require_from_data("transformer.num_classes", c.num_classes)
        self.order = orders.forward(c.order, c.scales.finest)
        stored = jnp.dtype(c.float_param_dtype)
        normal = nn.initializers.normal(c.init_std)

        def table(name: str, rows: int, axis: str):
            return parameter(self, name, normal, (rows, c.width), (axis, "embed"), stored)

        self.token_embed = table("token_embed", c.vocab_size, "code")
        self.class_embed = table("class_embed", c.num_classes + 1, "classes")
        self.pos_embed = table("pos_embed", c.scales.total, "positions")
        self.blocks = block_stack(c)
        if c.class_conditioning == "start_token":
            self.head_norm = head_norm(self, c)
        else:
            self.head_ada = Modulation(2, c, init="head")
            if c.shared_adaln:
                self.shared_ada = Modulation(6, c)
        self.head = Linear((c.vocab_size,), ("embed", "vocab"), c, c.init_head, wide=True)

    def __call__(
        self,
        tokens: Int[Array, "b L"],
        labels: Int[Array, " b"],
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b L v"]:
        """Returns logits by teacher forcing; both they and the tokens are in raster order.

        Args:
          labels: class ids; `num_classes` means "no class".
          rng: key of class dropout and drop-path, which act only in training; None for neither.
        """
        labels, keep = drop(self.config, labels, rng)
        cond = self._condition(labels)
        embedded = self._embed(tokens[:, self.order[:-1]])
        x = self._add_positions(jnp.concatenate([cond[:, None], embedded], axis=1), self.pos_embed)
        x = constrain(x, "batch", "tokens", "act_embed")
        x, _ = self.blocks(x, None, keep, self._block_condition(cond))
        return self._logits(x, self._head_condition(cond))[:, orders.inverse(self.order)]

    def first_token(self, labels: Int[Array, " b"]) -> tuple[Float[Array, "b v"], TokenState]:
        """Returns the logits of the first token in order, and the state for the second."""
        c, cond = self.config, self._condition(labels)
        x = self._add_positions(cond[:, None], self.pos_embed[:1])
        x, new = self.blocks(x, Cache(), None, self._block_condition(cond))
        padding = ((0, 0), (0, 0), (0, c.scales.total - 1), (0, 0), (0, 0))
        length = jnp.ones((c.depth,), jnp.int32)
        keys, values = jnp.pad(new.k, padding), jnp.pad(new.v, padding)
        cache = TokenCache(keys, values, new.modulations, length)
        head = self._head_condition(cond)
        return self._logits(x, head)[:, 0], TokenState(cache, head)

    def next_token(
        self, token: Int[Array, " b"], state: TokenState
    ) -> tuple[Float[Array, "b v"], TokenState]:
        """Returns the logits of the next token in order, and the state for the one after it.

        Args:
          token: the token that was sampled from the last logits.
          state: the state that `first_token` or the last `next_token` returned.
        """
        cache, head = state
        position = cache.length[0]
        place = jax.lax.dynamic_slice_in_dim(self.pos_embed, position, 1)
        x = self._add_positions(self._embed(token[:, None]), place)
        x, new = self.blocks(x, cache, None, None)

        def insert(all_positions: jax.Array, one: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(all_positions, one, position, axis=2)

        cache = TokenCache(
            insert(cache.k, new.k), insert(cache.v, new.v), cache.modulations, cache.length + 1
        )
        return self._logits(x, head)[:, 0], TokenState(cache, head)

    def _embed(self, tokens):
        return jnp.take(self.token_embed, tokens, axis=0).astype(jnp.dtype(self.config.dtype))

    def _condition(self, labels):
        """Returns the class embeddings (b, w)."""
        return jnp.take(self.class_embed, labels, axis=0).astype(jnp.dtype(self.config.dtype))

    def _block_condition(self, cond):
        c = self.config
        return self.shared_ada(cond) if c.shared_adaln and c.class_conditioning == "adaln" else cond

    def _head_condition(self, cond):
        """Returns the scale and shift before the head (b, 2, w)."""
        if self.config.class_conditioning == "adaln":
            return self.head_ada(cond)
        return spread_norm(self.head_norm, cond)

    def _add_positions(self, x, places):
        return add_bias(x, places, jnp.dtype(self.config.gradient_dtype))

    def _logits(self, x, head):
        logits = self.head(layer_norm(x, head[:, 0], head[:, 1]))
        return constrain(logits, "batch", "tokens", "act_vocab")
