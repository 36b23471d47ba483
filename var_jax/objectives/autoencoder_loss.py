"""The loss of the tokenizer and its gradients (VAR, section 3.2).

The loss is the sum of reconstruction, quantizer and adversarial terms. Without a quantizer there is
the KL term of Latent Diffusion's autoencoders (arXiv 2112.10752) in place of the quantizer's, or
none.

Gradients with respect to the reconstruction are taken term by term and pulled back through the
tokenizer once. The adaptive weight needs two of them at the decoder's last kernel besides, which
cost one small convolution each.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from var_jax.config.model import TokenizerConfig
from var_jax.config.scales import Scales
from var_jax.config.train import TrainConfig
from var_jax.models.cnn import DROPOUT
from var_jax.models.tokenizer import Tokenizer
from var_jax.objectives import adversarial, image_losses
from var_jax.objectives.adversarial import Discriminator, DiscriminatorState
from var_jax.objectives.decoder_alignment import AlignmentState
from var_jax.objectives.frozen_networks import LossNetworks, NetworkWeights
from var_jax.objectives.step_types import Batch, Metrics, StepVariant, TrainState
from var_jax.ops import codebook, codebook_entropy, codebook_init, codebook_revival
from var_jax.ops.frechet import RawMoments
from var_jax.ops.resize import resize

# The key of the residual blocks' dropout is the quantizer's with this number folded in.
BLOCKS = 2**32 - 1
LAST_KERNEL = ("decoder", "conv_out", "kernel")


@flax.struct.dataclass
class AutoencoderState(TrainState):
    """The tokenizer's state.

    Attributes:
      discriminator: None in a run without one.
      usage: float32 (K, V), running share of each code's uses at each scale
        (`codebook_revival.revive`); None in a run without revival.
      alignment: moments of features; None in a run without a Fréchet loss.
    """

    discriminator: DiscriminatorState | None = None
    usage: jax.Array | None = None
    alignment: AlignmentState | None = None


@dataclasses.dataclass(frozen=True)
class AutoencoderVariant(StepVariant):
    """The parts of a training step of the tokenizer that change during a run.

    Attributes:
      adversarial: whether the step has adversarial terms.
      scales: the smaller scales that progressive training begins with; None for the tokenizer's
        own.
    """

    adversarial: bool = False
    scales: Scales | None = None


class AutoencoderGradients(NamedTuple):
    """The gradients and statistics of a batch, averaged over its microbatches.

    Attributes:
      params: gradients of the tokenizer.
      metrics: scalars, and arrays with a row per scale.
      discriminator: gradients of the discriminator; None before adversarial training.
      counts: (K, V) uses of the codes; None without a quantizer.
      spectral: power iteration's next vectors.
      moments: moments of the features of generated images; None without a Fréchet loss.
    """

    params: Any
    metrics: Metrics
    discriminator: Any
    counts: jax.Array | None
    spectral: Any
    moments: RawMoments | None = None


class _Forward(NamedTuple):
    """A forward pass: the reconstruction, the rest of the loss and its parts, and all outputs.

    The latter are None without a quantizer.
    """

    reconstruction: jax.Array
    loss: jax.Array
    parts: Metrics
    out: Any


class AutoencoderLoss:
    """The loss of a tokenizer at given scales.

    Args:
      tokenizer: the run's, at the scales of the step.
      discriminator: None in a run without one.
    """

    def __init__(
        self,
        config: TrainConfig,
        tokenizer: TokenizerConfig,
        networks: LossNetworks,
        discriminator: Discriminator | None,
    ):
        self._config, self._tokenizer = config, tokenizer
        self._networks, self._discriminator = networks, discriminator

    def value(
        self, params: Any, frozen: NetworkWeights, batch: Batch, rng: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        """Returns the loss without its adversarial term, and its parts.

        The adversarial term depends on the state of the discriminator, which is no argument
        here.
        """
        images = self._images(batch)
        forward = self._forward(params, images, rng)
        pixels, metrics = self._image_loss(frozen, forward.reconstruction, images)
        total = pixels + forward.loss
        return total, {"loss": total, **metrics, **forward.parts}

    def _images(self, batch: Batch) -> jax.Array:
        images = image_losses.normalized(batch["image"])
        return resize(images, self._tokenizer.image_shape[:2], "area")

    def _forward(self, params: Any, images: jax.Array, rng: jax.Array | None) -> _Forward:
        """Returns the reconstruction, and the quantizer's and the codes' terms of the loss.

        Without a quantizer the latter is the KL term.
        """
        model, codes = Tokenizer(self._tokenizer), self._config.codebook
        rngs = None if rng is None else {DROPOUT: jax.random.fold_in(rng, BLOCKS)}
        if not self._tokenizer.quantizes:
            reconstruction, kl = model.apply(
                {"params": params}, images, rng, method="continuous_forward", rngs=rngs
            )
            if kl is None:
                return _Forward(reconstruction, jnp.zeros(()), {}, None)
            divergence = jnp.mean(kl)
            weighted = self._config.loss.kl * divergence
            return _Forward(reconstruction, weighted, {"kl": divergence}, None)
        out = model.apply({"params": params}, images, rng, method="forward", rngs=rngs)
        parts, loss = {"vq": out.vq_loss}, self._config.loss.vq * out.vq_loss
        if codes.entropy:
            parts["entropy"] = codebook_entropy.scale_entropy_penalty(
                model.apply({"params": params}, method="quantizer"),
                out.residuals,
                codes.entropy_temperature,
                out.counted,
            )
            loss += codes.entropy * parts["entropy"]
        return _Forward(out.reconstruction, loss, parts, out)

    def _image_loss(
        self, frozen: NetworkWeights, reconstructions: jax.Array, images: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        terms = image_losses.image_terms(self._networks, frozen, reconstructions, images)
        means = {name: jnp.mean(value) for name, value in terms.items()}
        return image_losses.weighted_sum(self._config.loss, means), means

    def gradients(
        self,
        state: AutoencoderState,
        frozen: NetworkWeights,
        batch: Batch,
        rng: jax.Array,
        *,
        is_adversarial: bool,
    ) -> tuple[AutoencoderGradients, Any]:
        """Returns the gradients of a batch, and vectors that may replace dead codes.

        The vectors are None in a run without revival of dead codes.
        """
        config, tokenizer = self._config, self._tokenizer
        images = self._images(batch)
        dropout_key, adversarial_key, revival_key = jax.random.split(rng, 3)

        # The forward pass, and the gradient of the image terms at the reconstruction
        def forward(params):
            result = self._forward(params, images, dropout_key)
            return (result.reconstruction, result.loss), (result.parts, result.out)

        def image_loss(reconstructions):
            return self._image_loss(frozen, reconstructions, images)

        (rec, rest), pull_back, (parts, out) = jax.vjp(forward, state.params, has_aux=True)
        (pixels, means), d_rec = jax.value_and_grad(image_loss, has_aux=True)(rec)
        total, metrics = pixels + rest, {**means, **parts}

        # The adversarial term's gradient is added there, before both are pulled back at once
        d_discriminator, spectral = None, None
        if is_adversarial:

            def at_last_kernel(cotangent):
                gradient = pull_back((cotangent, jnp.zeros(())))[0]
                for name in LAST_KERNEL:
                    gradient = gradient[name]
                return gradient

            term = adversarial.adversarial_gradients(
                config,
                self._discriminator,
                state.discriminator,
                frozen,
                step=state.step,
                images=images,
                reconstruction=rec,
                d_image_loss=d_rec,
                at_last_kernel=at_last_kernel,
                key=adversarial_key,
            )
            d_discriminator, spectral = term.discriminator, term.spectral
            total, d_rec = total + term.loss, d_rec + term.d_reconstruction
            metrics |= term.metrics
        (d_params,) = pull_back((d_rec, jnp.ones(())))

        # The codes in use, and vectors that dead ones may be moved onto
        counts, vectors = None, None
        if out is not None:
            counts = codebook.code_counts(
                tokenizer.scales, out.tokens, tokenizer.vocab_size, out.counted
            )
        if config.codebook.revives:
            number = -(-tokenizer.vocab_size // config.microbatches)
            scale_weights = codebook_revival.scale_weights(state.usage)[: len(tokenizer.scales)]
            vectors = codebook_init.candidates(
                out.residuals,
                revival_key,
                number,
                tokenizer.scales,
                counted=out.counted,
                scale_weights=scale_weights,
            )
        gradients = AutoencoderGradients(
            d_params, {"loss": total, **metrics}, d_discriminator, counts, spectral
        )
        return gradients, vectors
