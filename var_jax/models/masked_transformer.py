"""The masked-prediction transformer: logits of a map's masked tokens from the visible ones.

Source: MaskGIT (arXiv 2202.04200). The blocks are those of next-scale prediction, so that the two
differ only in their predictions: MaskGIT's own are post-LN, take the class as a token of the
sequence, and share the token embedding with the head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from var_jax.config.model import TransformerConfig
from var_jax.config.strict import require_from_data
from var_jax.devices.sharding import constrain, parameter
from var_jax.models.block_stack import block_stack
from var_jax.models.dropout import drop
from var_jax.models.transformer_block import Cache, Linear, Modulation, layer_norm
from var_jax.ops.mixed_precision import add_bias

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PRNGKeyArray


class ClassModulation(NamedTuple):
    """AdaLN's vectors of the class, which decoding keeps from pass to pass.

    Attributes:
      blocks: modulations of all layers.
      head: the head's scale and shift.
    """

    blocks: Float[Array, "layers b 6 w"]
    head: Float[Array, "b 2 w"]


class MaskedTransformer(nn.Module):
    """The bidirectional transformer over one token map, conditioned on a class.

    Token V, one beyond the codebook, stands for a masked token. Training calls it on partly masked
    maps; decoding calls `first_pass` and then `next_pass` for every further one.
    """

    config: TransformerConfig

    def setup(self):
        c = self.config
        require_from_data("transformer.num_classes", c.num_classes)
        stored = jnp.dtype(c.float_param_dtype)
        normal = nn.initializers.normal(c.init_std)

        def table(name: str, rows: int, axis: str):
            return parameter(self, name, normal, (rows, c.width), (axis, "embed"), stored)

        self.token_embed = table("token_embed", c.vocab_size + 1, "code")
        self.class_embed = table("class_embed", c.num_classes + 1, "classes")
        self.pos_embed = table("pos_embed", c.scales.total, "positions")
        self.blocks = block_stack(c)
        if c.shared_adaln:
            self.shared_ada = Modulation(6, c)
        self.head_ada = Modulation(2, c, init="head")
        self.head = Linear((c.vocab_size,), ("embed", "vocab"), c, c.init_head, wide=True)

    def __call__(
        self,
        tokens: Int[Array, "b L"],
        labels: Int[Array, " b"],
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b L v"]:
        """Returns logits of all tokens, visible ones too.

        Args:
          tokens: from 0 to V; V means "masked".
          labels: class ids; `num_classes` means "no class".
          rng: key of class dropout and drop-path, which act only in training; None for neither.
        """
        labels, keep = drop(self.config, labels, rng)
        cond = self._condition(labels)
        x, _ = self.blocks(self._embed(tokens), None, keep, self._block_condition(cond))
        return self._logits(x, self.head_ada(cond))

    def first_pass(
        self, tokens: Int[Array, "b L"], labels: Int[Array, " b"]
    ) -> tuple[Float[Array, "b L v"], ClassModulation]:
        """Returns the logits of all tokens, and the class modulation for further passes."""
        cond = self._condition(labels)
        x, new = self.blocks(self._embed(tokens), Cache(), None, self._block_condition(cond))
        head = self.head_ada(cond)
        return self._logits(x, head), ClassModulation(new.modulations, head)

    def next_pass(
        self, tokens: Int[Array, "b L"], modulation: ClassModulation
    ) -> Float[Array, "b L v"]:
        """Returns logits of all tokens.

        Args:
          modulation: as `first_pass` returned it.
        """
        # Keys and values are cached nowhere: with every pass all tokens may have changed.
        cache = Cache(modulations=modulation.blocks)
        x, _ = self.blocks(self._embed(tokens), cache, None, None)
        return self._logits(x, modulation.head)

    def _embed(self, tokens):
        c = self.config
        x = jnp.take(self.token_embed, tokens, axis=0).astype(jnp.dtype(c.dtype))
        x = add_bias(x, self.pos_embed, jnp.dtype(c.gradient_dtype))
        return constrain(x, "batch", "tokens", "act_embed")

    def _condition(self, labels):
        """Returns the class embeddings (b, w)."""
        return jnp.take(self.class_embed, labels, axis=0).astype(jnp.dtype(self.config.dtype))

    def _block_condition(self, cond):
        return self.shared_ada(cond) if self.config.shared_adaln else cond

    def _logits(self, x, head):
        logits = self.head(layer_norm(x, head[:, 0], head[:, 1]))
        return constrain(logits, "batch", "tokens", "act_vocab")
