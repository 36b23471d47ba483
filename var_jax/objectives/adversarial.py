"""Adversarial training of a tokenizer: the discriminator, and both networks' gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from var_jax.config.model import TokenizerConfig
from var_jax.config.strict import require
from var_jax.config.tokenizer_training import AdversarialConfig
from var_jax.config.train import TrainConfig
from var_jax.models import discriminator
from var_jax.objectives.frozen_networks import FrozenBackbone, NetworkWeights
from var_jax.objectives.step_types import Metrics
from var_jax.ops import diffaugment, gan_losses

if TYPE_CHECKING:
    from jaxtyping import Array, Float

FRAME = 2**32 - 1  # the key of the frames is the augmentation's with this number folded in
# The key of an image's second augmentation is the first's with this number folded in.
AGAIN = 2**32 - 2
GENERATOR = "generator"  # the metric of every step with an adversarial term: that term, unweighted


@flax.struct.dataclass
class DiscriminatorState:
    """The state of the discriminator that a step updates.

    Attributes:
      params: the discriminator's parameters; they do not change until adversarial training begins.
      opt_state: the state of its optimizer.
      spectral: power iteration's vectors (`models.discriminator`).
      averages: float32 (2,), running means of the logits of real images and of fakes, for LeCam.
      updates: number of times it was updated, int32.
    """

    params: Any
    opt_state: Any
    spectral: Any
    averages: jax.Array
    updates: jax.Array


class Discriminator:
    """Maps images to logits: by blur, augmentation, frozen features, and the trained module.

    Args:
      backbone: the frozen network whose features it looks at; None for pixels.
      smallest: the tokenizer's config at the smallest image size of adversarial training.
    Raises:
      UserError: the images are too small for the discriminator's layers.
    """

    def __init__(
        self,
        config: AdversarialConfig,
        tokenizer: TokenizerConfig,
        backbone: FrozenBackbone | None,
        smallest: TokenizerConfig,
    ):
        self._config, self._backbone = config, backbone
        self._image_shape = tokenizer.image_shape
        if config.discriminator == "patch":
            side = min(smallest.image_shape[:2])
            require(
                side >= 2**config.layers,
                "adversarial.layers",
                config.layers,
                f"at most {side.bit_length() - 1} for images of {side} pixels, which every layer "
                "halves",
            )
            self._module = discriminator.PatchDiscriminator(config.channels, config.layers)
        else:
            self._module = discriminator.FeatureDiscriminator(config.channels, config.kernel)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Returns freshly initialized variables, {"params", "spectral"}.

        The parameters are boxed with their logical axis names; "spectral" holds the vectors of
        power iteration and is empty where the network has none.
        """
        images = jnp.zeros((1, *self._image_shape))
        inputs: Any = images
        if self._backbone is not None:
            shapes = jax.eval_shape(self._features, self._backbone.params, images, key)
            inputs = [jnp.zeros(level.shape) for level in shapes]
        variables = self._module.init(key, inputs)
        return {
            "params": variables["params"],
            "spectral": variables.get(discriminator.SPECTRAL, {}),
        }

    def logits(
        self,
        params: Any,
        spectral: Any,
        frozen: NetworkWeights,
        images: Float[Array, "b H W c"],
        key: jax.Array,
        blur: Float[Array, ""],
    ) -> tuple[Float[Array, "b n"], Any]:
        """Returns the logits of augmented images, and the next vectors of power iteration.

        Args:
          key: random key of the augmentation.
          blur: strength of the blur that is applied before the augmentation, from 0 to 1.
        """
        config = self._config
        views = diffaugment.fading_blur(images, blur) if config.blur_fade else images
        views = diffaugment.diff_augment(
            key, views, config.diffaugment, config.diffaugment_probability, config.cutout
        )
        return self._apply(params, spectral, frozen, views, key)

    def logits_again(
        self,
        params: Any,
        spectral: Any,
        frozen: NetworkWeights,
        images: Float[Array, "b H W c"],
        key: jax.Array,
    ) -> Float[Array, "b n"]:
        """Returns the logits of images under the consistency term's augmentation, without blur."""
        views = diffaugment.diff_augment(
            key, images, self._config.bcr_diffaugment, hole=self._config.bcr_cutout
        )
        return self._apply(params, spectral, frozen, views, key)[0]

    def _features(
        self, weights: Any, views: Float[Array, "b H W c"], key: jax.Array
    ) -> list[jax.Array]:
        """Returns the backbone's features, at its own image size where the config has one."""
        size = self._config.feature_size
        if size:
            frame_key = jax.random.fold_in(key, FRAME)
            views = diffaugment.crop_or_resize(frame_key, views, size, self._config.feature_crops)
        assert self._backbone is not None
        return self._backbone.levels(weights, views)

    def _apply(
        self,
        params: Any,
        spectral: Any,
        frozen: NetworkWeights,
        views: Float[Array, "b H W c"],
        key: jax.Array,
    ) -> tuple[Float[Array, "b n"], Any]:
        inputs: Any = views
        if self._backbone is not None:
            inputs = self._features(frozen.features, views, key)
        variables = {"params": params, discriminator.SPECTRAL: spectral}
        logits, updated = self._module.apply(variables, inputs, mutable=[discriminator.SPECTRAL])
        return logits, updated.get(discriminator.SPECTRAL, {})


def first_step(config: TrainConfig) -> int | None:
    """Returns the number of steps before the first adversarial one; None if a run has none."""
    adversarial = config.adversarial
    return config.steps_of(adversarial.start) if adversarial.weight > 0 else None


class AdversarialGradients(NamedTuple):
    """The adversarial terms of a training step, and their gradients.

    Attributes:
      loss: the generator's adversarial loss, times its weight.
      d_reconstruction: its gradient with respect to the reconstruction.
      discriminator: the gradient of the discriminator's own loss with respect to its parameters;
        the reconstructions are the same, detached, with the same augmentation.
      spectral: power iteration's next vectors.
    """

    loss: jax.Array
    d_reconstruction: Float[Array, "b H W c"]
    discriminator: Any
    spectral: Any
    metrics: Metrics


def adversarial_gradients(
    config: TrainConfig,
    network: Discriminator,
    state: DiscriminatorState,
    frozen: NetworkWeights,
    *,
    step: jax.Array,
    images: Float[Array, "b H W c"],
    reconstruction: Float[Array, "b H W c"],
    d_image_loss: Float[Array, "b H W c"],
    at_last_kernel: Callable[[jax.Array], jax.Array],
    key: jax.Array,
) -> AdversarialGradients:
    """Returns both networks' adversarial gradients of a batch.

    Args:
      step: steps done before this one.
      d_image_loss: gradient of the pixel and perceptual terms at the reconstruction.
      at_last_kernel: pulls a gradient at the reconstruction back to the decoder's last kernel.
    """
    adversarial, start = config.adversarial, first_step(config)
    assert start is not None
    real_key, fake_key = jax.random.split(key)
    blur = gan_losses.blur_strength(step, start, config.steps_of(adversarial.blur_fade))

    def logits(params, x, key):
        return network.logits(params, state.spectral, frozen, x, key, blur)

    def logits_again(params, x, key):
        again_key = jax.random.fold_in(key, AGAIN)
        return network.logits_again(params, state.spectral, frozen, x, again_key)

    def generator_loss(fake):
        return gan_losses.generator_loss(logits(state.params, fake, fake_key)[0])

    # The generator's term, by its weight of this step.
    generator, d_generator = jax.value_and_grad(generator_loss)(reconstruction)
    metrics = {GENERATOR: generator}
    warmup = config.steps_of(adversarial.warmup)
    weight = adversarial.weight * gan_losses.ramp(step, start, warmup)
    if adversarial.adaptive:
        adaptive = gan_losses.adaptive_weight(
            at_last_kernel(d_image_loss),
            at_last_kernel(d_generator),
            adversarial.adaptive_lowest,
            adversarial.adaptive_highest,
        )
        weight, metrics["adaptive_weight"] = weight * adaptive, adaptive

    # The discriminator's own loss.
    def discriminator_loss(params):
        fake = jax.lax.stop_gradient(reconstruction)
        real_logits, spectral = logits(params, images, real_key)
        fake_logits, _ = logits(params, fake, fake_key)

        loss = gan_losses.hinge_loss(real_logits, fake_logits, halved=adversarial.hinge == "mean")
        parts = {
            "hinge": loss,
            "logits_real": jnp.mean(real_logits),
            "logits_fake": jnp.mean(fake_logits),
        }
        if adversarial.bcr:
            parts["bcr"] = gan_losses.consistency(
                real_logits,
                fake_logits,
                logits_again(params, images, real_key),
                logits_again(params, fake, fake_key),
            )
            loss += adversarial.bcr * parts["bcr"]
        if adversarial.lecam:
            parts["lecam"] = gan_losses.lecam(real_logits, fake_logits, state.averages)
            loss += adversarial.lecam * parts["lecam"]
        if adversarial.r1:
            parts["r1"] = jax.lax.cond(
                # Counted as steps are logged, so that one that is logged may have it.
                (step + 1) % adversarial.r1_every == 0,
                lambda: (
                    adversarial.r1_every
                    * gan_losses.r1_penalty(lambda x: logits(params, x, real_key)[0], images)
                ),
                lambda: jnp.zeros(()),
            )
            loss += adversarial.r1 * parts["r1"]
        return loss, ({"discriminator_loss": loss, **parts}, spectral)

    (_, (parts, spectral)), d_discriminator = jax.value_and_grad(discriminator_loss, has_aux=True)(
        state.params
    )
    return AdversarialGradients(
        weight * generator,
        weight * d_generator,
        d_discriminator,
        spectral,
        {**metrics, "generator_weight": weight, **parts},
    )


def update_discriminator(
    config: AdversarialConfig,
    optimizer: optax.GradientTransformation,
    state: DiscriminatorState,
    gradients: Any,
    spectral: Any,
    metrics: Mapping[str, jax.Array],
) -> DiscriminatorState:
    """Returns the discriminator after a step.

    Args:
      gradients: the discriminator's.
      spectral: power iteration's next vectors.
      metrics: metrics of the step, as `adversarial_gradients` returns them.
    """
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    averages = gan_losses.lecam_averages(
        state.averages,
        metrics["logits_real"],
        metrics["logits_fake"],
        config.lecam_decay,
        state.updates,
    )
    return state.replace(
        params=optax.apply_updates(state.params, updates),
        spectral=spectral,
        opt_state=opt_state,
        averages=averages,
        updates=state.updates + 1,
    )
