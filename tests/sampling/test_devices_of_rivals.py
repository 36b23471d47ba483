"""Samples of every rival of next-scale prediction are the same on any number of devices."""

import functools

import jax
import numpy as np
import pytest

from helpers import diffusion, masked, next_token

LABELS = np.array([3, 1, 4, 10, 5])
MODELS = {
    "next_token": next_token.pipeline,
    "masked": masked.pipeline,
    # Of pixels: a rounding error may be another code where features are quantized at the end.
    "diffusion": functools.partial(diffusion.pipeline, latents="pixels"),
}


@pytest.mark.long
@pytest.mark.parametrize("objective", MODELS)
def test_samples_do_not_depend_on_the_devices(objective):
    """Five images on one device are those of three devices, which hold two rows each and one of
    padding, with guidance and by the same seed; tokens are the same to the last bit."""
    model = MODELS[objective]()
    has_tokens = objective != "diffusion"
    settings = {"seed": 5, "cfg": 1.0, **({"return_tokens": True} if has_tokens else {"steps": 3})}
    several = model.spread(jax.devices()[:3])
    results = [each.sample(LABELS, **settings) for each in (model, several)]
    images = results
    if has_tokens:
        images = [result[0] for result in results]
        np.testing.assert_array_equal(results[1][1], results[0][1])
    np.testing.assert_allclose(images[1], images[0], atol=1e-5)
