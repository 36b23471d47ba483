"""Discriminators against numpy in float64: explicit convolutions, singular values, and finite
differences."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.models import discriminator


def convolve(x, kernel, stride, before, after):
    """(b, h, w, c) with an HWIO kernel, in float64, tap by tap."""
    size = kernel.shape[0]
    padded = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    h, w = ((n + before + after - size) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((x.shape[0], h, w, kernel.shape[-1]))
    for i in range(size):
        for j in range(size):
            taken = padded[
                :, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride
            ]
            out += taken @ kernel[i, j]
    return out


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def patch_logits(params, images):
    """One strided layer, one more, and the logit: pix2pix's with group norm over 8 groups."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = leaky(convolve(images, p["conv_0"]["kernel"], 2, 1, 1) + p["conv_0"]["bias"])
    x = convolve(x, p["conv_1"]["kernel"], 1, 1, 2)
    b, h, w, c = x.shape
    groups = x.reshape(b, h * w, 8, c // 8)
    mean, variance = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    x = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    x = leaky(x * p["norm_1"]["scale"] + p["norm_1"]["bias"])
    return (convolve(x, p["logit"]["kernel"], 1, 1, 2) + p["logit"]["bias"]).reshape(b, -1)


@pytest.fixture(scope="module")
def patch():
    module = discriminator.PatchDiscriminator(channels=8, layers=1)
    random = np.random.default_rng(0)
    images = random.normal(size=(2, 8, 6, 1))
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(images.shape))["params"]
    params = jax.tree.map(
        lambda s: jnp.asarray(0.3 * random.normal(size=s.shape), jnp.float32), nn.meta.unbox(shapes)
    )
    return module, params, images


def test_patch_discriminator_logits_equal_those_of_numpy(patch):
    """Explicit convolutions in float64, with asymmetric padding and group norm, give the same
    logits."""
    module, params, images = patch
    expected = patch_logits(params, images)
    assert expected.shape == (2, 4 * 3)
    np.testing.assert_allclose(
        module.apply({"params": params}, images.astype(np.float32)), expected, rtol=1e-3, atol=1e-5
    )


def test_gradients_of_patch_logits_are_finite_differences(patch):
    """The gradients of a weighted sum of logits agree along random directions of all parameters and
    of the images."""
    module, params, images = patch
    random = np.random.default_rng(1)
    weights = random.normal(size=(2, 12))

    def actual(params, images):
        return jnp.sum(weights * module.apply({"params": params}, images))

    slopes = jax.grad(actual, argnums=(0, 1))(params, jnp.asarray(images, jnp.float32))
    directions = (
        jax.tree.map(lambda x: random.normal(size=x.shape), params),
        random.normal(size=images.shape),
    )
    expected = 0.0
    for step in (1e-6, -1e-6):
        moved = jax.tree.map(
            lambda x, d, s=step: np.asarray(x, np.float64) + s * d, (params, images), directions
        )
        expected += (weights * patch_logits(*moved)).sum() / (2 * step)
    result = sum(
        (np.asarray(s, np.float64) * d).sum()
        for s, d in zip(*map(jax.tree.leaves, (slopes, directions)), strict=True)
    )
    np.testing.assert_allclose(result, expected, rtol=1e-3)


@pytest.fixture(scope="module")
def heads():
    module = discriminator.FeatureDiscriminator(channels=8, kernel=9)
    random = np.random.default_rng(2)
    features = [
        jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((4, 3, 2, 5), (4, 7, 6))
    ]
    return module, nn.meta.unbox(module.init(jax.random.key(0), features)), features


@pytest.mark.long
def test_spectral_norm_is_the_largest_singular_value(heads):
    """After a few steps of one power iteration each, every kernel acts with the norm 1."""
    module, variables, features = heads
    apply = jax.jit(lambda v: module.apply(v, features, mutable=["spectral"])[1])
    for _ in range(40):
        variables = {**variables, **apply(variables)}
    for name in ("head_0", "head_1"):
        for layer in ("project", "mix", "logit"):
            kernel = np.asarray(variables["params"][name][layer]["kernel"], np.float64)
            matrix = kernel.reshape(-1, kernel.shape[-1])
            u = np.asarray(variables["spectral"][name][layer]["u"], np.float64)
            right = np.linalg.svd(matrix)[2][0]
            assert abs(u @ right) == pytest.approx(1, abs=1e-4)
            assert np.linalg.norm(matrix @ u) == pytest.approx(
                np.linalg.svd(matrix)[1][0], rel=1e-5
            )


def test_spectral_norm_has_a_close_first_estimate(heads):
    """Initial vectors give each layer's largest singular value to within 10 %."""
    _, variables, _ = heads
    for head, layers in variables["spectral"].items():
        for layer, held in layers.items():
            kernel = np.asarray(variables["params"][head][layer]["kernel"], np.float64)
            matrix = kernel.reshape(-1, kernel.shape[-1])
            largest = np.linalg.svd(matrix)[1][0]
            assert (
                0.9 * largest
                < np.linalg.norm(matrix @ np.asarray(held["u"], np.float64))
                <= 1.00001 * largest
            )


def sequence_logits(params, spectral, x):
    """A head on a sequence, with the norm estimated by one more power iteration from the vectors
    that are held."""
    p, s = (jax.tree.map(lambda a: np.asarray(a, np.float64), tree) for tree in (params, spectral))

    def conv(x, layer):
        kernel = p[layer]["kernel"]
        matrix = kernel.reshape(-1, kernel.shape[-1])
        left = matrix @ s[layer]["u"]
        left /= np.linalg.norm(left)
        kernel = kernel / np.linalg.norm(left @ matrix)
        half = kernel.shape[0] // 2
        padded = np.pad(x, ((0, 0), (half, half), (0, 0)))
        taps = [padded[:, i : i + x.shape[1]] @ kernel[i] for i in range(kernel.shape[0])]
        return sum(taps) + p[layer].get("bias", 0)

    def norm(x, layer):  # four images share their statistics
        mean, variance = (f(x, axis=(0, 1), keepdims=True) for f in (np.mean, np.var))
        return (x - mean) / np.sqrt(variance + 1e-5) * p[layer]["scale"] + p[layer]["bias"]

    x = leaky(norm(conv(x, "project"), "project_norm"))
    x = (x + leaky(norm(conv(x, "mix"), "mix_norm"))) / np.sqrt(2)
    return conv(x, "logit")[..., 0]


def test_heads_have_one_logit_per_position_of_their_features(heads):
    """Two maps of three positions and a sequence of seven have 13 logits, and those of the sequence
    are numpy's in float64; a map's head mixes by 3x3 kernels, a sequence's by kernels of 9."""
    module, variables, features = heads
    logits = module.apply(variables, features)
    assert logits.shape == (4, 3 * 2 + 7)  # a place of a map or of a sequence has one logit
    expected = sequence_logits(
        variables["params"]["head_1"],
        variables["spectral"]["head_1"],
        np.asarray(features[1], np.float64),
    )
    np.testing.assert_allclose(logits[:, 6:], expected, rtol=1e-3, atol=1e-4)
    assert variables["params"]["head_0"]["mix"]["kernel"].shape == (3, 3, 8, 8)
    assert variables["params"]["head_1"]["mix"]["kernel"].shape == (9, 8, 8)


def test_batch_local_norm_takes_eight_images_together():
    """Each half of 16 images is normalized by its own mean and variance, as numpy computes them."""
    x = np.random.default_rng(3).normal(size=(16, 5, 4)).astype(np.float32) * 3 + 1
    module = discriminator.BatchLocalNorm()
    out = np.asarray(module.apply(nn.meta.unbox(module.init(jax.random.key(0), x)), x))
    for part, normed in zip(np.split(x, 2), np.split(out, 2), strict=True):
        mean, variance = part.mean(axis=(0, 1)), part.var(axis=(0, 1))
        np.testing.assert_allclose(
            normed, (part - mean) / np.sqrt(variance + 1e-5), rtol=1e-4, atol=1e-5
        )
