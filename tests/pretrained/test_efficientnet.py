"""Against PyTorch: `efficientnet_lite0.npz` was made with the class EfficientNet of the package
`efficientnet-lite-pytorch` 0.1.0 in float64 and these weights, on three pictures of sines and one
of noise, 64 px. It holds the means, and the last two columns of the first three rows, after each
stage, and the mean over positions of `extract_features`."""

from importlib import util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.errors import UserError
from var_jax.io.torch_file import read_tensors
from var_jax.pretrained import efficientnet, layers


@pytest.fixture(scope="module")
def params():
    return efficientnet.load()


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parent / "efficientnet_lite0.npz") as file:
        return dict(file)


def test_stages_and_pooled_features_are_pytorchs(params, reference):
    """Means and slices of seven stages, and the pooled features, are those of the package for
    PyTorch."""
    images = reference["images"] / np.float32(127.5) - 1
    features, pooled = jax.jit(
        lambda p, x: (efficientnet.stages(p, x, 7), efficientnet.pooled(p, x))
    )(params, images)
    assert efficientnet.stage_channels(params, 7) == tuple(x.shape[-1] for x in features)
    assert efficientnet.stage_channels(params) == (16, 24, 40, 80, 112)
    assert [x.shape[1] for x in features] == [32, 16, 8, 4, 4, 2, 2]
    for i, x in enumerate(features, 1):
        scale = np.abs(x).max()
        assert np.abs(x.mean((1, 2)) - reference[f"mean{i}"]).max() < 1e-5 * scale
        assert np.abs(x[:, :3, -2:] - reference[f"slice{i}"]).max() < 1e-5 * scale
    assert pooled.shape == (4, 1280)
    np.testing.assert_allclose(pooled, reference["pooled"], atol=5e-5)


def test_stages_take_one_channel_as_three_alike(params):
    """A gray image has exactly the features of the same image with three equal channels, and two
    channels are an error."""
    gray = np.random.RandomState(0).uniform(-1, 1, (1, 8, 12, 1)).astype(np.float32)
    one, three = (
        jax.jit(lambda p, x: efficientnet.stages(p, x, 1)[0])(params, x)
        for x in (gray, gray.repeat(3, -1))
    )
    assert one.shape == (1, 4, 6, 16)
    np.testing.assert_array_equal(one, three)
    with pytest.raises(ValueError, match="1 or 3"):
        efficientnet.stages(params, gray.repeat(2, -1), 1)


@pytest.mark.parametrize(
    ("h", "w", "size", "stride"), [(7, 9, 5, 2), (8, 5, 3, 2), (6, 7, 5, 1), (1, 2, 3, 1)]
)
def test_depthwise_is_xlas_grouped_convolution_with_its_gradients(h, w, size, stride):
    """The sum over shifted images and its gradients are XLA's, for odd sides, both strides and a
    side of 1."""
    random = np.random.RandomState(0)
    kernel, x, bias = (
        random.standard_normal(s).astype(np.float32)
        for s in ((size, size, 1, 4), (2, h, w, 4), (4,))
    )

    def grouped(kernel, x):
        return bias + jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            feature_group_count=4,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    @jax.jit
    def both(kernel, x, dy):
        pulled = [
            jax.vjp(f, kernel, x)
            for f in (
                grouped,
                lambda k, x: layers.depthwise({"kernel": k, "bias": bias}, x, stride),
            )
        ]
        return [(y, *vjp(dy)) for y, vjp in pulled]

    dy = random.standard_normal((2, -(-h // stride), -(-w // stride), 4)).astype(np.float32)
    for expected, result in zip(*both(kernel, x, dy), strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_from_state_folds_batch_norm(params):
    """Normalizing after the last convolution, in numpy, gives the same as its folded weights."""
    state = read_tensors(efficientnet.find_weights())
    x = jnp.asarray(np.random.RandomState(0).standard_normal((1, 5, 5, 320)), jnp.float32)
    mean, var, gamma, beta = (
        state[f"_bn1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
    )
    difference = (x @ state["_conv_head.weight"][:, :, 0, 0].T - mean) / np.sqrt(
        var + 1e-3
    ) * gamma + beta
    np.testing.assert_allclose(layers.conv(params["head"], x), difference, atol=1e-4)


def test_from_state_and_load_name_mistakes(monkeypatch, tmp_path):
    """Missing, misshapen and unknown keys, a missing file and a missing package are each named."""
    state = dict(read_tensors(efficientnet.find_weights()))
    missing = {key: x for key, x in state.items() if key != "_blocks.3._project_conv.weight"}
    with pytest.raises(UserError, match=r"there is no _blocks\.3\._project_conv\.weight"):
        efficientnet.from_state(missing)
    with pytest.raises(UserError, match=r"_bn1\.bias has the shape \(7,\); it must be 1280"):
        efficientnet.from_state({**state, "_bn1.bias": np.zeros(7)})
    with pytest.raises(UserError, match=r"unknown key _blocks\.0\._se_reduce\.weight and 1 more"):
        efficientnet.from_state(
            {**state, "_blocks.0._se_reduce.weight": np.zeros(1), "_z": np.zeros(1)}
        )
    with pytest.raises(UserError, match="there is no such file"):
        efficientnet.load(str(tmp_path / "none.pth"))
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'var_jax\[perceptual\]'"):
        efficientnet.load()
