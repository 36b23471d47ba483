"""The Fréchet loss: its closed form, its gradient at singular covariances, and running moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.evaluate.fid import Gaussian, frechet_distance
from var_jax.ops import frechet

VARIANCES = np.array([4.0, 1.0, 0.25, 1e-4])  # roots of their squares are lost in float32


def moments_of(gaussian: Gaussian) -> frechet.RawMoments:
    mean, covariance = (np.asarray(x, np.float32) for x in gaussian)
    return frechet.RawMoments(jnp.asarray(mean), jnp.asarray(covariance + np.outer(mean, mean)))


def test_distance_to_axes_is_that_of_gaussians():
    """It equals the distance that evaluation computes in float64, for a covariance that does not
    commute with the axes'."""
    random = np.random.default_rng(0)
    factor = random.standard_normal((4, 4)) * np.sqrt(VARIANCES)[:, None]
    other = Gaussian(random.standard_normal(4), factor @ factor.T)
    axes = Gaussian(np.zeros(4), np.diag(VARIANCES))
    distance = frechet.distance_to_axes(moments_of(other), jnp.asarray(VARIANCES, jnp.float32))
    np.testing.assert_allclose(distance, frechet_distance(axes, other), rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 4.0, 0.25])
def test_gradient_is_the_closed_form_at_every_size_of_variance(scale):
    """For a diagonal covariance s the derivative by s is 1 - (v / s)^(1/2), also where v is a
    hundred-thousandth of the largest: zero for equal ones, so that a small component is not
    shrunk."""
    other = Gaussian(np.zeros(4), np.diag(scale * VARIANCES))
    variances = jnp.asarray(VARIANCES, jnp.float32)
    gradient = jax.grad(frechet.distance_to_axes)(moments_of(other), variances)
    np.testing.assert_allclose(np.diag(gradient.second), 1 - scale**-0.5, atol=2e-3)


def test_gradient_is_that_of_differences_off_the_axes():
    """For a rotated covariance and a mean it is the slope of the distance that evaluation computes
    in float64, by central differences of every entry of both moments."""
    random = np.random.default_rng(4)
    factor = random.standard_normal((4, 4)) + 2 * np.eye(4)
    mean, variances = random.standard_normal(4), np.array([4.0, 2.0, 1.0, 0.5])
    second = factor @ factor.T + np.outer(mean, mean)
    axes, step = Gaussian(np.zeros(4), np.diag(variances)), 1e-5

    def distance(mean, second):
        return frechet_distance(axes, Gaussian(mean, second - np.outer(mean, mean)))

    by_mean = [
        (distance(mean + e, second) - distance(mean - e, second)) / (2 * step)
        for e in step * np.eye(4)
    ]
    # A second moment is symmetric: both of its entries move.
    units = [np.eye(4)[[i]].T @ np.eye(4)[[j]] for i in range(4) for j in range(4)]
    by_second = [
        (distance(mean, second + e) - distance(mean, second - e)) / (2 * step)
        for e in (step * (unit + unit.T) / 2 for unit in units)
    ]
    moments = frechet.RawMoments(jnp.float32(mean), jnp.float32(second))
    gradient = jax.grad(frechet.distance_to_axes)(moments, jnp.float32(variances))
    np.testing.assert_allclose(gradient.mean, by_mean, rtol=1e-3, atol=1e-3)
    symmetric = (gradient.second + gradient.second.T) / 2
    np.testing.assert_allclose(symmetric.ravel(), by_second, rtol=1e-3, atol=1e-3)


def test_gradient_is_finite_without_any_variance():
    """Equal images have a singular covariance; a step against the gradient by the features lowers
    the distance."""
    features = jnp.ones((8, 4)) + jnp.eye(8, 4) * 1e-3
    variances = jnp.asarray(VARIANCES, jnp.float32)

    def distance(features):
        return frechet.distance_to_axes(frechet.raw_moments(features), variances)

    for rows in (features, jnp.zeros((8, 4))):
        assert np.isfinite(jax.grad(distance)(rows)).all()
    lower = distance(features - 1e-3 * jax.grad(distance)(features))
    assert lower < distance(features)


def test_running_moments_have_the_gradient_of_the_batch():
    """The value is the running one's, and the gradient does not depend on the decay, so that a
    weight means the same at any."""
    before = frechet.RawMoments(jnp.zeros(3), jnp.eye(3))
    rows = jnp.asarray(np.random.default_rng(1).standard_normal((5, 3)), jnp.float32)

    def value(rows, decay):
        batch = frechet.raw_moments(rows)
        running = frechet.running(before, batch, decay)
        moments = frechet.with_whole_gradient(running, batch)
        return jnp.sum(moments.mean) + jnp.sum(moments.second), running

    for decay in (0.0, 0.9):
        (total, running), gradient = jax.value_and_grad(value, has_aux=True)(rows, decay)
        expected = 0.1 * np.mean(rows, 0) if decay else np.mean(rows, 0)
        np.testing.assert_allclose(running.mean, expected, rtol=1e-5)
        np.testing.assert_allclose(total, jnp.sum(running.mean) + jnp.sum(running.second), 1e-5)
        if not decay:
            without = gradient
    np.testing.assert_allclose(gradient, without, rtol=1e-5)
