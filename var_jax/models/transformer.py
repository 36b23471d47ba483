"""The next-scale transformer: predicts a scale's tokens from the coarser scales and a class.

Source: VAR, section 3.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
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
    head_norm,
    layer_norm,
    spread_norm,
)
from var_jax.ops import masks
from var_jax.ops.mixed_precision import add_bias

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PRNGKeyArray

HIDDEN = "head_input"  # the name of the hidden states among the intermediates


class Transformer(nn.Module):
    """The transformer over tokens of all scales, conditioned on a class.

    Training calls it on all scales at once; sampling calls `next_scale` once per scale.
    """

    config: TransformerConfig

    def setup(self):
        c = self.config
        require_from_data("transformer.num_classes", c.num_classes)
        stored = jnp.dtype(c.float_param_dtype)
        normal = nn.initializers.normal(c.init_std)
        self.word_embed = Linear((c.width,), ("code", "embed"), c)

        def table(name: str, rows: int, axis: str):
            return parameter(self, name, normal, (rows, c.width), (axis, "embed"), stored)

        self.class_embed = table("class_embed", c.num_classes + 1, "classes")
        self.pos_start = table("pos_start", c.scales.lengths[0], "positions")
        self.pos_embed = table("pos_embed", c.scales.total, "positions")
        self.level_embed = table("level_embed", len(c.scales), "levels")
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
        inputs: Float[Array, "b L-l1 c"],
        labels: Int[Array, " b"],
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b L v"]:
        """Returns logits of all scales, or of the first ones, by teacher forcing.

        Args:
          inputs: the tokenizer's `teacher_input` of the true tokens, or its part for the first
            scales.
          labels: class ids; `num_classes` means "no class".
          rng: key of class dropout and drop-path, which act only in training; None for neither.
        """
        labels, keep = drop(self.config, labels, rng)
        cond = self._condition(labels)
        x = jnp.concatenate([self._start(cond), self.word_embed(inputs)], axis=1)
        x = self._add_positions(x, slice(0, x.shape[1]))
        x, _ = self.blocks(
            constrain(x, "batch", "tokens", "act_embed"), None, keep, self._block_condition(cond)
        )
        return self._logits(x, cond)

    def next_scale(
        self, k: int, inputs: Float[Array, "b l c"] | None, labels: Int[Array, " b"], cache: Cache
    ) -> tuple[Float[Array, "b l v"], Cache]:
        """Returns the logits of scale k, and the cache for scale k + 1.

        Call it for the scales in order, from 0.

        Args:
          k: index of the scale.
          inputs: the tokenizer's input for this scale; None for the first.
          labels: class ids; `num_classes` means "no class".
          cache: an empty one for the first scale, then the cache that the previous scale returned.
        """
        c, cond = self.config, self._condition(labels)
        x = self._start(cond) if k == 0 else self.word_embed(inputs)
        x = self._add_positions(x, c.scales.span(k))
        x, new = self.blocks(x, cache, None, self._block_condition(cond))
        # Scales that the next one does not see leave the cache.
        unseen = masks.first_visible(c.mask, k + 1) - masks.first_visible(c.mask, k)
        keys, values = (*cache.k, new.k)[unseen:], (*cache.v, new.v)[unseen:]
        return self._logits(x, cond), Cache(keys, values, new.modulations)

    def prefill(
        self, keep_scales: int, inputs: Float[Array, "b l-l1 c"], labels: Int[Array, " b"]
    ) -> Cache:
        """Returns the cache for scale `keep_scales` from all coarser scales, in one pass.

        It is the cache that `next_scale` would leave, scale by scale. Call it where the first
        scales are known, as for an edit.

        Args:
          keep_scales: number of known leading scales.
          inputs: the tokenizer's `teacher_input` for those scales.
          labels: class ids; `num_classes` means "no class".
        """
        c, cond = self.config, self._condition(labels)
        x = jnp.concatenate([self._start(cond), self.word_embed(inputs)], axis=1)
        x = self._add_positions(x, slice(0, c.scales.offsets[keep_scales]))
        _, new = self.blocks(x, Cache(keep_scales=keep_scales), None, self._block_condition(cond))
        coarsest = masks.first_visible(c.mask, keep_scales)
        visible = [c.scales.span(i) for i in range(coarsest, keep_scales)]
        keys = tuple(new.k[:, :, span] for span in visible)
        values = tuple(new.v[:, :, span] for span in visible)
        return Cache(keys, values, new.modulations)

    def _condition(self, labels):
        """Returns the class embeddings (b, w)."""
        return jnp.take(self.class_embed, labels, axis=0).astype(jnp.dtype(self.config.dtype))

    def _block_condition(self, cond):
        c = self.config
        return self.shared_ada(cond) if c.shared_adaln and c.class_conditioning == "adaln" else cond

    def _start(self, cond):
        """Returns the first scale's input: the class embedding plus its position embedding."""
        rows = jnp.repeat(cond[:, None], self.pos_start.shape[0], axis=1)
        return add_bias(rows, self.pos_start, jnp.dtype(self.config.gradient_dtype))

    def _add_positions(self, x, span: slice):
        """Returns x plus the level and position embeddings of the tokens in `span`."""
        levels = jnp.take(self.level_embed, self.config.scales.level_ids[span], axis=0)
        return add_bias(x, levels + self.pos_embed[span], jnp.dtype(self.config.gradient_dtype))

    def _logits(self, x, cond):
        if self.config.class_conditioning == "start_token":
            head = spread_norm(self.head_norm, cond)
        else:
            head = self.head_ada(cond)
        scale, shift = jnp.moveaxis(head, 1, 0)
        x = layer_norm(x, scale, shift)
        self.sow("intermediates", HIDDEN, x)  # for a refiner; nothing unless asked for
        return constrain(self.head(x), "batch", "tokens", "act_vocab")
