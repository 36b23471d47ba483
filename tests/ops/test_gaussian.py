import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from var_jax.ops import gaussian

MEAN, LOG_VARIANCE = 0.7, -0.4


def moments(count: int) -> jax.Array:
    """Moments of the same Gaussian at every place of a map."""
    both = jnp.array([MEAN, LOG_VARIANCE])
    return jnp.broadcast_to(both, (1, 1, count, 2))


def test_samples_have_the_moments_of_their_gaussians():
    """The moments of 100,000 draws are those of the Gaussians within four standard errors; without
    a key the mean is returned."""
    count, std = 100_000, np.exp(LOG_VARIANCE / 2)
    samples = np.asarray(gaussian.sample(moments(count), jax.random.key(0)))
    assert samples.shape == (1, 1, count, 1)
    assert samples.mean() == pytest.approx(MEAN, abs=4 * std / count**0.5)
    assert samples.var() == pytest.approx(std**2, rel=4 * (2 / count) ** 0.5)
    np.testing.assert_array_equal(
        gaussian.sample(moments(3), None), np.full((1, 1, 3, 1), 0.7, "f")
    )


def test_divergence_is_the_mean_ratio_of_the_densities():
    """The divergence is E[log p - log q], computed by quadrature of scipy's densities, and the
    places of a map add up."""
    own, normal = scipy.stats.norm(MEAN, np.exp(LOG_VARIANCE / 2)), scipy.stats.norm()
    expected = own.expect(lambda x: own.logpdf(x) - normal.logpdf(x))
    assert gaussian.divergence(moments(3))[0] == pytest.approx(3 * expected, rel=1e-5)


def test_divergence_of_a_standard_normal_is_zero():
    """A Gaussian of mean 0 and log variance 0 has a KL divergence of exactly 0 from the standard
    normal."""
    np.testing.assert_array_equal(gaussian.divergence(jnp.zeros((2, 3, 3, 8))), 0)
