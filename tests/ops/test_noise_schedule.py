"""Mixtures of data and noise, against the definitions of DDPM, DiT and SiT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.ops import noise_schedule


def test_mixture_of_the_velocity_is_on_the_straight_line():
    """At a time t the data have the weight t and the noise 1 - t, and the network is given 1000
    t."""
    alpha, sigma, time = noise_schedule.mixture_at("velocity", jnp.array([0.0, 0.25]))
    np.testing.assert_allclose(alpha, [0, 0.25])
    np.testing.assert_allclose(sigma, [1, 0.75])
    np.testing.assert_allclose(time, [0, 250])


def test_mixture_of_epsilon_is_ddpms():
    """Shares fall on the 1000 steps evenly; the squares of both factors add up to 1."""
    alpha, sigma, time = noise_schedule.mixture_at("epsilon", jnp.array([0.0, 0.5, 0.9999]))
    np.testing.assert_array_equal(time, [0, 500, 999])
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
    np.testing.assert_allclose(sigma[0], 0.01, rtol=1e-4)  # beta of the first step is 1e-4
    np.testing.assert_allclose(alpha[2] ** 2, 4.0358e-5, rtol=1e-3)


def test_sampling_path_visits_dits_steps():
    """250 steps have a stride of 999/249, rounded; the network's time at each is that step."""
    path = noise_schedule.sampling_path("epsilon", 250)
    times = jax.vmap(lambda t: noise_schedule.network_time("epsilon", t))(
        jnp.asarray(path.times[:-1], jnp.float32)
    )
    stride = 999 / 249
    np.testing.assert_array_equal(times, [round(i * stride) for i in reversed(range(250))])
    scales = jax.vmap(lambda t: noise_schedule.network_scale("epsilon", t))(path.times)
    np.testing.assert_allclose(scales, path.alphas + path.sigmas, rtol=1e-6)
    assert path.alphas[-1] == 1 and path.sigmas[-1] == 0


@pytest.mark.parametrize("prediction", ["velocity", "epsilon"])
def test_velocity_of_the_target_leads_to_the_data(prediction):
    """From any point of a line, the velocity that the true target gives ends at the data."""
    data, noise = jnp.array([2.0]), jnp.array([-0.5])
    for time in (0.1, 0.5, 0.9):
        point = time * data + (1 - time) * noise
        output = noise_schedule.target(prediction, data, noise)
        velocity = noise_schedule.velocity_of(prediction, output, point, jnp.asarray(time))
        np.testing.assert_allclose(point + (1 - time) * velocity, data, rtol=1e-5)


def test_variational_term_is_the_divergence_of_two_gaussians():
    """The formula is written out with means and variances, in bits."""
    step, error, share = 300, 0.3, 0.4
    beta, bar = noise_schedule.BETAS[step], noise_schedule.ALPHA_BARS[step]
    before = noise_schedule.ALPHA_BARS[step - 1]
    posterior = beta * (1 - before) / (1 - bar)
    predicted = np.exp(share * np.log(beta) + (1 - share) * np.log(posterior))
    data_error = error * np.sqrt(1 - bar) / np.sqrt(bar)
    mean_error = np.sqrt(before) * beta / (1 - bar) * data_error
    nats = (np.log(predicted / posterior) + (posterior + mean_error**2) / predicted - 1) / 2
    term = noise_schedule.variational_term(
        jnp.full((1, 1, 1, 1), error), jnp.full((1, 1, 1, 1), share), jnp.array([float(step)])
    )
    np.testing.assert_allclose(term.item(), nats / np.log(2), rtol=1e-3)
