"""Diffusion's training by the ordinary loop: it learns, resumes bit for bit, and its keys are
checked."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import diffusion, small
from helpers.runs import NoEvaluator, assert_resumes_bit_for_bit, records, weights
from var_jax import Pipeline
from var_jax.config.model import ModelConfig
from var_jax.config.train import default_config, from_config_dict
from var_jax.errors import UserError
from var_jax.models import init
from var_jax.objectives import registry
from var_jax.objectives.diffusion import Diffusion
from var_jax.objectives.frozen_tokenizer import FrozenTokenizer
from var_jax.train import evaluation
from var_jax.train.loop import train


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    """The tokenizer alone."""
    directory = tmp_path_factory.mktemp("tokenizer")
    params = {"tokenizer": diffusion.pipeline().params["tokenizer"]}
    Pipeline(ModelConfig(diffusion.TOKENIZER), params).save(directory)
    return directory


def run_config(digits_dir, tokenizer_dir, **changes):
    return small.train_config(
        "transformer",
        digits_dir,
        steps=4,
        tokenizer=diffusion.TOKENIZER,
        transformer=diffusion.transformer(depth=1, **changes),
        tokenizer_dir=str(tokenizer_dir),
    )


@pytest.fixture
def config(digits_dir, tokenizer_dir):
    return run_config(digits_dir, tokenizer_dir)


@pytest.mark.long
def test_diffusion_resumes_bit_for_bit(config, tmp_path, monkeypatch):
    """A run that SIGTERM stops goes on by the same command, as if nothing had happened, and with
    the latents' statistics that it began with."""
    monkeypatch.setattr(evaluation, "Evaluator", NoEvaluator)
    assert_resumes_bit_for_bit(config, tmp_path, monkeypatch)
    average, trained = (weights(tmp_path / "whole", part) for part in ("ema", "params"))
    assert np.all(trained["latent_std"] != 1)
    for name in ("latent_mean", "latent_std"):
        np.testing.assert_allclose(average[name], trained[name], rtol=1e-6)


@pytest.mark.long
def test_diffusion_trains_to_a_model_that_samples(digits_dir, tokenizer_dir, tmp_path):
    """A run on pixels has a falling loss, a picture and held-out losses by time, and is a model
    directory whose latents have the tokenizer's number of channels."""
    config = run_config(digits_dir, tokenizer_dir, latents="pixels")
    held_out = train(dataclasses.replace(config, steps=16, eval_every=16), str(tmp_path))
    by_step = [record["loss"] for record in records(tmp_path) if record["split"] == "train"]
    assert np.mean(by_step[-4:]) < np.mean(by_step[:4])
    assert held_out["loss"] == pytest.approx(np.mean(held_out["loss_time"]), rel=1e-5)
    assert len(held_out["loss_time"]) == 8 and list((tmp_path / "samples").glob("*.png"))
    model = Pipeline.from_pretrained(tmp_path)
    assert model.config.transformer.objective == "diffusion"
    assert model.config.transformer.pixel_channels == 4
    assert model.sample([1, 2], steps=2).shape == (2, 8, 8, 1)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["flops_per_step"].keys() == {"exact", "6nd", "dense"}
    assert meta["tokens_per_image"] == 4  # patches of 2x2 of the 4x4 places


@pytest.mark.long
@pytest.mark.parametrize(
    "changes", [{}, {"prediction": "epsilon"}, {"prediction": "epsilon", "learn_sigma": True}]
)
def test_losses_of_an_untrained_model_are_those_of_a_prediction_of_zero(changes):
    """The mean square of the target, which is 2 (data and noise) or 1 (noise) for normalized data,
    and of a variance half way between its ends the divergence that `variational_term` gives. The
    held-out loss is the same in every call, and padding does not count in it."""
    config = small.train_config(
        "transformer", "", tokenizer=diffusion.TOKENIZER, transformer=diffusion.transformer()
    )
    transformer = diffusion.transformer(depth=1, **changes)
    objective = Diffusion(dataclasses.replace(config, transformer=transformer), FrozenTokenizer({}))
    params = init.fresh_params(transformer, jax.random.key(0))
    latents = jax.random.normal(jax.random.key(5), (64, *transformer.latent_shape))
    batch = {"latents": latents, "label": jnp.zeros(64, jnp.int32), "mask": jnp.arange(64) < 60}
    loss, _ = objective.loss(params, objective.frozen, batch, jax.random.key(0))
    expected = 2 if not changes else 1
    if "learn_sigma" not in changes:
        assert float(loss) == pytest.approx(expected, rel=0.1)
    else:
        assert float(loss) > 1
    first, again = (objective.eval_metrics(params, objective.frozen, batch) for _ in range(2))
    np.testing.assert_array_equal(first["loss_time"], again["loss_time"])
    other = {**batch, "latents": latents.at[60:].set(9.0)}
    padded = objective.eval_metrics(params, objective.frozen, other)
    np.testing.assert_allclose(padded["loss_time"], first["loss_time"], rtol=1e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("order", "zcurve"),
        ("mask", "markov"),
        ("progressive_from", 0),
        ("init_head", 1.0),
        ("init_adaln", 1.0),
        ("init_adaln_gamma", 0.5),
    ],
)
def test_keys_of_other_objectives_are_refused(key, value, config, tmp_path):
    """Training ends with the key and its value in one line, before anything is written."""
    transformer = dataclasses.replace(config.transformer, **{key: value})
    changed = dataclasses.replace(config, transformer=transformer)
    with pytest.raises(UserError, match=rf"transformer\.{key}={value}.*'diffusion'") as caught:
        train(changed, str(tmp_path / "run"))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_train_refuses_losses_and_caches_of_tokens(config, tmp_path):
    """Diffusion predicts no tokens: label smoothing and a token cache are refused with their keys,
    before a workdir is made."""
    smoothed = dataclasses.replace(
        config, loss=dataclasses.replace(config.loss, label_smoothing=0.1)
    )
    with pytest.raises(UserError, match=r"loss\.label_smoothing=0\.1.*'diffusion'"):
        train(smoothed, str(tmp_path / "run"))
    data = dataclasses.replace(config.data, tokens_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"data\.tokens_dir"):
        train(dataclasses.replace(config, data=data), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch": 3}, r"transformer\.patch is 3; it must be a divisor .*4x4"),
        ({"patch": 0}, r"transformer\.patch is 0"),
        ({"learn_sigma": True}, r"transformer\.learn_sigma is True.*'velocity'"),
        ({"width": 18, "heads": 2}, r"transformer\.width is 18.*multiple of 4"),
    ],
)
def test_config_names_values_that_diffusion_cannot_have(changes, words):
    """The error has the key, the value and the condition that it breaks."""
    with pytest.raises(UserError, match=words):
        diffusion.transformer(**changes)


def test_pixel_channels_follow_the_tokenizer():
    """They are no key of a config file, and are filled in once the number of image channels is
    known."""
    config = default_config()
    config.stage, config.transformer.objective = "transformer", "diffusion"
    config.transformer.latents = "pixels"
    assert "pixel_channels" not in config.transformer
    config.data.name = "image_folder"
    run = from_config_dict(config)
    assert run.transformer.pixel_channels == 0
    assert run.with_sizes(3, 10).transformer.pixel_channels == 16 * 16 * 3
    with pytest.raises(UserError, match=r"transformer\.pixel_channels is 7"):
        ModelConfig(diffusion.TOKENIZER, diffusion.transformer(latents="pixels", pixel_channels=7))


def test_registry_finds_the_objective_by_its_key(config):
    """The config's `transformer.objective` selects the class: "diffusion" gives `Diffusion`."""
    assert registry.find(config) is Diffusion
