"""The adversarial losses of a tokenizer's training, as pure functions of logits and gradients.

Logits are (b, n): one row per image, and one column per patch or position of a head, which all
count alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def hinge_loss(
    real: Float[Array, "b n"], fake: Float[Array, "b n"], *, halved: bool = True
) -> Float[Array, ""]:
    """Returns the discriminator's hinge loss, mean relu(1 - D(real)) + mean relu(1 + D(fake)).

    Source: Lim and Ye 2017.

    Args:
      halved: whether to take the mean of the two terms, as VQGAN does, in place of their sum, as
        vaex does.
    """
    both = jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))
    return both / 2 if halved else both


def consistency(
    real: Float[Array, "b n"],
    fake: Float[Array, "b n"],
    real_again: Float[Array, "b n"],
    fake_again: Float[Array, "b n"],
) -> Float[Array, ""]:
    """Returns the balanced consistency regularization of a discriminator.

    It is mean (D(T(real)) - D(real))^2 + mean (D(T(fake)) - D(fake))^2, where T is a second
    augmentation; the gradient flows through all four. Source: Zhao et al. 2020, "Improved
    consistency regularization for GANs", algorithm 2; vaex compares two augmentations, as here.
    """
    return jnp.mean((real_again - real) ** 2) + jnp.mean((fake_again - fake) ** 2)


def generator_loss(fake: Float[Array, "b n"]) -> Float[Array, ""]:
    """Returns the generator's linear loss, -mean D(fake)."""
    return -jnp.mean(fake)


def adaptive_weight(
    pixels: Float[Array, "*k"],
    adversarial: Float[Array, "*k"],
    lowest: float,
    highest: float,
    epsilon: float = 1e-6,
) -> Float[Array, ""]:
    """Returns the weight that balances the adversarial loss against the others.

    It is |gradient of the pixel and perceptual terms| / (|gradient of the adversarial term| +
    epsilon), clamped, and no gradient flows through it. Source: VQGAN, Esser et al. 2021,
    equation 7.

    Args:
      pixels: gradient of the pixel and perceptual terms at the decoder's last kernel.
      adversarial: gradient of the adversarial term at the same kernel.
      lowest: lower bound of the weight.
      highest: upper bound of the weight.
    """
    ratio = jnp.linalg.norm(pixels.reshape(-1)) / (
        jnp.linalg.norm(adversarial.reshape(-1)) + epsilon
    )
    return jax.lax.stop_gradient(jnp.clip(ratio, lowest, highest))


def ramp(step: Float[Array, ""] | int, start: int, warmup: int) -> Float[Array, ""]:
    """Returns the share of the adversarial weight after `step` steps, from 0 to 1.

    It is 0 before `start`, then rises linearly to 1, which the `warmup`-th step after `start` has.
    """
    return jnp.clip((jnp.asarray(step) - start + 1) / max(warmup, 1), 0.0, 1.0)


def blur_strength(step: Float[Array, ""] | int, start: int, fade: int) -> Float[Array, ""]:
    """Returns the share of the blur's width after `step` steps, from 1 to 0.

    It is 1 at `start`, then falls linearly to 0 within `fade` steps; for a `fade` of 0 it is
    always 0.
    """
    if not fade:
        return jnp.zeros(())
    return 1 - jnp.clip((jnp.asarray(step) - start) / fade, 0.0, 1.0)


def lecam(
    real: Float[Array, "b n"], fake: Float[Array, "b n"], averages: Float[Array, " 2"]
) -> Float[Array, ""]:
    """Returns the LeCam regularization of a discriminator.

    It is mean relu(D(real) - a_fake)^2 + mean relu(a_real - D(fake))^2.

    Source: Tseng et al. 2021, equation 8.

    Args:
      averages: (a_real, a_fake), running averages of the mean logits.
    """
    average_real, average_fake = jax.lax.stop_gradient(averages)
    return jnp.mean(jax.nn.relu(real - average_fake) ** 2) + jnp.mean(
        jax.nn.relu(average_real - fake) ** 2
    )


def lecam_averages(
    averages: Float[Array, " 2"],
    real: Float[Array, ""],
    fake: Float[Array, ""],
    decay: float,
    updates: Float[Array, ""] | int,
) -> Float[Array, " 2"]:
    """Returns the running averages after one more step's mean logits.

    The first update takes the mean logits as they are and the decay grows from there, so that the
    averages do not start from an arbitrary zero.

    Args:
      averages: (a_real, a_fake) before.
      real: mean logit of this step's real images.
      fake: mean logit of this step's fake images.
      decay: largest weight of the averages before.
      updates: number of updates so far.
    """
    weight = jnp.minimum(decay, updates / (10 + updates))
    return averages * weight + jnp.stack([real, fake]) * (1 - weight)


def r1_penalty(
    logits: Callable[[Float[Array, "b H W c"]], Float[Array, "b n"]],
    images: Float[Array, "b H W c"],
) -> Float[Array, ""]:
    """Returns the R1 penalty, half the mean over images of |d D(x) / d x|^2 at real images.

    D(x) is the mean logit of an image. Source: Mescheder et al. 2018, equation 9.

    Args:
      logits: the discriminator.
      images: real images.
    """
    gradient = jax.grad(lambda x: jnp.sum(jnp.mean(logits(x), axis=-1)))(images)
    return jnp.mean(jnp.sum(gradient**2, axis=(1, 2, 3))) / 2
