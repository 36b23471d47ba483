"""LPIPS against its formulae in numpy and scipy on a narrow VGG16 with seeded weights; gradients by
differences."""

import hashlib

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.signal import correlate2d

from helpers import random_weights
from var_jax.errors import UserError
from var_jax.pretrained import perceptual, vgg

WIDTHS = (3, 4, 5, 6, 7)


@pytest.fixture(scope="module")
def state():
    shapes, width = {}, 3
    for numbers, wide in zip(
        ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), WIDTHS, strict=True
    ):
        for number in numbers:
            shapes |= {
                f"features.{number}.weight": (wide, width, 3, 3),
                f"features.{number}.bias": (wide,),
            }
            width = wide
    return random_weights.state_dict(shapes)


@pytest.fixture(scope="module")
def heads():
    random = np.random.RandomState(1)
    return {
        f"lin{i}.model.1.weight": random.uniform(0, 1, (1, n, 1, 1)).astype(np.float32)
        for i, n in enumerate(WIDTHS)
    }


@pytest.fixture(scope="module")
def lpips(tmp_path_factory, state, heads):
    folder = tmp_path_factory.mktemp("lpips")
    save_file(
        {**state, "classifier.0.weight": np.zeros((2, 2), np.float32)}, folder / "vgg.safetensors"
    )
    save_file(heads, folder / "heads.safetensors")
    loaded = perceptual.load(
        "lpips", str(folder / "vgg.safetensors"), str(folder / "heads.safetensors")
    )
    digests = [
        hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()[:12]
        for name in ("vgg", "heads")
    ]
    assert loaded.name == f"lpips vgg16 {digests[0]} heads {digests[1]}"
    return loaded


@pytest.fixture(scope="module")
def images():
    return np.random.RandomState(2).uniform(-1, 1, (2, 2, 20, 34, 3)).astype(np.float32)


def formula(state, heads, x, y) -> float:
    """LPIPS of two images (3, h, w) in [-1, 1], in float64."""

    def features(image):
        shift, scale = [-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]
        a = (image - np.reshape(shift, (3, 1, 1))) / np.reshape(scale, (3, 1, 1))
        result, number = [], 0
        for convolutions in (2, 2, 3, 3, 3):
            if result:
                h, w = (n // 2 for n in a.shape[1:])
                a = a[:, : 2 * h, : 2 * w].reshape(-1, h, 2, w, 2).max((2, 4))
                number += 1
            for _ in range(convolutions):
                weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
                a = np.stack(
                    [
                        sum(correlate2d(p, k, "same") for p, k in zip(a, kernels, strict=True)) + b
                        for kernels, b in zip(weight.astype(np.float64), bias, strict=True)
                    ]
                )
                a, number = np.maximum(a, 0), number + 2
            result.append(a / (np.sqrt((a * a).sum(0)) + 1e-10))
        return result

    return sum(
        (head[0] * (a - b) ** 2).sum(0).mean()
        for head, a, b in zip(heads.values(), features(x), features(y), strict=True)
    )


def test_lpips_is_its_formula(lpips, state, heads, images):
    """Normalized differences of five stages, weighted by the heads, by numpy; equal images have the
    distance 0."""
    x, y = images
    distance = jax.jit(lpips.distance)(lpips.params, x, y)
    expected = [
        formula(state, heads, a.transpose(2, 0, 1), b.transpose(2, 0, 1))
        for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(distance, expected, rtol=1e-5)
    np.testing.assert_array_equal(lpips.distance(lpips.params, x, x), [0, 0])


def test_efficientnet_is_its_formula_on_the_stages(images):
    """The distance is the mean over stages in numpy, and grows with the difference of the
    images."""
    loaded = perceptual.load("efficientnet")
    assert loaded.name.startswith("efficientnet-lite0 57934424")  # as the published file is called
    x, y = images[:, :, :, :32, :1]  # one channel
    stages = jax.jit(perceptual.efficientnet.stages)
    terms = []
    for a, b in zip(stages(loaded.params, x), stages(loaded.params, y), strict=True):
        a, b = (
            f / np.linalg.norm(f, axis=-1, keepdims=True) for f in (np.float64(a), np.float64(b))
        )
        terms.append(((a - b) ** 2).sum(-1).mean((1, 2)))
    distance = jax.jit(loaded.distance)
    np.testing.assert_allclose(distance(loaded.params, x, y), np.mean(terms, 0), rtol=1e-4)
    near, far = (float(distance(loaded.params, x, (1 - t) * x + t * y).sum()) for t in (0.1, 0.5))
    assert 0 < near < far < 4 * len(x)


@pytest.mark.parametrize("kind", ["efficientnet", "lpips"])
def test_distance_has_the_gradient_of_its_differences(kind, lpips, images):
    """In float64 the gradient along a random direction is the central difference."""
    loaded = lpips if kind == "lpips" else perceptual.load(kind)
    with jax.enable_x64(True):
        params = jax.tree.map(np.float64, loaded.params)
        x, y = images[:, :1, :20, :20].astype(np.float64)
        value = jax.jit(
            jax.value_and_grad(lambda p, x, y: loaded.distance(p, x, y).sum(), argnums=2)
        )
        direction = np.random.RandomState(3).standard_normal(y.shape)
        slope = float((value(params, x, y)[1] * direction).sum())
        above, below = (float(value(params, x, y + h * direction)[0]) for h in (1e-6, -1e-6))
        assert slope == pytest.approx((above - below) / 2e-6, rel=1e-4)
        assert abs(slope) > 1e-3


def test_lpips_distance_has_a_finite_gradient_at_zero_features(state, heads, images):
    """The norm of a zero vector has no gradient, so that a plain division would give NaN."""
    params = {
        "network": vgg.from_state(
            {key: -np.abs(x) if key.endswith("bias") else x for key, x in state.items()}
        ),
        "heads": perceptual.read_heads(heads, WIDTHS),
    }
    flat = (
        np.zeros((1, 16, 16, 3), np.float32) + perceptual.SHIFT
    )  # zero after normalization: every ReLU is shut
    gradient = jax.jit(
        jax.grad(lambda p, x, y: perceptual.lpips_distance(p, x, y).sum(), argnums=2)
    )
    assert not any(
        np.any(x) for x in jax.jit(vgg.stages)(params["network"], flat - perceptual.SHIFT)
    )
    assert np.isfinite(gradient(params, images[0, :1, :16, :16], flat)).all()


@pytest.mark.parametrize("kind", ["efficientnet", "lpips"])
def test_distance_takes_its_weights_as_arguments(kind, lpips):
    """Compiled programs hold no copy of them: the traced function has almost no constants."""
    loaded = lpips if kind == "lpips" else perceptual.load(kind)
    x = np.zeros((1, 16, 16, 3), np.float32)
    assert (
        sum(np.size(c) for c in jax.make_jaxpr(loaded.distance)(loaded.params, x, x).consts) < 100
    )


def test_perceptual_names_mistakes(tmp_path, state, heads, lpips):
    """Each error has its key, network or option, and what would be right."""
    for change, message in (
        (
            {"lin2.model.1.weight": np.zeros((1, 4, 1, 1))},
            r"lin2\.model\.1\.weight .*; it must be 1 x 5 x 1 x 1",
        ),
        ({"lin5.model.1.weight": np.zeros((1, 4, 1, 1))}, r"unknown key lin5\.model\.1\.weight"),
    ):
        with pytest.raises(UserError, match=message):
            perceptual.read_heads({**heads, **change}, WIDTHS)
    with pytest.raises(UserError, match=r"there is no features\.28\.bias"):
        vgg.from_state({key: x for key, x in state.items() if key != "features.28.bias"})
    with pytest.raises(UserError, match=r"features\.5\.weight .* it must be any x 3 x 3 x 3"):
        vgg.from_state({**state, "features.5.weight": np.zeros((4, 9, 3, 3))})
    with pytest.raises(UserError, match="two files"):
        perceptual.load("lpips", heads="heads.pth")
    with pytest.raises(UserError, match="'alex'.*'efficientnet' or 'lpips'"):
        perceptual.load("alex")
    with pytest.raises(UserError, match="belong to lpips"):
        perceptual.load("efficientnet", heads="heads.pth")
    with pytest.raises(UserError, match="no such file"):
        perceptual.load("efficientnet", str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match="15 x 16; VGG16 needs sides of at least 16"):
        lpips.distance(lpips.params, np.zeros((1, 15, 16, 3)), np.zeros((1, 15, 16, 3)))
