"""A run's discriminator as the training step uses it: blur, augmentation, frozen features, and the
trained module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from var_jax.config.strict import require
from var_jax.config.train import TrainConfig
from var_jax.models import discriminator
from var_jax.objectives.frozen_networks import Networks
from var_jax.objectives.phase import phase_of
from var_jax.ops import diffaugment

if TYPE_CHECKING:
    from jaxtyping import Array, Float

FRAME = 2**32 - 1  # the key of the frames is the augmentation's with this number folded in


class Critic:
    """Images to logits.

    Raises:
      UserError: the images are too small for the discriminator's layers.
    """

    def __init__(self, config: TrainConfig, networks: Networks):
        a = config.adversarial
        self._config, self._features = a, networks.features
        self._image_shape = config.tokenizer.image_shape
        if a.discriminator == "patch":
            phases = (
                phase_of(config, done) for done in (config.adversarial_from or 0, config.steps)
            )
            side = min(min(phase.tokenizer(config).image_shape[:2]) for phase in phases)
            require(
                side >= 2**a.layers,
                "adversarial.layers",
                a.layers,
                f"at most {side.bit_length() - 1} for images of {side} pixels, which every layer halves",
            )
            self._module = discriminator.PatchDiscriminator(a.channels, a.layers)
        else:
            self._module = discriminator.FeatureDiscriminator(a.channels, a.kernel)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """{"params": boxed with their logical axis names, "spectral": power iteration's vectors,
        possibly none}."""
        images = jnp.zeros((1, *self._image_shape))
        if self._features is None:
            seen = images
        else:
            shapes = jax.eval_shape(self._levels, self._features.params, images, key)
            seen = [jnp.zeros(level.shape) for level in shapes]
        variables = self._module.init(key, seen)
        return {
            "params": variables["params"],
            "spectral": variables.get(discriminator.SPECTRAL, {}),
        }

    def logits(
        self,
        params: Any,
        spectral: Any,
        frozen: Any,
        images: Float[Array, "b H W c"],
        key: jax.Array,
        blur: Float[Array, ""],
    ) -> tuple[Float[Array, "b n"], Any]:
        """Logits of images seen through the augmentation that `key` draws, and power iteration's
        next vectors.

        Args:
          frozen: weights of the frozen networks (`Networks.params`).
          blur: strength of the blur that lies before the augmentation, from 0 to 1.
        """
        a = self._config
        seen = diffaugment.fading_blur(images, blur) if a.blur_fade else images
        seen = diffaugment.diff_augment(
            key, seen, a.diffaugment, a.diffaugment_probability, a.cutout
        )
        return self._judged(params, spectral, frozen, seen, key)

    def logits_again(
        self,
        params: Any,
        spectral: Any,
        frozen: Any,
        images: Float[Array, "b H W c"],
        key: jax.Array,
    ) -> Float[Array, "b n"]:
        """Logits of images seen without blur, through the other augmentation, which consistency is
        asked for with."""
        seen = diffaugment.diff_augment(
            key, images, self._config.bcr_diffaugment, hole=self._config.bcr_cutout
        )
        return self._judged(params, spectral, frozen, seen, key)[0]

    def _levels(
        self, weights: Any, seen: Float[Array, "b H W c"], key: jax.Array
    ) -> list[jax.Array]:
        """What the frozen network makes of images, at its own size where the config has one."""
        a = self._config
        if a.feature_size:
            seen = diffaugment.framed(
                jax.random.fold_in(key, FRAME), seen, a.feature_size, a.feature_crops
            )
        return self._features.levels(weights, seen)

    def _judged(
        self, params: Any, spectral: Any, frozen: Any, seen: Float[Array, "b H W c"], key: jax.Array
    ) -> tuple[Float[Array, "b n"], Any]:
        if self._features is not None:
            seen = self._levels(frozen["features"], seen, key)
        variables = {"params": params, discriminator.SPECTRAL: spectral}
        logits, after = self._module.apply(variables, seen, mutable=[discriminator.SPECTRAL])
        return logits, after.get(discriminator.SPECTRAL, {})


def make_critic(config: TrainConfig, networks: Networks) -> Critic | None:
    """None in a run without adversarial terms."""
    return None if config.adversarial_from is None else Critic(config, networks)
