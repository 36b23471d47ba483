"""Training of a logit refiner on a frozen model of next-scale prediction.

Source: Logit Refiner (arXiv 2609.11804).
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config import idle_keys, rematerialization
from var_jax.config.model import ModelConfig, TransformerConfig
from var_jax.config.refiner_config import RefinerConfig
from var_jax.config.scales import Scales
from var_jax.config.strict import require
from var_jax.config.train import TrainConfig
from var_jax.data.model_fingerprint import OF_TRAINING
from var_jax.models import flops, refiner
from var_jax.models.dropout import drop
from var_jax.objectives import frozen_base, token_losses
from var_jax.objectives.frozen_base import Base, FrozenBase
from var_jax.objectives.next_scale import NextScale
from var_jax.objectives.on_frozen_base import OnFrozenBase
from var_jax.objectives.step_types import Batch, Metrics, StepVariant

if TYPE_CHECKING:
    from etils import epath
    from jaxtyping import Array, Float, Int

# Keys of the transformer's section that are the run's own; all others are the base's.
OWN_KEYS = ("class_dropout", "attention", "remat", "dtype", "gradient_dtype")
BASE_LOSS = "loss_base"  # the held-out loss of the frozen model's own logits


class RefinerTraining(OnFrozenBase, NextScale):
    """The objective of a refiner: the next token's cross-entropy under the refined logits.

    The frozen model is computed once, on the inputs of teacher forcing; the refiner sees the true
    tokens before each in its scale. Only the scales that are refined are trained on. Parameters are
    those of `models.refiner.Refiner`.
    """

    @classmethod
    def load_frozen(
        cls, config: TrainConfig, workdir: epath.Path
    ) -> tuple[TrainConfig, FrozenBase]:
        from var_jax.io import refiner_file
        from var_jax.io.json import read_object_if_exists

        begun = read_object_if_exists(workdir / "config.json")
        resolved = cls.with_base(config, frozen_base.read_base(config), begun)
        return resolved, frozen_base.load_model(
            resolved,
            workdir,
            refiner_file.NAME,
            lambda run: refiner_file.load_header(run).fingerprint,
        )

    @classmethod
    def with_base(cls, config: TrainConfig, base: Base, started_with: Any = None) -> TrainConfig:
        config.refiner.check(base.transformer)
        stated, defaults = config.transformer or TransformerConfig(), TransformerConfig()
        own = {name: getattr(stated, name) for name in OWN_KEYS}
        own |= {name: getattr(defaults, name) for name in OF_TRAINING}
        refined = dataclasses.replace(base.transformer, param_dtype="float32", **own)
        resolved = dataclasses.replace(config, tokenizer=base.tokenizer, transformer=refined)
        idle_keys.refuse_unused_by_objective(resolved, OWN_KEYS, started_with)
        policy = refined.remat.partition(":")[0]
        require(
            policy == refined.remat,
            rematerialization.KEY,
            refined.remat,
            f"that of all blocks, such as {policy}, for a refiner",
        )
        require(
            base.transformer.class_dropout > 0 or refined.class_dropout == 0,
            "transformer.class_dropout",
            refined.class_dropout,
            f"0, as in the model in refiner.base {config.refiner.base}, whose row for no class was "
            "never trained",
        )
        return resolved

    @property
    def remat_choices(self) -> tuple[str, ...]:
        return ("none", "dots", "full")  # the model's depth, which others divide, is not its own

    @property
    def refiner(self) -> RefinerConfig:
        """The sizes of the refiner."""
        return dataclasses.replace(self.config.refiner, base="")

    @property
    def whole_model(self) -> ModelConfig:
        return dataclasses.replace(super().whole_model, refiner=self.refiner)

    def network_params(self, params: Any, frozen: FrozenBase) -> dict[str, Any]:
        return {"transformer": frozen.base, "refiner": params}

    def init(self, key: jax.Array) -> Any:
        """Returns the refiner's parameters at their start, boxed with their logical axis names."""
        return refiner.init_params(self.refiner, self.model, key)

    def scales(self, variant: Any = None) -> Scales:
        """Returns the scales that are refined."""
        return self.refiner.scales(self.model)

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
        """Returns the mean cross-entropy over the refined scales' tokens, and its parts.

        Class dropout acts when `rng` is given, so that guidance's rows are refined as well; there
        is no drop-path, as the model is frozen.
        """
        scales = self.scales()
        tokens = batch["tokens"][:, : scales.total]
        labels = drop(self.model, batch["label"], rng).labels
        inputs = self._teacher_input(frozen, batch["tokens"])
        inputs = inputs[:, : scales.total - scales.lengths[0]]
        base = refiner.predictions(self.model, frozen.base, inputs, labels)
        logits = self._refined(params, base, tokens)
        loss = jnp.mean(
            token_losses.cross_entropy(logits, tokens, self.config.loss.label_smoothing)
        )
        metrics = token_losses.token_metrics(scales, logits, tokens)
        if len(scales) < len(self.model.scales):  # the last of these is not the last of all
            metrics = {name: x for name, x in metrics.items() if not name.endswith("_last")}
        return loss, {"loss": loss, **metrics}

    def logits(
        self,
        params: Any,
        frozen: FrozenBase,
        tokens: Int[Array, "b L"],
        labels: Int[Array, " b"],
    ) -> Float[Array, "b L v"]:
        """Returns the refined logits of every token by teacher forcing, without dropout."""
        return self._refined(params, self._base_predictions(frozen, tokens, labels), tokens)

    def eval_metrics(self, params: Any, frozen: FrozenBase, batch: Batch) -> Metrics:
        """Returns `token_metrics` of all scales, and the loss without the refiner.

        Both are summed over the rows of a held-out batch that count.
        """
        tokens, weights = batch["tokens"], batch["mask"].astype(jnp.float32)

        def measure(labels):
            base = self._base_predictions(frozen, tokens, labels)
            unrefined = jnp.mean(token_losses.cross_entropy(base.logits, tokens), axis=1)
            logits = self._refined(params, base, tokens)
            metrics = token_losses.token_metrics(self.model.scales, logits, tokens, weights)
            return {**metrics, BASE_LOSS: weights @ unrefined}

        return token_losses.held_out(measure, batch["label"], self.model)

    def variant(self, done: int) -> StepVariant:
        return StepVariant()

    def last_variant(self) -> StepVariant:
        return StepVariant()

    def flops_by_definition(self) -> dict[str, float]:
        """Returns the FLOPs of the frozen forward pass, and of the refiner forward and backward."""
        model = dataclasses.replace(self.model, scales=self.scales())
        trained = (1 + flops.BACKWARD) * flops.refiner_flops(self.refiner, self.model)
        return {"exact": flops.forward_flops(model) + trained}

    def flops_per_image(self, variant: Any = None) -> float:
        return self.flops_by_definition()["exact"]

    def model_labels(self, class_names: Sequence[str]) -> Int[np.ndarray, " classes"]:
        """Returns the frozen model's id of each class of the data, by the classes' names.

        Raises:
          UserError: the model has no such class.
        """
        return np.array(
            frozen_base.labels_of(class_names, self.base, self.config.refiner.base), np.int32
        )

    def write_model(self, directory: epath.Path, params: Callable[[], Any]):
        """Writes the refiner's file to the workdir."""
        from var_jax.io import refiner_file

        frozen = self.frozen
        trained = refiner_file.RefinerFile(
            self.refiner, frozen.fingerprint, params(), frozen.sampling_fingerprint
        )
        if jax.process_index() == 0:
            refiner_file.save(directory, trained)

    def summary(self) -> str:
        blocks, scales = self.refiner.blocks(self.model), self.scales()
        return (
            f"refiner of depth {blocks.depth}, width {blocks.width} up to scale "
            f"{scales.finest[0]}x{scales.finest[1]} of the model in {self.config.refiner.base} "
            f"({super().summary()})"
        )

    @classmethod
    def headline(cls, held_out: Mapping[str, Any]) -> str:
        return f"{super().headline(held_out)}, {held_out[BASE_LOSS]:.4g} without the refiner"

    @classmethod
    def next_command(
        cls, config: TrainConfig, workdir: str, config_file: str, overrides: Sequence[str]
    ) -> str:
        """Returns the command that samples some of the classes."""
        command = super().next_command(config, workdir, config_file, overrides)
        own = f"--model {shlex.quote(workdir)} "
        base = f"--model {shlex.quote(config.refiner.base)} --refiner {shlex.quote(workdir)} "
        return command.replace(own, base, 1)

    def _base_predictions(self, frozen: FrozenBase, tokens, labels) -> refiner.Predictions:
        inputs = self._teacher_input(frozen, tokens)
        return refiner.predictions(self.model, frozen.base, inputs, labels)

    def _refined(self, params: Any, base: refiner.Predictions, tokens) -> Float[Array, "b L v"]:
        module = refiner.Refiner(self.refiner, self.model)
        return module.apply({"params": params}, base.logits, base.hidden, tokens)
