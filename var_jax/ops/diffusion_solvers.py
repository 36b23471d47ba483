"""From noise to data along a velocity field or by reverse steps of diffusion, as pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

# Velocity at a point and a time.
VelocityField = Callable[[jax.Array, jax.Array], jax.Array]
TINY = 1e-20  # in place of a variance of 0, whose logarithm is asked for


def euler(
    velocity: VelocityField, start: Float[Array, ...], times: Float[Array, " n"]
) -> Float[Array, ...]:
    """Returns the end of the path dx/dt = velocity(x, t) from `start` by Euler's method.

    Args:
      times: from first to last; each interval between two of them is a step of one evaluation.
    """

    def step(x, interval):
        time, next_time = interval
        return x + (next_time - time) * velocity(x, time), None

    return jax.lax.scan(step, start, (times[:-1], times[1:]))[0]


def heun(
    velocity: VelocityField, start: Float[Array, ...], times: Float[Array, " n"]
) -> Float[Array, ...]:
    """Returns the end of the same path by Heun's second-order method.

    Its last step is one of Euler's, so that the velocity at the last time, where a model predicts
    the noise in data without any, is never asked for; the order stays two (Karras et al., arXiv
    2206.00364, algorithm 1). Every other step has two evaluations.
    """

    def step(x, interval):
        time, next_time = interval
        length = next_time - time
        first = velocity(x, time)
        second = velocity(x + length * first, next_time)
        return x + length / 2 * (first + second), None

    x, _ = jax.lax.scan(step, start, (times[:-2], times[1:-1]))
    return euler(velocity, x, times[-2:])


ODE_SOLVERS = {"euler": euler, "heun": heun}
SOLVERS = (*ODE_SOLVERS, "ancestral")


def evaluations(solver: str, steps: int) -> int:
    """Returns the number of times that a solver evaluates the network."""
    return 2 * steps - 1 if solver == "heun" else steps


class Denoised(NamedTuple):
    """A prediction from a noisy mixture.

    Attributes:
      data: the predicted data of the mixture.
      variance_share: where the logarithm of the reverse step's variance lies, from 0 (the least
        variance) to 1 (the most); None for the least.
    """

    data: Float[Array, ...]
    variance_share: Float[Array, ...] | None = None


def ancestral(
    denoise: Callable[[jax.Array, jax.Array], Denoised],
    start: Float[Array, ...],
    alphas: Float[Array, " n"],
    sigmas: Float[Array, " n"],
    noise: Callable[[Int[Array, ""]], Float[Array, ...]],
) -> Float[Array, ...]:
    """Returns a sample by ancestral sampling, the reverse steps of DDPM.

    Each step draws the next mixture, given the present one and the predicted data (DDPM, arXiv
    2006.11239, equations 6 and 7; for any alphas and sigmas, Variational Diffusion Models, arXiv
    2107.00630, appendix A).

    Args:
      denoise: the function from a mixture, alpha data + sigma noise, and the number of the step to
        the prediction.
      start: a mixture at the first alpha and sigma.
      alphas: from noise to data; each interval between two of them is a step of one evaluation.
      sigmas: likewise; where it reaches 0, no noise is drawn.
      noise: the function from the number of a step to its noise.
    """

    def step(x, numbered):
        number, alpha, sigma, next_alpha, next_sigma = numbered
        data, share = denoise(x, number)
        ratio = alpha / next_alpha
        most = sigma**2 - (ratio * next_sigma) ** 2  # variance of the step towards noise
        mean = (ratio * next_sigma**2 * x + next_alpha * most * data) / sigma**2
        least = most * (next_sigma / sigma) ** 2
        if share is None:
            deviation = jnp.sqrt(least)
        else:
            logs = jnp.log(jnp.maximum(least, TINY)), jnp.log(most)
            deviation = jnp.exp((logs[0] + share * (logs[1] - logs[0])) / 2)
        return mean + jnp.where(next_sigma > 0, deviation, 0) * noise(number), None

    numbers = jnp.arange(len(alphas) - 1)
    steps = (numbers, alphas[:-1], sigmas[:-1], alphas[1:], sigmas[1:])
    return jax.lax.scan(step, start, steps)[0]
