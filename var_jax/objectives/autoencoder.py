"""The training objective of the multi-scale tokenizer (VAR, section 3.2).

It reconstructs images through the quantizer, or through continuous features where
`tokenizer.codes` names none; a discriminator may be trained at the same time, or the decoder alone
on generated tokens, too.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from var_jax.config.model import ModelConfig, TokenizerConfig
from var_jax.config.scales import Scales
from var_jax.config.train import TrainConfig
from var_jax.models import flops, init
from var_jax.objectives import (
    adversarial,
    codebook_start,
    decoder_alignment,
    frozen_networks,
    image_losses,
)
from var_jax.objectives.adversarial import Discriminator, DiscriminatorState
from var_jax.objectives.autoencoder_loss import (
    AutoencoderGradients,
    AutoencoderLoss,
    AutoencoderState,
    AutoencoderVariant,
)
from var_jax.objectives.base import Objective, first_not_finite
from var_jax.objectives.decoder_alignment import DecoderAlignment
from var_jax.objectives.evaluation_tools import EvaluationTools
from var_jax.objectives.frozen_networks import LossNetworks, NetworkWeights
from var_jax.objectives.step_types import TRAINED, Batch, Metrics, OptimizerSpec, TrainState
from var_jax.ops import codebook, codebook_revival

if TYPE_CHECKING:
    from etils import epath
    from PIL import Image

# The discriminator's key of initialization is the run's with this number folded in.
DISCRIMINATOR = 2**32 - 1
DISCRIMINATOR_FIELD = "discriminator"


class Autoencoder(Objective[NetworkWeights]):
    """The training objective of the tokenizer.

    Raises:
      UserError: the images are too small for the discriminator's layers.
    """

    section = "tokenizer"

    def __init__(self, config: TrainConfig, networks: LossNetworks | None = None):
        self.networks = networks or LossNetworks()
        super().__init__(config, self.networks.weights)
        self._adversarial_from = adversarial.first_step(config)
        self.discriminator: Discriminator | None = None
        if self._adversarial_from is not None:
            self.discriminator = Discriminator(
                config.adversarial,
                config.tokenizer,
                self.networks.features,
                self._tokenizer(self.variant(self._adversarial_from)),
            )
        network = self.networks.alignment
        self.alignment = None if network is None else DecoderAlignment(config, network)

    @classmethod
    def load_frozen(
        cls, config: TrainConfig, workdir: epath.Path
    ) -> tuple[TrainConfig, LossNetworks]:
        return frozen_networks.load(config)

    @classmethod
    def frozen_shapes(cls, config: TrainConfig) -> tuple[TrainConfig, LossNetworks]:
        return frozen_networks.load(config, sizes_only=True)

    @classmethod
    def random_frozen(cls, config: TrainConfig) -> tuple[TrainConfig, LossNetworks]:
        return frozen_networks.load(config)

    def with_config(self, config: TrainConfig) -> Autoencoder:
        return Autoencoder(config, self.networks)

    # The model and its training.

    @property
    def model(self) -> TokenizerConfig:
        """The section of the trained model."""
        return self.config.tokenizer

    def init(self, key: jax.Array) -> Any:
        return init.init_params(self.model, key)

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        images = {"image": jax.ShapeDtypeStruct(self.model.image_shape, jnp.uint8)}
        if self.alignment is None:
            return images
        tokens = jax.ShapeDtypeStruct((self.model.scales.total,), jnp.int32)
        return {**images, decoder_alignment.BATCH_KEY: tokens}

    def variant(self, done: int) -> AutoencoderVariant:
        progressive, start = self.config.progressive, self._adversarial_from
        is_small = bool(progressive.scales) and done < self.config.steps_of(progressive.until)
        return AutoencoderVariant(
            start is not None and done >= start,
            Scales.parse(progressive.scales) if is_small else None,
        )

    def last_variant(self) -> AutoencoderVariant:
        return AutoencoderVariant(self._adversarial_from is not None)

    def scales(self, variant: AutoencoderVariant | None = None) -> Scales:
        smaller = variant and variant.scales
        return smaller or self.model.scales

    def _tokenizer(self, variant: AutoencoderVariant) -> TokenizerConfig:
        return dataclasses.replace(self.model, scales=self.scales(variant))

    def loss(
        self,
        params: Any,
        frozen: NetworkWeights,
        batch: Batch,
        rng: jax.Array | None,
        *,
        variant: AutoencoderVariant | None = None,
        step: jax.Array | int = 0,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the loss without its adversarial and Fréchet terms.

        These depend on the discriminator, and on moments of the run; the held-out loss is without
        them too.
        """
        return self._loss(variant or self.last_variant()).value(params, frozen, batch, rng)

    def gradients(
        self,
        state: AutoencoderState,
        frozen: NetworkWeights,
        batch: Batch,
        rng: jax.Array,
        *,
        variant: AutoencoderVariant,
    ) -> tuple[AutoencoderGradients, Any]:
        """Returns the gradients of a batch, and vectors that may replace dead codes.

        The vectors are None in a run without revival of dead codes.
        """
        loss = self._loss(variant)
        gradients, rows = loss.gradients(
            state, frozen, batch, rng, is_adversarial=variant.adversarial
        )
        if self.alignment is None:
            return gradients, rows
        tokens = batch[decoder_alignment.BATCH_KEY]
        term = self.alignment.gradients(state.params, state.alignment, frozen, tokens)
        metrics = {
            **gradients.metrics,
            **term.metrics,
            "loss": gradients.metrics["loss"] + term.loss,
        }
        params = jax.tree.map(jnp.add, gradients.params, term.gradients)
        return gradients._replace(params=params, metrics=metrics, moments=term.moments), rows

    def _loss(self, variant: AutoencoderVariant) -> AutoencoderLoss:
        tokenizer = self._tokenizer(variant)
        return AutoencoderLoss(self.config, tokenizer, self.networks, self.discriminator)

    def finish_step(
        self,
        state: AutoencoderState,
        gradients: AutoencoderGradients,
        rows: Any,
        metrics: Metrics,
        optimizers: Mapping[str, optax.GradientTransformation],
    ) -> tuple[AutoencoderState, Metrics]:
        """Returns the state with the discriminator updated and dead codes moved onto `rows`."""
        if gradients.discriminator is not None:
            metrics["discriminator_grad_norm"] = optax.tree_utils.tree_norm(gradients.discriminator)
            updated = adversarial.update_discriminator(
                self.config.adversarial,
                optimizers[DISCRIMINATOR_FIELD],
                state.discriminator,
                gradients.discriminator,
                gradients.spectral,
                gradients.metrics,
            )
            state = state.replace(discriminator=updated)
        if rows is not None:
            state, metrics["revived"] = self._revive(state, gradients.counts, rows)
        if self.alignment is not None:
            aligned = self.alignment.updated(state.alignment, gradients.moments)
            state = state.replace(alignment=aligned)
        if gradients.counts is not None:
            metrics["code_usage"] = jnp.mean(gradients.counts > 0, axis=1)
            metrics["perplexity"] = codebook.perplexity(gradients.counts)
        return state, metrics

    def _revive(
        self, state: AutoencoderState, counts: jax.Array, vectors: jax.Array
    ) -> tuple[AutoencoderState, jax.Array]:
        """Returns the state with dead codes moved onto `vectors`, and how many were.

        Their moments start at zero, and their running average at the new code.
        """
        config = self.config.codebook
        codes = codebook_revival.revive(
            state.params["quantize"]["codebook"],
            state.usage,
            counts,
            vectors,
            decay=config.revive_decay,
            threshold=config.revive_threshold,
        )
        params = codebook_revival.set_rows(state.params, codes.revived, codes.codebook)
        ema = state.ema and codebook_revival.set_rows(state.ema, codes.revived, codes.codebook)
        opt_state = codebook_revival.reset_rows(state.opt_state, codes.revived)
        state = state.replace(params=params, ema=ema, opt_state=opt_state, usage=codes.usage)
        return state, jnp.sum(codes.revived)

    # The state at the first step.

    def optimizers(self) -> dict[str, OptimizerSpec]:
        config = self.config
        not_decayed = frozenset() if config.codebook.weight_decay else frozenset({"codebook"})
        specs = {TRAINED: OptimizerSpec(config.optimizer, not_decayed=not_decayed)}
        if self._adversarial_from is not None:
            specs[DISCRIMINATOR_FIELD] = OptimizerSpec(
                config.discriminator_optimizer, self._adversarial_from
            )
        return specs

    def further_networks(self, key: jax.Array) -> dict[str, Any]:
        if self.discriminator is None:
            return {}
        return {DISCRIMINATOR_FIELD: self.discriminator.init(key)["params"]}

    def first_state(
        self,
        state: TrainState,
        key: jax.Array,
        optimizers: Mapping[str, optax.GradientTransformation],
    ) -> AutoencoderState:
        usage, network = None, None
        if self.config.codebook.revives:
            usage = codebook_revival.initial_usage(len(self.model.scales), self.model.vocab_size)
        if self.discriminator is not None:
            variables = nn.meta.unbox(
                self.discriminator.init(jax.random.fold_in(key, DISCRIMINATOR))
            )
            network = DiscriminatorState(
                variables["params"],
                optimizers[DISCRIMINATOR_FIELD].init(variables["params"]),
                variables["spectral"],
                jnp.zeros(2),
                jnp.zeros((), jnp.int32),
            )
        aligned = None if self.alignment is None else self.alignment.empty_state()
        return AutoencoderState(
            state.step, state.params, state.ema, state.opt_state, network, usage, aligned
        )

    def initialize_from_data(
        self,
        state: AutoencoderState,
        batches: Callable[[], Iterator[Batch]],
        shardings: AutoencoderState,
        replicated: NamedSharding,
    ) -> AutoencoderState:
        if not self.config.init_from:
            state = codebook_start.initialize_codes(
                self.config, state, batches, shardings, replicated
            )
        if self.alignment is None:
            return state
        measured = self.alignment.measured(state.params, batches, shardings.alignment, replicated)
        return state.replace(alignment=measured)

    def adapt_weights(self, model: ModelConfig, weights: Any, replicated: NamedSharding) -> Any:
        if self.alignment is not None:
            start = f"init_from {self.config.init_from}"
            decoder_alignment.require_same_tokens(self.config, start, self.model, weights)
        return weights

    # Evaluation.

    def eval_metrics(self, params: Any, frozen: NetworkWeights, batch: Batch) -> Metrics:
        return image_losses.held_out_metrics(self.config, self.networks, params, frozen, batch)

    def summarize(self, sums: Mapping[str, np.ndarray], images: int) -> dict[str, Any]:
        if not self.model.quantizes:
            return super().summarize(sums, images)
        counts = sums["code_counts"]
        image_losses.warn_of_collapse(self.config, counts)
        others = {name: value for name, value in sums.items() if name != "code_counts"}
        return super().summarize(others, images) | codebook.usage_metrics(counts)

    def picture(self, params: Any, frozen: NetworkWeights, tools: EvaluationTools) -> Image.Image:
        return image_losses.picture(self.config, params, tools)

    def not_finite(self, metrics: Mapping[str, Any]) -> tuple[str, float] | None:
        """Returns the first loss or gradient norm that is not finite, with the network it is of.

        Either network's NaN reaches the other within the step: where the reconstruction itself is
        finite, the discriminator is looked at first.
        """
        if "discriminator_loss" not in metrics:
            return super().not_finite(metrics)
        generator, network = (
            {f"{prefix}{name}": f"the {owner}'s {name}" for name in ("loss", "grad_norm")}
            for prefix, owner in (("", "generator"), ("discriminator_", "discriminator"))
        )
        generator_is_sound = np.isfinite(float(metrics.get("l2", np.nan)))
        names = network | generator if generator_is_sound else generator | network
        return first_not_finite(metrics, names)

    # Sizes and costs.

    def flops_per_image(self, variant: AutoencoderVariant | None = None) -> float:
        return flops.tokenizer_train_flops(
            dataclasses.replace(self.model, scales=self.scales(variant))
        )

    def flops_by_definition(self) -> dict[str, float]:
        return {"exact": flops.tokenizer_train_flops(self.model)}

    def param_count(self) -> dict[str, int]:
        """Returns "total", and "body" without the codebook."""
        total = super().param_count()["total"]
        return {"total": total, "body": total - self.model.codebook_parameters}

    def report(self) -> dict[str, Any]:
        return {"remat": self.model.remat}

    # Messages of a run.

    def data_warnings(self, class_names: Sequence[str], *, drops_color: bool) -> list[str]:
        if drops_color:
            return [
                "the images have color, and the run sees them in gray: tokenizer.in_channels is 1"
            ]
        return []

    @classmethod
    def headline(cls, held_out: Mapping[str, Any]) -> str:
        if "psnr" in held_out:
            return f"held-out PSNR {held_out['psnr']:.2f} dB"
        return super().headline(held_out)

    @classmethod
    def next_command(
        cls, config: TrainConfig, workdir: str, config_file: str, overrides: Sequence[str]
    ) -> str:
        """Returns the command that trains a transformer on this tokenizer and the same data.

        The config file and the flags have to be the transformer's.
        """
        next_workdir = f"{workdir.rstrip('/')}-transformer"
        return " ".join(
            [
                f"var-jax train --config {shlex.quote(config_file)}",
                f"--config.tokenizer_dir={shlex.quote(workdir)}",
                *map(shlex.quote, overrides),
                f"--workdir {shlex.quote(next_workdir)}",
            ]
        )
