"""Autoencoders without a quantizer train by the tokenizer's objective, and diffusion over them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import continuous, diffusion, small
from helpers.runs import NoEvaluator, assert_resumes_bit_for_bit, records
from var_jax import Pipeline
from var_jax.config import idle_keys
from var_jax.config.model import ModelConfig
from var_jax.config.tokenizer_training import CodebookConfig
from var_jax.config.train import LossConfig
from var_jax.devices import target
from var_jax.errors import UserError
from var_jax.models import flops, init
from var_jax.models.tokenizer import Tokenizer
from var_jax.objectives import registry
from var_jax.objectives.frozen_networks import NetworkWeights
from var_jax.ops import gaussian
from var_jax.ops.normalize import normalize_images
from var_jax.train import evaluation
from var_jax.train.loop import train
from var_jax.train.tokenize import tokenize

pytestmark = pytest.mark.usefixtures("compiled_once")


def run_config(codes: str, data_dir="", **changes):
    settings = {"tokenizer": continuous.tokenizer(codes), **changes}
    return small.train_config("tokenizer", data_dir, **settings)


@pytest.fixture(scope="module")
def batch():
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    return {"image": images, "mask": np.arange(8) < 6}


@pytest.mark.long
@pytest.mark.parametrize("codes", continuous.KINDS)
def test_loss_is_that_of_the_images_and_of_the_gaussians(codes, batch):
    """The loss is computed here by hand, of samples with the step's key and of means without one.
    The divergence counts per number of the images, by its weight, and a plain autoencoder has
    none."""
    config = run_config(codes, loss=LossConfig(l1=0.5, l2=2.0, kl=0.1))
    objective = registry.with_frozen_shapes(config)
    params = continuous.pipeline(codes).params["tokenizer"]
    images = normalize_images(jnp.asarray(batch["image"]))
    model, key = Tokenizer(config.tokenizer), jax.random.key(3)

    for rng in (key, None):
        loss, metrics = objective.loss(params, NetworkWeights(), batch, rng)
        features = model.apply({"params": params}, images, method="moments")
        expected = 0.0
        if codes == "kl":
            divergence = jnp.mean(gaussian.divergence(features)) / 64
            assert float(metrics["kl"]) == pytest.approx(float(divergence), rel=1e-5)
            expected += 0.1 * divergence
            features = gaussian.sample(features, rng)
        rebuilt = model.apply({"params": params}, features, method="reconstruct")
        expected += 0.5 * jnp.mean(abs(rebuilt - images)) + 2 * jnp.mean((rebuilt - images) ** 2)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
        assert metrics.keys() == {"loss", "l1", "l2"} | ({"kl"} if codes == "kl" else set())


@pytest.mark.long
@pytest.mark.parametrize("codes", continuous.KINDS)
def test_held_out_metrics_are_of_the_means(codes, batch):
    """Held-out metrics are of the Gaussians' means over the rows that count: they depend on no
    random numbers, and have no figures of codes."""
    objective = registry.with_frozen_shapes(run_config(codes))
    model = continuous.pipeline(codes)
    sums = objective.eval_metrics(model.params["tokenizer"], NetworkWeights(), batch)
    metrics = objective.summarize(jax.tree.map(np.asarray, sums), 6)
    images = np.asarray(normalize_images(batch["image"]))[:6]
    (back,) = model.reconstruct(images)
    assert metrics["l2"] == pytest.approx(np.mean((back - images) ** 2), rel=1e-5)
    assert metrics.keys() - {"kl"} == {"l1", "l2", "loss", "psnr"}
    assert ("kl" in metrics) == (codes == "kl")


@pytest.mark.long
def test_run_resumes_bit_for_bit(digits_dir, tmp_path, monkeypatch):
    """A run that SIGTERM stops goes on by the same command, with the same samples of the Gaussians,
    as if nothing had happened."""
    monkeypatch.setattr(evaluation, "Evaluator", NoEvaluator)
    config = run_config("kl", digits_dir, steps=3, eval_every=3)
    assert_resumes_bit_for_bit(config, tmp_path, monkeypatch)


@pytest.mark.study
def test_diffusion_learns_over_a_gaussians_features(digits_dir, tmp_path):
    """The loss of a whole run of the KL autoencoder falls, and it has a picture. A run of diffusion
    over its features learns their means, and generated features are decoded as they are."""
    run = run_config("kl", digits_dir, steps=12, eval_every=12, checkpoint_every=12)
    train(run, str(tmp_path / "kl"))
    by_step = [record["loss"] for record in records(tmp_path / "kl") if record["split"] == "train"]
    assert np.mean(by_step[-3:]) < np.mean(by_step[:3])
    assert list((tmp_path / "kl" / "samples").glob("*.png"))
    tokenizer = continuous.tokenizer("kl")
    config = small.train_config(
        "transformer",
        digits_dir,
        steps=2,
        eval_every=2,
        tokenizer=tokenizer,
        transformer=diffusion.transformer(depth=1, scales=tokenizer.scales),
        tokenizer_dir=str(tmp_path / "kl"),
    )
    train(config, str(tmp_path / "diffusion"))
    assert list((tmp_path / "diffusion" / "samples").glob("*.png"))
    model = Pipeline.from_pretrained(tmp_path / "diffusion")
    assert model.sample([1, 2], steps=2).shape == (2, 8, 8, 1)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    images = normalize_images(pixels)
    variables = {"params": model.params["tokenizer"]}
    means = Tokenizer(tokenizer).apply(variables, images, method="features")
    decoded = Tokenizer(tokenizer).apply(variables, means, method="decode_latents")
    np.testing.assert_allclose(decoded, model.reconstruct(np.asarray(images))[0], atol=1e-6)


@pytest.mark.parametrize("codes", continuous.KINDS)
def test_parameters_and_flops_are_those_of_the_module(codes):
    """There is no quantizer among the parameters, a Gaussian has twice the channels, and XLA counts
    the products of the encoder and of the decoder as `flops` does."""
    config = dataclasses.replace(continuous.tokenizer(codes), channels=32, z_channels=8)
    params = init.param_shapes(config)
    assert params.keys() == {"encoder", "quant_conv", "post_quant_conv", "decoder"}
    assert params["quant_conv"]["kernel"].shape[-1] == (16 if codes == "kl" else 8)
    model, rows = Tokenizer(config), 2
    shape = (rows, *config.scales.finest, 8)
    images = jax.ShapeDtypeStruct((rows, *config.image_shape), jnp.float32)
    for count, method, inputs in (
        (flops.encode_flops(config), "features", images),
        (flops.decode_flops(config), "decode_latents", jax.ShapeDtypeStruct(shape, jnp.float32)),
    ):
        with target.tracing_for_other_devices():
            lowered = jax.jit(
                lambda p, x, method=method: model.apply({"params": p}, x, method=method)
            ).lower(params, inputs)
        assert count * rows == pytest.approx(lowered.cost_analysis()["flops"], rel=0.06)


@pytest.mark.parametrize("codes", continuous.KINDS)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"scales": small.SCALES},
            r"tokenizer\.scales is 1,2,3x4; it must be one map",
        ),
        ({"quantizer_dropout": 0.1}, r"tokenizer\.quantizer_dropout is 0\.1; it must be 0"),
    ],
)
def test_tokenizer_refuses_keys_of_a_quantizer(codes, changes, words):
    """An autoencoder without a quantizer has one map and no quantizer dropout: other values are
    refused in one line with the key and the kind of codes."""
    with pytest.raises(UserError, match=rf"{words}.*'{codes}'") as caught:
        dataclasses.replace(continuous.tokenizer(codes), **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init": "kmeans"}, r"codebook\.init.*kmeans"),
        ({"revive_threshold": 0.1}, r"codebook\.init and revive_threshold"),
        ({"entropy": 0.1}, r"codebook\.entropy is 0\.1"),
    ],
)
def test_run_refuses_settings_of_a_codebook(changes, words):
    """A run without a codebook refuses settings of one, and the message has the key and the kind of
    codes."""
    with pytest.raises(UserError, match=rf"{words}.*'none'"):
        run_config("none", codebook=CodebookConfig(**changes))


@pytest.mark.parametrize(
    ("codes", "section", "changes"),
    [
        ("none", "tokenizer", {"vocab_size": 32}),
        ("none", "tokenizer", {"phi_ratio": 0.25}),
        ("kl", "tokenizer", {"vq_beta": 0.5}),
        ("kl", "loss", {"vq": 2.0}),
        ("none", "codebook", {"collapse_share": 0.1}),
        ("none", "loss", {"kl": 1e-3}),
        ("euclidean", "loss", {"kl": 1e-3}),
    ],
)
def test_flag_without_effect_names_the_kind_of_codes(codes, section, changes):
    """A key of the command line that has no effect with these codes is refused, and the message has
    the kind of codes."""
    config = run_config(codes)
    config = dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **changes)}
    )
    (key,) = changes
    words = rf"{section}\.{key}=.* has no effect while tokenizer\.codes is '{codes}'"
    with pytest.raises(UserError, match=words):
        idle_keys.refuse_flags(config, [f"{section}.{key}"])


@pytest.mark.parametrize("codes", continuous.KINDS)
def test_tokens_are_refused(codes, digits_dir, tmp_path):
    """Methods of tokens, objectives that learn them, a token cache and published keys each refuse
    such a model in one line that names the key, and nothing is written."""
    model = continuous.pipeline(codes)
    model.save(tmp_path / "model")
    config, words = run_config(codes, digits_dir), rf"tokenizer\.codes.*'{codes}'"
    out = tmp_path / "cache"
    for attempt in (
        lambda: model.encode(np.zeros((1, 8, 8, 1))),
        lambda: model.decode(np.zeros((1, 16), int)),
        lambda: model.to_torch(),
        lambda: ModelConfig(
            config.tokenizer, dataclasses.replace(small.TRANSFORMER, scales=config.tokenizer.scales)
        ),
        lambda: tokenize(config, str(tmp_path / "model"), str(out)),
    ):
        with pytest.raises(UserError, match=words) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert not out.exists()
