"""Scaled spatial guidance against SciPy's transforms and numbers stated by hand."""

import numpy as np
import pytest
from scipy import fft

from var_jax.ops.resize import resize
from var_jax.ops.spatial_guidance import coarse_prior, guide_from_coarse

SIZES = [((1, 1), (2, 2)), ((2, 2), (3, 4)), ((3, 4), (3, 5)), ((13, 13), (16, 16))]


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(("coarse_size", "size"), SIZES)
def test_prior_of_a_constant_map_is_the_constant(coarse_size, size):
    """Without the gain of the pasted frequencies a map of 3 would become 1.5 from 1x1 to 2x2."""
    prior = coarse_prior(np.full((2, *coarse_size, 3), 3.0, np.float32), size)
    np.testing.assert_allclose(prior, np.full((2, *size, 3), 3.0), atol=1e-5)


@pytest.mark.parametrize(("coarse_size", "size"), SIZES)
def test_prior_has_the_coarse_map_and_higher_frequencies_of_the_resized_one(
    random, coarse_size, size
):
    """SciPy's cosine transform of the prior has the coarse map's coefficients, rescaled, at low
    frequencies and those of the resized map elsewhere."""
    coarse = random.normal(size=(2, *coarse_size, 5)).astype(np.float32)
    spectrum = fft.dctn(np.asarray(coarse_prior(coarse, size)), axes=(1, 2), norm="ortho")
    expected = fft.dctn(np.asarray(resize(coarse, size, "bicubic")), axes=(1, 2), norm="ortho")
    gain = np.sqrt(np.prod(size) / np.prod(coarse_size))
    height, width = coarse_size
    expected[:, :height, :width] = gain * fft.dctn(coarse, axes=(1, 2), norm="ortho")
    np.testing.assert_allclose(spectrum, expected, atol=1e-4)


def test_guidance_moves_away_from_the_prior(random):
    """From 1x1 the prior is the coarse logits at each place, so that the result is known."""
    logits = random.normal(size=(2, 4, 5)).astype(np.float32)
    coarse = random.normal(size=(2, 1, 5)).astype(np.float32)
    sizes = {"size": (2, 2), "coarse_size": (1, 1)}
    guided = guide_from_coarse(logits, coarse, 0.5, **sizes)
    np.testing.assert_allclose(guided, 1.5 * logits - 0.5 * coarse, atol=1e-5)
    np.testing.assert_array_equal(guide_from_coarse(logits, coarse, 0.0, **sizes), logits)
