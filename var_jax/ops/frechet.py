"""The Fréchet distance of a batch's features to fixed ones, as a loss with a safe gradient.

The fixed features define the axes: in their principal components they have the mean 0 and a
diagonal covariance, and the distance of moments (m, S) to theirs is

  |m|^2 + tr S + tr V - 2 tr (V^(1/2) S V^(1/2))^(1/2)

with the diagonal V of their variances (Dowson and Landau 1982).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class RawMoments(NamedTuple):
    """The first two moments of features about the origin, which are means over rows.

    Attributes:
      mean: (d,).
      second: (d, d), the mean of outer products.
    """

    mean: Float[Array, " d"]
    second: Float[Array, "d d"]


def raw_moments(features: Float[Array, "b d"]) -> RawMoments:
    """Returns the moments of a batch, over all devices where its rows are divided."""
    with jax.default_matmul_precision("highest"):
        return RawMoments(jnp.mean(features, 0), features.T @ features / features.shape[0])


def running(before: RawMoments, batch: RawMoments, decay: float) -> RawMoments:
    """Returns the running moments after a batch, which enters with the weight 1 - `decay`."""
    return RawMoments(*(decay * a + (1 - decay) * b for a, b in zip(before, batch, strict=True)))


def with_whole_gradient(value: RawMoments, batch: RawMoments) -> RawMoments:
    """Returns moments of a value whose gradient is that of the batch's, whatever its share.

    A loss of running moments has a gradient in proportion to the share of a batch. Without that
    factor a weight means the same at any decay.
    """
    return RawMoments(
        *(
            jax.lax.stop_gradient(a) + b - jax.lax.stop_gradient(b)
            for a, b in zip(value, batch, strict=True)
        )
    )


def distance_to_axes(moments: RawMoments, variances: Float[Array, " d"]) -> Float[Array, ""]:
    """Returns the Fréchet distance of moments from those that define the axes; see the module.

    Args:
      moments: of features in the axes.
      variances: of the features that define the axes, along each.
    """
    with jax.default_matmul_precision("highest"):
        covariance = moments.second - jnp.outer(moments.mean, moments.mean)
        mixed = trace_of_root(covariance, jnp.sqrt(variances))
    return jnp.sum(moments.mean**2) + jnp.trace(covariance) + jnp.sum(variances) - 2 * mixed


# In float32, the roots of the eigenvalues of D S D would be off by the root of a rounding error.
# They are the singular values of D S^(1/2), which have that error itself. The gradient is written
# out, as autodiff's through vectors divides by differences of values that may be equal.
@jax.custom_vjp
def trace_of_root(
    covariance: Float[Array, "d d"], deviations: Float[Array, " d"]
) -> Float[Array, ""]:
    """Returns tr (D S D)^(1/2) for a covariance S and the diagonal D of deviations.

    The gradient with respect to S is D (D S D)^(-1/2) D / 2, and finite for a singular S: roots
    below a rounding error of the largest, or of the largest variance, count as that. The gradient
    with respect to D is zero.
    """
    return _trace_of_root(covariance, deviations)[0]


def _trace_of_root(covariance, deviations):
    values, vectors = jnp.linalg.eigh(covariance)
    root = vectors * jnp.sqrt(jnp.maximum(values, 0))
    left, roots, _ = jnp.linalg.svd(deviations[:, None] * root, full_matrices=False)
    return jnp.sum(roots), (left, roots, deviations)


def _trace_of_root_gradient(saved, cotangent):
    left, roots, deviations = saved
    largest = jnp.maximum(roots[0], jnp.max(deviations) ** 2)  # the latter without any variance
    least = largest * jnp.finfo(roots.dtype).eps * roots.size
    with jax.default_matmul_precision("highest"):
        inverse = (left / (2 * jnp.maximum(roots, least))) @ left.T
    gradient = deviations[:, None] * inverse * deviations
    return cotangent * gradient, jnp.zeros_like(deviations)


trace_of_root.defvjp(_trace_of_root, _trace_of_root_gradient)
