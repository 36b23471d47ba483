"""Next-scale prediction (VAR, section 3): all tokens of a scale at once, from the coarser ones."""

from __future__ import annotations

import bisect
import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.scales import Scales
from var_jax.config.strict import require
from var_jax.config.train import TrainConfig
from var_jax.models import flops
from var_jax.models.tokenizer import Tokenizer
from var_jax.models.transformer import Transformer
from var_jax.objectives import token_losses
from var_jax.objectives.frozen_tokenizer import FrozenTokenizer
from var_jax.objectives.latent import LatentObjective
from var_jax.objectives.step_types import Batch, Metrics, StepVariant

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

FLIPS = 0xF11B  # folded into the step's key, whose own use is dropout
LEAST_NEWEST = 0.01  # the least share of its weight that a scale begins with


@dataclasses.dataclass(frozen=True)
class ScalesVariant(StepVariant):
    """How many leading scales a step trains.

    Attributes:
      num_scales: counted from the coarsest; None for all.
      since: steps done when the last of these was added; None where its loss counts fully at once.
    """

    num_scales: int | None = None
    since: int | None = None


ALL_SCALES = ScalesVariant()


class NextScale(LatentObjective):
    """The training objective of the next-scale transformer.

    Raises:
      UserError: there is not one of `scale_weights` for each scale of the tokenizer.
    """

    def __init__(self, config: TrainConfig, frozen: FrozenTokenizer):
        super().__init__(config, frozen)
        weights, scales = self.model.scale_weights, config.tokenizer.scales
        require(
            len(weights) in (0, len(scales)),
            "transformer.scale_weights",
            weights,
            f"one number for each of the {len(scales)} scales {scales} of the tokenizer",
        )

    def variant(self, done: int) -> ScalesVariant:
        """Returns the leading scales that a step trains.

        As published, training begins with the first scales. When the learning rate is warm, one
        more scale after the other is added, evenly, until `progressive` is over. The loss weight of
        an added scale grows gradually; that of the first scales does not, nor does any once all
        scales are trained.
        """
        number = self._num_scales(done)
        if number == len(self.config.tokenizer.scales):
            return ALL_SCALES
        if number == self._num_scales(0):
            return ScalesVariant(number)
        since = bisect.bisect_left(range(done), number, key=self._num_scales)
        return ScalesVariant(number, since)

    def last_variant(self) -> ScalesVariant:
        return ALL_SCALES

    def _num_scales(self, done: int) -> int:
        """Returns how many leading scales the step after `done` steps trains."""
        transformer, warmup = self.model, self.config.optimizer.warmup_steps
        every, end = (
            len(self.config.tokenizer.scales),
            self.config.steps_of(transformer.progressive),
        )
        if not transformer.progressive or done >= max(end, 1) and done > warmup:
            return every
        first = transformer.progressive_from + 1
        if done <= warmup:
            return first
        share = (done - warmup) / (end - warmup)
        return first + round(share * (every - first))

    def scales(self, variant: ScalesVariant | None = None) -> Scales:
        scales = self.config.tokenizer.scales
        if variant is None or variant.num_scales is None:
            return scales
        return Scales(scales.sizes[: variant.num_scales])

    def loss(
        self,
        params: Any,
        frozen: FrozenTokenizer,
        batch: Batch,
        rng: jax.Array | None,
        *,
        variant: ScalesVariant | None = None,
        step: jax.Array | int = 0,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the mean cross-entropy over the tokens of all scales, and its parts.

        Class dropout, drop-path and flips of tokens act when `rng` is given. In progressive
        training only the leading scales are computed. Each of their tokens has the weight that it
        has in the mean over all, and those of the scale that was added last have a growing share of
        it. `scale_weights` weigh the tokens besides.
        """
        variant = variant or ALL_SCALES
        scales = self.scales(variant)
        inputs, tokens = self._inputs_and_targets(frozen, batch["tokens"], rng)
        if variant.num_scales is not None:
            tokens = tokens[:, : scales.total]
            inputs = inputs[:, : scales.total - scales.lengths[0]]
        transformer = Transformer(self.model)
        logits = transformer.apply({"params": params}, inputs, batch["label"], rng)
        losses = token_losses.cross_entropy(logits, tokens, self.config.loss.label_smoothing)
        if variant.num_scales is None and not self.model.scale_weights:
            loss = jnp.mean(losses)
        else:
            loss = jnp.mean(losses @ self._token_weights(variant, scales, step))
        metrics = token_losses.token_metrics(scales, logits, tokens)
        if variant.num_scales is not None:  # the last scale of these is not the last of all
            metrics = {name: x for name, x in metrics.items() if not name.endswith("_last")}
        return loss, {"loss": loss, **metrics}

    def _token_weights(
        self, variant: ScalesVariant, scales: Scales, step: jax.Array | int
    ) -> Float[Array, " L"]:
        newest: Any = 1.0
        if variant.since is not None:
            warmup = max(self.config.steps_of(self.model.progressive_warmup), 1)
            newest = jnp.clip((step - variant.since + 1) / warmup, LEAST_NEWEST, 1.0)
        every = self.config.tokenizer.scales
        is_newest = scales.level_ids == len(scales) - 1
        weights = jnp.where(is_newest, newest, 1.0) / every.total
        if not self.model.scale_weights:
            return weights
        factors = np.array(self.model.scale_weights)[every.level_ids]
        return weights * (factors / factors.mean())[: scales.total]

    def _inputs_and_targets(
        self, frozen: FrozenTokenizer, tokens: Int[Array, "b L"], rng: jax.Array | None
    ) -> tuple[Float[Array, "b L-1 c"], Int[Array, "b L"]]:
        """Returns the inputs of teacher forcing and the tokens to predict.

        In training, inputs may have random tokens, which the tokens to predict then correct.
        """
        if rng is None or not self.model.flip_share:
            return self._teacher_input(frozen, tokens), tokens
        corrected = Tokenizer(self.config.tokenizer).apply(
            {"params": frozen.params},
            tokens,
            jax.random.fold_in(rng, FLIPS),
            self.model.flip_share,
            method="corrected_targets",
        )
        return corrected.inputs, corrected.tokens

    def logits(
        self,
        params: Any,
        frozen: FrozenTokenizer,
        tokens: Int[Array, "b L"],
        labels: Int[Array, " b"],
    ) -> Float[Array, "b L v"]:
        """Returns the logits of every token from the coarser scales, without dropout."""
        inputs = self._teacher_input(frozen, tokens)
        return Transformer(self.model).apply({"params": params}, inputs, labels)

    def _teacher_input(
        self, frozen: FrozenTokenizer, tokens: Int[Array, "b L"]
    ) -> Float[Array, "b L-1 c"]:
        tokenizer = Tokenizer(self.config.tokenizer)
        return tokenizer.apply({"params": frozen.params}, tokens, method="teacher_input")

    def eval_metrics(self, params: Any, frozen: FrozenTokenizer, batch: Batch) -> Metrics:
        """Returns `token_metrics` of a held-out batch, summed over the rows that count.

        Some are given as class dropout makes them, too (`token_losses.held_out`).
        """
        tokens, weights = batch["tokens"], batch["mask"].astype(jnp.float32)
        inputs = self._teacher_input(frozen, tokens)

        def measure(labels):
            logits = Transformer(self.model).apply({"params": params}, inputs, labels)
            return token_losses.token_metrics(self.scales(), logits, tokens, weights)

        return token_losses.held_out(measure, batch["label"], self.model)

    def flops_per_image(self, variant: ScalesVariant | None = None) -> float:
        # Weights of a loss, one for each of all scales, change no cost.
        model = dataclasses.replace(self.model, scales=self.scales(variant), scale_weights=())
        return flops.train_flops_per_image(model)
