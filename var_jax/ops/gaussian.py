"""Diagonal Gaussians over features, as KL autoencoders have them (arXiv 2112.10752).

Moments are the means and then the logarithms of the variances, along the last axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PRNGKeyArray

LOG_VARIANCES = (-30.0, 20.0)  # the range that they are cut to, as the released code does


def sample(moments: Float[Array, "*b m"], rng: PRNGKeyArray | None) -> Float[Array, "*b c"]:
    """Returns a sample of each Gaussian, or its mean where `rng` is None."""
    mean, log_variance = _split(moments)
    if rng is None:
        return mean
    return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(rng, mean.shape)


def divergence(moments: Float[Array, "b h w m"]) -> Float[Array, " b"]:
    """Returns the KL divergence of each image's Gaussians from standard normal ones, summed."""
    mean, log_variance = _split(moments)
    terms = mean**2 + jnp.exp(log_variance) - 1 - log_variance
    return 0.5 * jnp.sum(terms, axis=(1, 2, 3))


def _split(moments: Float[Array, "*b m"]) -> tuple[Float[Array, "*b c"], Float[Array, "*b c"]]:
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(log_variance, *LOG_VARIANCES)
