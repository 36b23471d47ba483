"""The noise schedules of diffusion, x = alpha data + sigma noise, and its models' targets.

Two predictions are known here:

- "velocity": alpha = t and sigma = 1 - t for t from 0 (noise) to 1 (data); the model predicts
  data - noise (SiT, arXiv 2401.08740, linear path).
- "epsilon": DDPM's 1000 steps of a beta from 1e-4 to 0.02, from the last (noise) to step 0; the
  model predicts the noise (DiT, arXiv 2212.09748; DDPM, arXiv 2006.11239).

Every such mixture, divided by alpha + sigma, lies on the straight line from noise to data, at
t = alpha / (alpha + sigma). So one function, `velocity_of`, converts either prediction to a
velocity on that line, and the solvers (`ops.diffusion_solvers`) work with velocities alone. For
predictions of the noise, Euler's method on the line is DDIM (arXiv 2010.02502, equation 13).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Prediction = Literal["velocity", "epsilon"]
STEPS = 1000  # of DDPM; the time input of a network goes from 0 to this for either prediction
BETAS = np.linspace(1e-4, 0.02, STEPS)
ALPHA_BARS = np.cumprod(1 - BETAS)  # squares of alpha by step


class Mixture(NamedTuple):
    """Factors of data and noise in mixtures, and the network's time input for each."""

    alpha: Float[Array, "*b"]
    sigma: Float[Array, "*b"]
    time: Float[Array, "*b"]


class Path(NamedTuple):
    """Mixtures that a sampler visits, from noise to data.

    Attributes:
      alphas: factors of the data, the last one 1.
      sigmas: factors of the noise, the last one 0.
    """

    alphas: np.ndarray
    sigmas: np.ndarray

    @property
    def times(self) -> np.ndarray:
        """The same points on the straight line from noise (0) to data (1)."""
        return self.alphas / (self.alphas + self.sigmas)


def mixture_at(prediction: Prediction, share: Float[Array, "*b"]) -> Mixture:
    """Returns the mixtures at shares of the noise schedule, from 0 to below 1.

    Training samples the shares uniformly, which makes its times uniform. For "velocity" a share is
    t itself; for "epsilon" it is rounded down to one of the 1000 steps of DDPM.
    """
    if prediction == "velocity":
        return Mixture(share, 1 - share, STEPS * share)
    step = jnp.minimum(jnp.floor(share * STEPS).astype(jnp.int32), STEPS - 1)
    alpha_bar = jnp.asarray(ALPHA_BARS, jnp.float32)[step]
    # 1 - alpha_bar of the first steps would lose digits in float32.
    sigma = jnp.asarray(np.sqrt(1 - ALPHA_BARS), jnp.float32)[step]
    return Mixture(jnp.sqrt(alpha_bar), sigma, step.astype(jnp.float32))


def target(
    prediction: Prediction, data: Float[Array, ...], noise: Float[Array, ...]
) -> Float[Array, ...]:
    """Returns the training target of a network for a mixture of data and noise."""
    return data - noise if prediction == "velocity" else noise


def sampling_path(prediction: Prediction, steps: int) -> Path:
    """Returns the mixtures that a sampler of so many steps visits.

    They are evenly spaced. For "epsilon" they are steps of DDPM from the last to the first, rounded
    as in DiT, and then the data.
    """
    if prediction == "velocity":
        alphas = np.arange(steps + 1) / steps
        return Path(alphas, 1 - alphas)
    visited = np.round(np.linspace(STEPS - 1, 0, steps)).astype(int)
    alpha_bars = np.append(ALPHA_BARS[visited], 1.0)
    return Path(np.sqrt(alpha_bars), np.sqrt(1 - alpha_bars))


def network_time(prediction: Prediction, time: Float[Array, ""]) -> Float[Array, ""]:
    """Returns the time input of a network at a point of the straight line from noise to data."""
    if prediction == "velocity":
        return STEPS * time
    alphas, sigmas = np.sqrt(ALPHA_BARS)[::-1], np.sqrt(1 - ALPHA_BARS)[::-1]
    points = jnp.asarray(alphas / (alphas + sigmas), jnp.float32)
    return jnp.round(jnp.interp(time, points, jnp.arange(STEPS - 1.0, -1.0, -1.0)))


def network_scale(prediction: Prediction, time: Float[Array, ""]) -> Float[Array, ""]:
    """Returns alpha + sigma, the factor from a point of the straight line to its mixture.

    Mixtures are the inputs that the network was trained on.
    """
    if prediction == "velocity":
        return jnp.ones_like(time)
    # From alpha / (alpha + sigma) = t and alpha^2 + sigma^2 = 1.
    return jax.lax.rsqrt(time**2 + (1 - time) ** 2)


def velocity_of(
    prediction: Prediction,
    output: Float[Array, ...],
    point: Float[Array, ...],
    time: Float[Array, ""],
) -> Float[Array, ...]:
    """Returns the velocity on the straight line from noise to data.

    Args:
      output: the network's prediction.
      point: the point on the line, time data + (1 - time) noise.
    """
    return output if prediction == "velocity" else (point - output) / time


def variational_term(
    noise_error: Float[Array, "b h w c"],
    variance_share: Float[Array, "b h w c"],
    time: Float[Array, " b"],
) -> Float[Array, "b h w c"]:
    """Returns the divergence of the true reverse step of DDPM from the predicted one, in bits.

    It trains the predicted variance (arXiv 2102.09672, equations 14 and 15). At step 0, whose true
    variance is 0, that of step 1 takes its place, as in the published code, which there has the
    likelihood of 8-bit pixels instead of a divergence.

    Args:
      noise_error: predicted noise less the true noise, without gradient.
      variance_share: from 0 (the least variance) to 1 (beta), between logarithms.
      time: step of DDPM.
    """
    before = np.append(1.0, ALPHA_BARS[:-1])
    least = BETAS * (1 - before) / (1 - ALPHA_BARS)
    least[0] = least[1]
    # The means differ by the predicted data's error, which is that of the noise times sigma/alpha.
    mean_factor = BETAS * np.sqrt(before) / (1 - ALPHA_BARS)
    mean_factor *= np.sqrt((1 - ALPHA_BARS) / ALPHA_BARS)
    step = time.astype(jnp.int32)

    def by_step(values: np.ndarray) -> jax.Array:
        return jnp.asarray(values, jnp.float32)[step][:, None, None, None]

    log_true = by_step(np.log(least))
    log_predicted = log_true + variance_share * by_step(np.log(BETAS) - np.log(least))
    squared = (by_step(mean_factor) * noise_error) ** 2
    log_ratio = log_true - log_predicted
    divergence = jnp.exp(log_ratio) - 1 - log_ratio + squared * jnp.exp(-log_predicted)
    return divergence / (2 * np.log(2))
