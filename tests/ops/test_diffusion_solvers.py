"""Solvers against data whose distribution, and so whose exact velocity and prediction, are known:
a Gaussian with the mean MEAN and the covariance COVARIANCE."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.ops import diffusion_solvers, noise_schedule
from var_jax.ops.diffusion_solvers import ODE_SOLVERS, Denoised

MEAN = jnp.array([1.0, -0.5])
COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.8]])


def denoised(mixture, alpha, sigma):
    """Returns the mean of the data, given a mixture of them and noise."""
    gain = alpha * COVARIANCE @ jnp.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * jnp.eye(2))
    return MEAN + (mixture - alpha * MEAN) @ gain.T


def velocity(point, time):
    """Returns the mean of data - noise, given a point of the straight line between them."""
    data = denoised(point, time, 1 - time)
    # At time 0 the point is the noise; elsewhere (point - time data) / (1 - time) is its mean.
    return (data - point) / (1 - time)


def exact_end(start):
    """Returns the end of the path: the map of two Gaussians along the eigenvectors, in which every
    coordinate is scaled by its deviation."""
    values, vectors = np.linalg.eigh(COVARIANCE)
    return MEAN + start @ (vectors * np.sqrt(values)) @ vectors.T


@functools.cache
def starts(count: int = 4000):
    return jax.random.normal(jax.random.key(0), (count, 2))


@pytest.mark.parametrize("solver", ODE_SOLVERS)
def test_ode_samples_have_the_mean_and_covariance_of_the_data(solver):
    """The ends are compared with the exact image of their own starts, whose sampling error they
    share, and that image's moments with the Gaussian's."""
    times = jnp.linspace(0, 1, 401 if solver == "euler" else 41)
    ends = ODE_SOLVERS[solver](velocity, starts(), times)
    tolerance = 0.02 if solver == "euler" else 2e-3
    np.testing.assert_allclose(ends, exact_end(starts()), atol=tolerance)
    np.testing.assert_allclose(jnp.mean(ends, 0), MEAN, atol=0.05)
    np.testing.assert_allclose(jnp.cov(ends.T), COVARIANCE, atol=0.05)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_ode_error_falls_with_the_order_of_the_solver(solver, order):
    """Twice the steps divide the error by 2 (Euler) or 4 (Heun), within a tenth of the exponent."""
    start, counts = starts()[:100], (40, 80, 160)
    with jax.enable_x64(True):
        start = jnp.asarray(start, jnp.float64)
        errors = [
            float(
                jnp.max(
                    jnp.abs(
                        ODE_SOLVERS[solver](velocity, start, jnp.linspace(0, 1, count + 1))
                        - exact_end(start)
                    )
                )
            )
            for count in counts
        ]
    slopes = -np.diff(np.log2(errors))
    np.testing.assert_allclose(slopes, order, atol=0.1)


@pytest.mark.parametrize("prediction", ["velocity", "epsilon"])
def test_ancestral_samples_have_the_mean_and_covariance_of_the_data(prediction):
    """The exact mean of the data is the prediction in every step, for both kinds of mixtures."""
    path = noise_schedule.sampling_path(prediction, 200)
    alphas, sigmas = (jnp.asarray(x, jnp.float32) for x in (path.alphas, path.sigmas))
    keys = jax.random.split(jax.random.key(1), 200)
    ends = diffusion_solvers.ancestral(
        lambda x, i: Denoised(denoised(x, alphas[i], sigmas[i])),
        starts(),
        alphas,
        sigmas,
        lambda i: jax.random.normal(keys[i], starts().shape),
    )
    np.testing.assert_allclose(jnp.mean(ends, 0), MEAN, atol=0.05)
    np.testing.assert_allclose(jnp.cov(ends.T), COVARIANCE, atol=0.06)


def test_ancestral_step_has_ddpms_mean_and_variances():
    """One step between neighbors of DDPM's 1000 has the posterior's mean and, at the ends of the
    range that a model may predict, the posterior's variance and beta (DDPM, equation 7)."""
    step, beta = 500, noise_schedule.BETAS[500]
    bars = noise_schedule.ALPHA_BARS[[step, step - 1]]
    data, mixture = 0.7, -0.4
    posterior = beta * (1 - bars[1]) / (1 - bars[0])
    mean = np.sqrt(bars[1]) * beta / (1 - bars[0]) * data
    mean += np.sqrt(1 - beta) * (1 - bars[1]) / (1 - bars[0]) * mixture

    def step_with(share, noise):
        return diffusion_solvers.ancestral(
            lambda x, i: Denoised(jnp.full(1, data), share),
            jnp.full(1, mixture),
            jnp.sqrt(jnp.asarray(bars)),
            jnp.sqrt(1 - jnp.asarray(bars)),
            lambda i: jnp.full(1, noise),
        )[0]

    with jax.enable_x64(True):
        np.testing.assert_allclose(step_with(None, 0.0), mean, rtol=1e-5)
        for share, variance in ((None, posterior), (jnp.zeros(1), posterior), (jnp.ones(1), beta)):
            deviation = step_with(share, 1.0) - step_with(share, 0.0)
            np.testing.assert_allclose(deviation, np.sqrt(variance), rtol=1e-3)


def test_evaluations_are_those_that_the_solvers_make():
    """Calls are counted by a velocity that is run step by step."""
    for solver, function in ODE_SOLVERS.items():
        calls = []

        def counted(x, t, calls=calls):
            calls.append(float(t))
            return x

        with jax.disable_jit():
            function(counted, jnp.ones(1), jnp.linspace(0, 1, 6))
        assert len(calls) == diffusion_solvers.evaluations(solver, 5) and max(calls) < 1
