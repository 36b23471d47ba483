"""Losses and gradients of adversarial training against numpy, term by term."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import small
from helpers.adversarial import PATCH, Linear
from var_jax.config.train import LossConfig
from var_jax.models.tokenizer import Tokenizer
from var_jax.objectives.adversarial import DiscriminatorState
from var_jax.objectives.autoencoder import Autoencoder
from var_jax.objectives.autoencoder_loss import AutoencoderState, AutoencoderVariant
from var_jax.objectives.frozen_networks import FrozenBackbone, LossNetworks, NetworkWeights
from var_jax.ops import diffaugment
from var_jax.pretrained.perceptual import Perceptual

# The distance sum of fourth powers over a fixed number, whose gradient is written down below.
QUARTIC = Perceptual(
    "quartic",
    {"over": jnp.float32(5.0)},
    lambda params, x, y: jnp.sum((x - y) ** 4, axis=(1, 2, 3)) / params["over"],
)

pytestmark = pytest.mark.usefixtures("compiled_once")


def at_last_kernel(hidden, cotangent):
    """The gradient of a 3x3 convolution's kernel, tap by tap, in float64."""
    h, w = hidden.shape[1:3]
    padded = np.pad(hidden.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return np.array(
        [
            [
                np.einsum("bhwc,bhwo->co", padded[:, i : i + h, j : j + w], cotangent)
                for j in range(3)
            ]
            for i in range(3)
        ]
    )


def gradients_of(config, network, networks=None):
    """Returns the compiled gradients of a step with a discriminator, which `network` stands for."""
    objective = Autoencoder(config, networks)
    objective.discriminator = network
    variant = AutoencoderVariant(adversarial=True)
    return jax.jit(functools.partial(objective.gradients, variant=variant))


@pytest.mark.parametrize("lowest", [0.015, pytest.param(30.0, marks=pytest.mark.slow)])
def test_gradients_of_a_linear_discriminator_are_those_by_hand(params, batch, lowest):
    """Every term, the adaptive weight and both networks' gradients equal those written out for a
    linear discriminator."""
    weights = LossConfig(l1=0.3, l2=0.7, vq=2.0, perceptual=0.5)
    adversarial = dataclasses.replace(PATCH, r1=0.0, adaptive_lowest=lowest, start=1, warmup=4)
    config = small.train_config("tokenizer", "", loss=weights, adversarial=adversarial)
    images = batch["image"].astype(np.float32) / 127.5 - 1
    random = np.random.default_rng(1)
    matrix = (0.05 * random.normal(size=(images[0].size, 7))).astype(np.float32)
    averages = np.array([0.4, -0.2], np.float32)
    discriminator = DiscriminatorState({"matrix": matrix}, None, {}, averages, jnp.int32(3))
    gradients = gradients_of(config, Linear(), LossNetworks(QUARTIC))
    result, _ = gradients(
        AutoencoderState(jnp.int32(2), params, None, None, discriminator),
        NetworkWeights(QUARTIC.params),
        batch,
        jax.random.key(0),
    )

    model = Tokenizer(small.TOKENIZER)
    (rec, _, vq), remaining = jax.jit(
        lambda p: model.apply(
            {"params": p}, images, capture_intermediates=lambda module, _: module.name == "norm_out"
        )
    )(params)
    rec, hidden = (
        np.asarray(rec, np.float64),
        np.asarray(remaining["intermediates"]["decoder"]["norm_out"]["__call__"][0], np.float64),
    )
    hidden, difference = hidden / (1 + np.exp(-hidden)), rec - images
    count, rows, places = difference.size, len(images), matrix.shape[1]
    image_loss = (
        0.3 * np.abs(difference).mean()
        + 0.7 * (difference**2).mean()
        + 0.5 * (difference**4).sum() / 5 / rows
    )
    d_similar = (
        0.3 * np.sign(difference) + 0.7 * 2 * difference
    ) / count + 0.5 * 4 * difference**3 / 5 / rows
    real, fake = (x.reshape(rows, -1) @ matrix.astype(np.float64) for x in (images, rec))
    d_generator = np.broadcast_to(-matrix.mean(axis=1) / rows, (rows, len(matrix))).reshape(
        rec.shape
    )
    ratio = np.linalg.norm(at_last_kernel(hidden, d_similar).ravel()) / np.linalg.norm(
        at_last_kernel(hidden, d_generator).ravel()
    )
    adaptive = max(ratio, lowest)
    weight = 0.4 * 0.5 * adaptive  # the second of four warm-up steps
    metrics = result.metrics
    np.testing.assert_allclose(metrics["adaptive_weight"], adaptive, rtol=1e-3)
    np.testing.assert_allclose(metrics["generator_weight"], weight, rtol=1e-3)
    np.testing.assert_allclose(metrics["generator"], -fake.mean(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        metrics["loss"], image_loss + 2 * float(vq) - weight * fake.mean(), rtol=1e-3
    )
    actual = np.asarray(result.params["decoder"]["conv_out"]["kernel"])
    expected = at_last_kernel(hidden, d_similar + weight * d_generator)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-3 * np.abs(expected).max())

    gap_real, gap_fake = np.maximum(real + 0.2, 0), np.maximum(0.4 - fake, 0)
    hinge = (np.maximum(1 - real, 0).mean() + np.maximum(1 + fake, 0).mean()) / 2
    lecam = (gap_real**2).mean() + (gap_fake**2).mean()
    np.testing.assert_allclose(metrics["discriminator_loss"], hinge + 0.1 * lecam, rtol=1e-3)
    np.testing.assert_allclose(
        [metrics["logits_real"], metrics["logits_fake"]],
        [real.mean(), fake.mean()],
        rtol=1e-3,
        atol=1e-5,
    )
    by_hand = (
        rec.reshape(rows, -1).T @ ((fake > -1) / 2 - 0.1 * 2 * gap_fake)
        - images.reshape(rows, -1).T @ ((real < 1) / 2 - 0.1 * 2 * gap_real)
    ) / (rows * places)
    np.testing.assert_allclose(
        result.discriminator["matrix"], by_hand, rtol=0, atol=2e-3 * np.abs(by_hand).max()
    )


class TwoViews(Linear):
    """A linear discriminator that sees images upside down the second time, and dimmed by the
    blur."""

    def logits(self, params, spectral, frozen, images, key, blur):
        return super().logits(params, spectral, frozen, images * (1 - blur / 2), key, blur)

    def logits_again(self, params, spectral, frozen, images, key):
        return super().logits(params, spectral, frozen, images[:, ::-1], key, 0.0)[0]


@pytest.mark.long
def test_gradients_with_consistency_are_those_by_hand(params, batch):
    """The discriminator's loss and gradient are the sum of both hinges and 4 times the consistency,
    written out for a linear discriminator of two views; the generator sees the first view alone, at
    the blur's strength of the step."""
    changes = {
        "r1": 0.0,
        "lecam": 0.0,
        "start": 1,
        "warmup": 4,
        "blur_fade": 5,
        "hinge": "sum",
        "bcr": 4.0,
    }
    config = small.train_config(
        "tokenizer", "", adversarial=dataclasses.replace(PATCH, adaptive=False, **changes)
    )
    images = batch["image"].astype(np.float32) / 127.5 - 1
    random = np.random.default_rng(1)
    matrix = (0.05 * random.normal(size=(images[0].size, 7))).astype(np.float32)
    discriminator = DiscriminatorState({"matrix": matrix}, None, {}, jnp.zeros(2), jnp.int32(3))
    gradients = gradients_of(config, TwoViews())
    result, _ = gradients(
        AutoencoderState(jnp.int32(2), params, None, None, discriminator),
        NetworkWeights(),
        batch,
        jax.random.key(0),
    )

    model = Tokenizer(small.TOKENIZER)
    rec = np.asarray(jax.jit(lambda p: model.apply({"params": p}, images))(params)[0], np.float64)
    seen = 1 - 0.8 / 2  # one of five steps of fading is over
    rows, places = len(images), matrix.shape[1]
    first = [(x * seen).reshape(rows, -1) for x in (images.astype(np.float64), rec)]
    second = [x[:, ::-1].reshape(rows, -1) for x in (images.astype(np.float64), rec)]
    real, fake = (x @ matrix for x in first)
    difference = [two - one for one, two in zip(first, second, strict=True)]
    hinge = np.maximum(1 - real, 0).mean() + np.maximum(1 + fake, 0).mean()
    consistency = sum(((x @ matrix) ** 2).mean() for x in difference)
    metrics = result.metrics
    np.testing.assert_allclose([metrics["hinge"], metrics["bcr"]], [hinge, consistency], rtol=1e-3)
    np.testing.assert_allclose(metrics["discriminator_loss"], hinge + 4 * consistency, rtol=1e-3)
    np.testing.assert_allclose(metrics["generator"], -fake.mean(), rtol=1e-3, atol=1e-5)
    by_hand = (first[1].T @ (fake > -1) - first[0].T @ (real < 1)) / (rows * places)
    by_hand += 4 * sum(2 * x.T @ (x @ matrix) for x in difference) / (rows * places)
    np.testing.assert_allclose(
        result.discriminator["matrix"], by_hand, rtol=0, atol=2e-3 * np.abs(by_hand).max()
    )


def test_discriminator_augments_each_view_by_its_own_policy(params, batch):
    """The first view is blurred and then augmented by its policy; the second is not blurred, and
    has its own."""
    full = dataclasses.replace(
        PATCH, diffaugment="", blur_fade=0.5, bcr=1.0, bcr_diffaugment="cutout", bcr_cutout=1.0
    )
    config = small.train_config("tokenizer", "", adversarial=full)
    discriminator = Autoencoder(config).discriminator
    made = nn.meta.unbox(discriminator.init(jax.random.key(0)))
    images = batch["image"].astype(np.float32) / 127.5 - 1

    def logits(images, blur):
        return discriminator.logits(
            made["params"], {}, NetworkWeights(), images, jax.random.key(1), jnp.float32(blur)
        )[0]

    np.testing.assert_allclose(
        logits(images, 0.7), logits(diffaugment.fading_blur(images, jnp.float32(0.7)), 0), atol=1e-6
    )
    assert float(jnp.abs(logits(images, 0.7) - logits(images, 0)).max()) > 1e-4
    again = discriminator.logits_again(
        made["params"], {}, NetworkWeights(), images, jax.random.key(1)
    )
    many = [
        discriminator.logits_again(made["params"], {}, NetworkWeights(), images, jax.random.key(k))
        for k in range(8)
    ]
    # A hole as large as the image leaves nothing where its center is that of the image.
    assert (
        not np.allclose(again, logits(images, 0.0))
        and len({x.tobytes() for x in map(np.asarray, many)}) > 1
    )


@pytest.mark.long
def test_discriminator_on_features_sees_images_of_its_networks_size(batch):
    """A network for 4 pixels gets images of 4 by 4, whatever the tokenizer's, and its heads as many
    places."""
    adversarial = dataclasses.replace(
        PATCH, discriminator="features", feature_size=4, feature_crops=0.5
    )
    config = small.train_config("tokenizer", "", adversarial=adversarial)
    seen = []

    def levels(weights, images):
        seen.append(images.shape)
        return [images * weights]

    backbone = FrozenBackbone(jnp.ones(()), levels)
    discriminator = Autoencoder(config, LossNetworks(features=backbone)).discriminator
    made = nn.meta.unbox(discriminator.init(jax.random.key(0)))
    images = batch["image"].astype(np.float32) / 127.5 - 1
    logits, _ = discriminator.logits(
        made["params"],
        made["spectral"],
        NetworkWeights(features=jnp.ones(())),
        images,
        jax.random.key(0),
        jnp.zeros(()),
    )
    assert seen == [(1, 4, 4, 1), (8, 4, 4, 1)] and logits.shape == (8, 16)


@pytest.mark.slow
def test_not_finite_names_the_network_that_diverged(params, batch):
    """Both networks' losses are NaN if either's weights are: the terms that only the generator has
    tell which one it is."""
    config = small.train_config("tokenizer", "", adversarial=PATCH)
    gradients = gradients_of(config, Linear())
    matrix = jnp.ones((int(np.prod(small.TOKENIZER.image_shape)), 2))

    objective = Autoencoder(config)

    def named(params, matrix):
        discriminator = DiscriminatorState({"matrix": matrix}, None, {}, jnp.zeros(2), jnp.int32(0))
        run = AutoencoderState(jnp.int32(2), params, None, None, discriminator)
        result, _ = gradients(run, NetworkWeights(), batch, jax.random.key(0))
        norms = {"grad_norm": result.params, "discriminator_grad_norm": result.discriminator}
        return objective.not_finite(
            {**result.metrics, **{name: optax.tree_utils.tree_norm(g) for name, g in norms.items()}}
        )

    assert named(params, matrix) is None
    assert named(params, matrix * jnp.nan)[0] == "the discriminator's loss"
    decoder = jax.tree.map(lambda x: x * jnp.nan, params["decoder"])
    assert named({**params, "decoder": decoder}, matrix)[0] == "the generator's loss"
