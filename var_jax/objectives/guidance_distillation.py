"""Training of an adapter that gives in one pass what the frozen model gives under guidance.

Classifier-free guidance needs a second, unconditional pass of the network for every token. Here the
frozen model's guided prediction is the target of the same model with an adapter merged in, on the
inputs of teacher forcing; sampled without guidance, the adapted model then needs one pass (Meng et
al. 2023, arXiv 2210.03142, distill diffusion so; here it is done with logits).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.model import ModelConfig
from var_jax.config.strict import require
from var_jax.config.train import TrainConfig
from var_jax.errors import UserError
from var_jax.objectives import frozen_base, token_losses
from var_jax.objectives.adapter_training import AdapterTraining
from var_jax.objectives.frozen_base import FrozenBase
from var_jax.objectives.step_types import Batch, Metrics, StepVariant
from var_jax.sampling import guidance, sampler_registry, settings
from var_jax.sampling.objective_sampler import Prepared

if TYPE_CHECKING:
    from etils import epath
    from jaxtyping import Array, Float

DIVERGENCE = "guidance_divergence"  # the metric
FORWARD_PASSES = 2  # of the frozen model; a training step counts as three


DISTILLABLE = ("next_scale", "next_token")  # objectives that predict each token once, in order


class GuidanceDistillation(AdapterTraining):
    """The objective of an adapter that learns the guided predictions of the frozen model.

    The loss is the mean over tokens of the divergence KL(guided || adapted). Labels are never
    dropped, as the adapted model is sampled with a class.
    """

    def __init__(self, config: TrainConfig, frozen: FrozenBase):
        super().__init__(config, frozen)
        self._strengths = strengths(config)

    @classmethod
    def load_frozen(
        cls, config: TrainConfig, workdir: epath.Path
    ) -> tuple[TrainConfig, FrozenBase]:
        dropout = frozen_base.read_base(config).transformer.class_dropout
        require(
            dropout > 0,
            f"transformer.class_dropout of the model in adapter.base {config.adapter.base}",
            dropout,
            "above 0 with adapter.cfg: guidance needs a trained row for no class",
        )
        return super().load_frozen(config, workdir)

    def variant(self, done: int) -> StepVariant:
        return self.last_variant()  # a base's progressive training is no part of this

    def loss(
        self,
        params: Any,
        frozen: FrozenBase,
        batch: Batch,
        rng: jax.Array | None,
        *,
        variant: Any = None,
        step: jax.Array | int = 0,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the mean divergence of the adapted from the guided predictions, and metrics.

        There is no dropout of any kind.
        """
        logits = self._adapted_logits(params, frozen, batch)
        loss = jnp.mean(self._divergences(logits, frozen, batch))
        metrics = token_losses.token_metrics(self.scales(), logits, batch["tokens"])
        return loss, {"loss": loss, **metrics}

    def eval_metrics(self, params: Any, frozen: FrozenBase, batch: Batch) -> Metrics:
        """Returns the divergence and `token_metrics` of a held-out batch, summed over its rows."""
        weights = batch["mask"].astype(jnp.float32)
        logits = self._adapted_logits(params, frozen, batch)
        divergences = jnp.mean(self._divergences(logits, frozen, batch), axis=1)
        metrics = token_losses.token_metrics(self.scales(), logits, batch["tokens"], weights)
        return {DIVERGENCE: weights @ divergences, **metrics}

    def summarize(self, sums: Mapping[str, np.ndarray], images: int) -> dict[str, Any]:
        means = super().summarize(sums, images)
        return {**means, "loss": means[DIVERGENCE]}

    @classmethod
    def next_command(
        cls, config: TrainConfig, workdir: str, config_file: str, overrides: Sequence[str]
    ) -> str:
        """Returns the command that samples the adapted model without a second pass."""
        return f"{super().next_command(config, workdir, config_file, overrides)} --cfg 0"

    def sampler_settings(self, model: ModelConfig) -> Prepared:
        """Returns settings without guidance, which the adapted model has learned."""
        sampler = sampler_registry.find(model)
        objective = self.model.objective
        return sampler.prepare(model, sampler.settings("fid", {"cfg": 0.0}, objective))

    def flops_by_definition(self) -> dict[str, float]:
        """Returns the FLOPs of a training step with the frozen model's two forward passes."""
        training = super().flops_by_definition()
        return {name: value * (1 + FORWARD_PASSES / 3) for name, value in training.items()}

    def flops_per_image(self, variant: Any = None) -> float:
        return self.flops_by_definition()["exact"]

    def summary(self) -> str:
        return f"guidance {self.config.adapter.cfg} in {super().summary()}"

    def _adapted_logits(
        self, params: Any, frozen: FrozenBase, batch: Batch
    ) -> Float[Array, "b L v"]:
        merged = self.merged(params, frozen)
        return self.logits(merged, frozen, batch["tokens"], batch["label"])

    def _divergences(
        self, logits: Float[Array, "b L v"], frozen: FrozenBase, batch: Batch
    ) -> Float[Array, "b L"]:
        """Returns KL(guided || adapted) of each token, where guided is the frozen model's."""
        # Two passes, as rows of one twice as large would have to move between devices.
        nothing = jnp.full_like(batch["label"], self.model.num_classes)
        conditional, unconditional = (
            self.logits(frozen.base, frozen, batch["tokens"], labels)
            for labels in (batch["label"], nothing)
        )
        guided = guidance.away_from(conditional, unconditional, self._strengths[:, None])
        targets = jax.nn.log_softmax(guided)
        return jnp.sum(jnp.exp(targets) * (targets - jax.nn.log_softmax(logits)), axis=-1)


def strengths(config: TrainConfig) -> Float[np.ndarray, " L"]:
    """Returns the strength of guidance at every token that an adapter learns, by `adapter.cfg`.

    Args:
      config: the run's, with the sizes of its base.
    Raises:
      UserError: it is none that `--cfg` would take, or there is no guidance in it; the adapter has
        new classes or no LoRA; or the base's objective has no such predictions.
    """
    adapter, model = config.adapter, config.transformer
    assert model is not None  # the base's
    require(
        model.objective in DISTILLABLE,
        "transformer.objective of the model in adapter.base",
        repr(model.objective),
        f"{' or '.join(map(repr, DISTILLABLE))} with adapter.cfg",
    )
    require(
        adapter.kind == "lora" and not adapter.class_names,
        "adapter.cfg",
        repr(adapter.cfg),
        "'' with new classes, which the frozen model does not know, and with adapter.kind "
        "'class_rows'",
    )
    try:
        chosen = settings.parse(adapter.cfg)
    except ValueError as error:
        raise UserError(f"adapter.cfg: {error}") from None
    by_scale = settings.resolve(model.scales, {"cfg": chosen}).cfg
    require(any(by_scale), "adapter.cfg", repr(adapter.cfg), "above 0 at some scale")
    return np.array(by_scale, np.float32)[model.scales.level_ids]
