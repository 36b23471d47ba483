"""Next-token prediction (VQGAN, LlamaGen): one token of a map after the other, in a fixed order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from var_jax.config.train import TrainConfig
from var_jax.models.token_transformer import TokenTransformer
from var_jax.objectives import token_losses
from var_jax.objectives.frozen_tokenizer import FrozenTokenizer
from var_jax.objectives.latent import LatentObjective
from var_jax.objectives.step_types import Batch, Metrics
from var_jax.ops import orders

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PRNGKeyArray


class NextToken(LatentObjective):
    """The training objective of the next-token transformer.

    Its inputs are rows of its own embedding table, so that it needs only tokens.
    """

    teacher_parts = ()

    def __init__(self, config: TrainConfig, frozen: FrozenTokenizer):
        super().__init__(config, frozen)
        # An order that does not fit this map is refused here, before anything is written.
        orders.forward(self.model.order, self.model.scales.finest)

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
        """Returns the mean cross-entropy over the tokens, and its parts.

        Class dropout and drop-path act when `rng` is given.
        """
        tokens = batch["tokens"]
        logits = self.logits(params, frozen, tokens, batch["label"], rng)
        losses = token_losses.cross_entropy(logits, tokens, self.config.loss.label_smoothing)
        loss = jnp.mean(losses)
        return loss, {"loss": loss, **token_losses.token_metrics(self.scales(), logits, tokens)}

    def eval_metrics(self, params: Any, frozen: FrozenTokenizer, batch: Batch) -> Metrics:
        """Returns `token_metrics` of a held-out batch, summed over the rows that count.

        Some are given with class dropout, too (`token_losses.held_out`).
        """
        tokens, weights = batch["tokens"], batch["mask"].astype(jnp.float32)

        def measure(labels: Int[Array, " b"]) -> Metrics:
            logits = self.logits(params, frozen, tokens, labels)
            return token_losses.token_metrics(self.scales(), logits, tokens, weights)

        return token_losses.held_out(measure, batch["label"], self.model)

    def logits(
        self,
        params: Any,
        frozen: FrozenTokenizer,
        tokens: Int[Array, "b L"],
        labels: Int[Array, " b"],
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b L v"]:
        """Returns the logits of every token from the ones before it, with dropout by `rng`."""
        return TokenTransformer(self.model).apply({"params": params}, tokens, labels, rng)
