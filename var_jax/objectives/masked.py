"""Masked prediction (MaskGIT): the masked tokens of a map, from the visible ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from var_jax.models.masked_transformer import MaskedTransformer
from var_jax.objectives import token_losses
from var_jax.objectives.frozen_tokenizer import FrozenTokenizer
from var_jax.objectives.latent import LatentObjective
from var_jax.objectives.step_types import Batch, Metrics
from var_jax.ops import mask_schedule
from var_jax.ops.argmax import argmax

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

HELD_OUT_MASKS = 4


class Masked(LatentObjective):
    """The training objective of the masked-prediction transformer (MaskGIT).

    Its inputs are rows of its own embedding table, so that it needs only tokens.

    Held-out images are measured under the same `HELD_OUT_MASKS` masks in every evaluation
    (`mask_schedule.fixed_masks`), so that no metric depends on a random number.
    """

    teacher_parts = ()

    def loss(
        self,
        params: Any,
        frozen: FrozenTokenizer,
        batch: Batch,
        rng: jax.Array | None,
        *,
        variant: Any = None,
        step: jax.Array | int = 0,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the mean cross-entropy over all masked tokens of the batch, and its parts.

        Masks are random, and class dropout and drop-path act, when `rng` is given; otherwise the
        masks are the held-out ones in turn.
        """
        tokens = batch["tokens"]
        rows, length = tokens.shape
        if rng is None:
            fixed = mask_schedule.fixed_masks(HELD_OUT_MASKS, length)
            masked, drop_rng = jnp.asarray(fixed)[jnp.arange(rows) % HELD_OUT_MASKS], None
        else:
            mask_rng, drop_rng = jax.random.split(rng)
            masked = mask_schedule.random_masks(mask_rng, rows, length)
        logits = self._logits(params, tokens, masked, batch["label"], drop_rng)

        weights = masked / jnp.sum(masked)
        losses = token_losses.cross_entropy(logits, tokens, self.config.loss.label_smoothing)
        loss = jnp.sum(losses * weights)
        return loss, {"loss": loss, **_metrics(logits, tokens, weights)}

    def eval_metrics(self, params: Any, frozen: FrozenTokenizer, batch: Batch) -> Metrics:
        """Returns metrics of a held-out batch, summed over the rows that count.

        Some are given as class dropout makes them, too (`token_losses.held_out`). "loss_mean" is
        over the masked tokens of all masks, as in training; "loss_mask" is over those of each mask,
        from the most tokens masked to the fewest.
        """
        tokens, counts = batch["tokens"], batch["mask"].astype(jnp.float32)
        masks = jnp.asarray(mask_schedule.fixed_masks(HELD_OUT_MASKS, tokens.shape[1]))
        share = jnp.sum(masks, axis=1) / jnp.sum(masks)  # of each mask in the mean over all

        def measure(labels: Int[Array, " b"]) -> Metrics:
            def under_mask(mask: Bool[Array, " L"]) -> Metrics:
                masked = jnp.broadcast_to(mask, tokens.shape)
                logits = self._logits(params, tokens, masked, labels)
                return _metrics(logits, tokens, counts[:, None] * mask / jnp.sum(mask))

            by_mask = jax.lax.map(under_mask, masks)
            means = {name: jnp.sum(share * values) for name, values in by_mask.items()}
            return {**means, "loss_mask": by_mask["loss_mean"]}

        return token_losses.held_out(measure, batch["label"], self.model)

    def _logits(
        self,
        params: Any,
        tokens: Int[Array, "b L"],
        masked: Bool[Array, "b L"],
        labels: Int[Array, " b"],
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b L v"]:
        inputs = jnp.where(masked, self.model.vocab_size, tokens)
        return MaskedTransformer(self.model).apply({"params": params}, inputs, labels, rng)


def _metrics(
    logits: Float[Array, "b L v"], tokens: Int[Array, "b L"], weights: Float[Array, "b L"]
) -> Metrics:
    """Returns the weighted sums of cross-entropy, without label smoothing, and accuracy.

    They are given under the names of means over all scales and over the last, which is the only
    one, so that whatever reads other objectives' metrics reads these.
    """
    loss = jnp.sum(weights * token_losses.cross_entropy(logits, tokens))
    accuracy = jnp.sum(weights * (argmax(logits) == tokens))
    return {
        "loss_mean": loss,
        "loss_last": loss,
        "accuracy_mean": accuracy,
        "accuracy_last": accuracy,
    }
