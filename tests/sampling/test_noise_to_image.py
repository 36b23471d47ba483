"""Sampling from noise: what an image depends on, which settings there are, and what the solvers
make of a network that is exactly right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import diffusion
from var_jax.errors import UserError
from var_jax.models import flops
from var_jax.ops import noise_schedule
from var_jax.sampling import noise_to_image, sampler_registry
from var_jax.sampling.noise_to_image import DiffusionSamplerConfig, Predicted

LABELS = np.array([3, 1, 4, 10])
PIXELS = {"latents": "pixels", "pixel_channels": 4}


@pytest.mark.long
@pytest.mark.parametrize("solver", ["heun", "ancestral"])
def test_sample_does_not_depend_on_the_batch(solver):
    """Image i is the same alone, with others, and in batches of another size, to rounding."""
    model = diffusion.pipeline(**PIXELS)
    settings = {"seed": 5, "cfg": 1.0, "steps": 3, "solver": solver}
    images = model.sample(LABELS, **settings)
    assert images.shape == (4, 8, 8, 1) and images.min() >= 0 and images.max() <= 1
    one_by_one = model.sample(LABELS, batch_size=1, **settings)
    np.testing.assert_allclose(one_by_one, images, atol=2e-6)
    last = model.sample(LABELS[3:], first_index=3, **settings)
    np.testing.assert_allclose(last, images[3:], atol=2e-6)
    assert np.abs(images - model.sample(LABELS, **{**settings, "seed": 6})).max() > 0.01
    assert np.abs(images - model.sample(LABELS[::-1], **settings)).max() > 0.01


@pytest.mark.parametrize("prediction", ["velocity", "epsilon"])
@pytest.mark.parametrize("solver", ["euler", "heun", "ancestral"])
def test_solvers_end_at_the_data_of_a_network_that_knows_them(prediction, solver):
    """Where every mixture is of the same data, its noise is known, and any solver finds the data
    in any number of steps."""
    data = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))

    def network(mixture, time):
        if prediction == "velocity":
            alpha, sigma = time / 1000, 1 - time / 1000
        else:
            bar = jnp.asarray(noise_schedule.ALPHA_BARS)[time.astype(int)]
            alpha, sigma = jnp.sqrt(bar), jnp.sqrt(1 - bar)
        noise = (mixture - alpha * data) / sigma
        return Predicted(data - noise if prediction == "velocity" else noise, None)

    def noise(number):
        return jax.random.normal(jax.random.fold_in(jax.random.key(1), number), data.shape)

    for steps in (1, 4):
        compiled = DiffusionSamplerConfig(solver, steps, guided=False)
        latents = noise_to_image._solve(prediction, compiled, network, noise)
        np.testing.assert_allclose(latents, data, atol=2e-3)


@pytest.mark.long
def test_guidance_mixes_both_branches():
    """One step of Euler's method from the same noise is linear in the guidance."""
    model = diffusion.pipeline(**PIXELS)
    config, weights = model.config, model.params
    labels, keys = jnp.array([2]), jax.random.split(jax.random.key(0), 1)

    def predicted(cfg, labels, guided):
        network = noise_to_image._network(config, weights, labels, cfg, guided=guided)
        mixture = jax.random.normal(keys[0], (1, *config.transformer.latent_shape))
        return network(mixture, jnp.asarray(300.0)).output

    labeled, unlabeled = (predicted(0, jnp.array([x]), guided=False) for x in (2, 10))
    np.testing.assert_allclose(
        predicted(1.5, labels, guided=True), 2.5 * labeled - 1.5 * unlabeled, atol=1e-5
    )


def test_features_are_decoded_by_the_tokenizer():
    """Epsilon with learned variances, over the tokenizer's features: as many images as labels."""
    model = diffusion.pipeline(prediction="epsilon", learn_sigma=True)
    images = model.sample([1, 2], steps=2, solver="ancestral", as_uint8=True)
    assert images.shape == (2, 8, 8, 1) and images.dtype == np.uint8


def test_sample_by_default_is_the_fid_preset():
    """None is the default, too; the other objectives' presets are this one."""
    model = diffusion.pipeline(**PIXELS)
    assert model.sampling_settings() == {"cfg": 0.5, "steps": 50, "solver": "heun"}
    assert model.sampling_settings(steps=None, cfg=2)["cfg"] == 2
    assert model.sampling_settings("pretty") == model.sampling_settings("fid")


def test_generation_flops_count_evaluations_and_guidance():
    """Seven Euler steps cost seven passes; guidance doubles them, and Heun adds one to each step
    but the last."""
    model = diffusion.pipeline(**PIXELS)
    config, sampler = model.config, sampler_registry.find(model.config)

    def evaluations(**settings):
        prepared = sampler.prepare(config, model.sampling_settings(**settings))
        return sampler.generation_flops(config, prepared) / flops.forward_flops(config.transformer)

    assert evaluations(steps=7, solver="euler", cfg=0) == 7
    assert evaluations(steps=7, solver="ancestral", cfg=1) == 14
    assert evaluations(steps=7, solver="heun", cfg=1) == 26


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps is 0; it must be .*whole number"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"solver": "rk4"}, "solver is 'rk4'; it must be 'euler' or 'heun' or 'ancestral'"),
        ({"cfg": [1.0, 2.0]}, "cfg is .*; it must be one number"),
        ({"top_k": 5}, "top_k is 5; it must be left out"),
        ({"temperature": 2}, "temperature is 2; it must be left out"),
        ({"smooth": True}, "smooth is True; it must be left out"),
        ({"return_steps": True}, "return_steps is True; it must be left out"),
        ({"return_tokens": True}, "'diffusion'"),
    ],
)
def test_sample_names_a_setting_that_it_has_no_use_for(settings, words):
    """A setting of other samplers must be left out, and a wrong value is named with the right ones,
    in one line."""
    with pytest.raises(UserError, match=words) as caught:
        diffusion.pipeline(**PIXELS).sample([1], **settings)
    assert "\n" not in str(caught.value)


def test_steps_of_epsilon_are_at_most_those_of_its_training():
    """A model of 1000 noise levels cannot be sampled in more steps."""
    model = diffusion.pipeline(prediction="epsilon", learn_sigma=True)
    with pytest.raises(UserError, match="steps is 1001; it must be at most the 1000"):
        model.sample([1], steps=1001)


def test_pipeline_refuses_what_needs_tokens():
    """Tokens, logits, edits and PyTorch weights are refused in one line that names the
    objective."""
    model = diffusion.pipeline(**PIXELS)
    images, tokens = np.zeros((1, 8, 8, 1), np.float32), np.zeros((1, 21), np.int32)
    for attempt in (
        lambda: model.encode(images),
        lambda: model.logits(tokens, [1]),
        lambda: model.edit(images, np.ones((4, 4), bool)),
        lambda: model.vary(images, keep_scales=0),
        lambda: model.to_torch(),
    ):
        with pytest.raises(UserError, match="'diffusion'|'next_scale'") as caught:
            attempt()
        assert "\n" not in str(caught.value)
