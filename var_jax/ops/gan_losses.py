"""The adversarial losses of a tokenizer's training, as pure functions of logits and gradients.

Logits are (b, n): a row an image, a column a patch or a place of a head; every place counts alike.
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
    """The discriminator's hinge loss, mean relu(1 - D(real)) + mean relu(1 + D(fake)) (Lim and Ye
    2017).

    Args:
      halved: the mean of the two, as VQGAN has it, in place of their sum, as vaex has it.
    """
    both = jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))
    return both / 2 if halved else both


def consistency(
    real: Float[Array, "b n"],
    fake: Float[Array, "b n"],
    real_again: Float[Array, "b n"],
    fake_again: Float[Array, "b n"],
) -> Float[Array, ""]:
    """Balanced consistency regularization: mean (D(T(real)) - D(real))^2 + mean (D(T(fake)) -
    D(fake))^2.

    T is a second augmentation; the gradient flows through all four (Zhao et al. 2020, "Improved
    consistency regularization for GANs", algorithm 2; vaex compares two augmentations, as here).
    """
    return jnp.mean((real_again - real) ** 2) + jnp.mean((fake_again - fake) ** 2)


def generator_loss(fake: Float[Array, "b n"]) -> Float[Array, ""]:
    """The generator's linear loss, -mean D(fake)."""
    return -jnp.mean(fake)


def adaptive_weight(
    pixels: Float[Array, "*k"],
    adversarial: Float[Array, "*k"],
    lowest: float,
    highest: float,
    epsilon: float = 1e-6,
) -> Float[Array, ""]:
    """|grad of the pixel and perceptual terms| / (|grad of the adversarial term| + epsilon), both
    at the decoder's last kernel, clamped; no gradient flows through it (VQGAN: Esser et al. 2021,
    equation 7)."""
    ratio = jnp.linalg.norm(pixels.reshape(-1)) / (
        jnp.linalg.norm(adversarial.reshape(-1)) + epsilon
    )
    return jax.lax.stop_gradient(jnp.clip(ratio, lowest, highest))


def ramp(step: Float[Array, ""] | int, start: int, warmup: int) -> Float[Array, ""]:
    """The share of the adversarial weight at a step, `step` of them being done: 0 before `start`,
    then linearly to 1, which the `warmup`-th step after `start` has."""
    return jnp.clip((jnp.asarray(step) - start + 1) / max(warmup, 1), 0.0, 1.0)


def blur_strength(step: Float[Array, ""] | int, start: int, fade: int) -> Float[Array, ""]:
    """The share of the blur's width at a step, `step` of them being done: 1 at `start`, then
    linearly to 0, which it has from `fade` steps after `start` on; always 0 for a `fade` of 0."""
    if not fade:
        return jnp.zeros(())
    return 1 - jnp.clip((jnp.asarray(step) - start) / fade, 0.0, 1.0)


def lecam(
    real: Float[Array, "b n"], fake: Float[Array, "b n"], averages: Float[Array, " 2"]
) -> Float[Array, ""]:
    """LeCam regularisation: mean relu(D(real) - a_fake)^2 + mean relu(a_real - D(fake))^2 (Tseng et
    al. 2021, eq. 8).

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
    """The averages after mean logits `real` and `fake`; the first update takes them as they are and
    the decay grows from there, so that the averages do not start from an arbitrary zero."""
    kept = jnp.minimum(decay, updates / (10 + updates))
    return averages * kept + jnp.stack([real, fake]) * (1 - kept)


def r1_penalty(
    logits: Callable[[Float[Array, "b H W c"]], Float[Array, "b n"]],
    images: Float[Array, "b H W c"],
) -> Float[Array, ""]:
    """R1: half the mean over images of |d D(x) / d x|^2 at real images, D(x) an image's mean logit
    (Mescheder et al. 2018, equation 9)."""
    gradient = jax.grad(lambda x: jnp.sum(jnp.mean(logits(x), axis=-1)))(images)
    return jnp.mean(jnp.sum(gradient**2, axis=(1, 2, 3))) / 2
