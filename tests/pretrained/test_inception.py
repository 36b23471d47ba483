"""Against PyTorch: `inception.npz` was made in float64 by torchvision 0.29's Inception3 with a
sixteenth of its channels and the weights of `helpers.random_weights`: as it is ("torchvision", 10
classes), and with the blocks that pytorch-fid 0.3 puts in their place ("tensorflow", 1008 classes),
on images of 40 x 52 bytes resized as pytorch-fid does. Logits are the first 64."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from helpers import random_weights
from var_jax.errors import UserError
from var_jax.pretrained import inception


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parent / "inception.npz") as file:
        return dict(file)


def state_dict(reference, classes: int):
    shapes = json.loads(str(reference["shapes"]))
    return random_weights.state_dict({**shapes, "fc.weight": (classes, 128), "fc.bias": (classes,)})


@pytest.mark.parametrize(("name", "classes"), [("tensorflow", 1008), ("torchvision", 10)])
def test_features_and_logits_are_pytorchs(reference, name, classes):
    """The number of classes selects torchvision's blocks or those of TensorFlow's network, which
    differ."""
    params = inception.from_state(state_dict(reference, classes))
    pooled = jax.jit(inception.pooled)(params, reference["images"])
    logits = inception.logits(params, pooled)
    assert pooled.shape == (2, 128) and logits.shape == (2, classes)
    np.testing.assert_allclose(pooled, reference[f"{name}_pooled"], atol=2e-5)
    np.testing.assert_allclose(logits[:, :64], reference[f"{name}_logits"], atol=2e-5)
    # The two kinds differ by far more than that.
    assert np.abs(reference["tensorflow_pooled"] - reference["torchvision_pooled"]).max() > 0.01


def test_features_of_the_graph_are_those_of_images_resized_as_tensorflow_1_does(reference):
    """The graph takes pixel i s/t and (x - 128) / 128 where PyTorch's port takes half-pixel centers
    and x / 127.5 - 1: the port on images that are resized and scaled so beforehand, by a loop here,
    gives the same, and on the images themselves something else."""
    params = inception.from_state(state_dict(reference, 1008))
    images = reference["images"].astype(np.float64)
    resized = interpolate(interpolate(images, 1), 2)
    as_port_takes_them = (((resized - 128) / 128 + 1) * 127.5).astype(np.float32)
    run = jax.jit(inception.features, static_argnums=2)
    expected = run(params, as_port_takes_them, "pytorch_fid")
    features = run(params, reference["images"], "tensorflow")
    np.testing.assert_allclose(features.pooled, expected.pooled, atol=2e-5)
    np.testing.assert_allclose(features.spatial, expected.spatial, atol=5e-5)
    other = run(params, reference["images"], "pytorch_fid")
    np.testing.assert_allclose(other.pooled, reference["tensorflow_pooled"], atol=2e-5)
    assert np.abs(features.pooled - other.pooled).max() > 1e-3


def interpolate(images, axis: int) -> np.ndarray:
    """One axis brought to 299 pixels as TensorFlow 1's ResizeBilinear does without any option."""
    source = images.shape[axis]
    planes = []
    for i in range(299):
        place = i * source / 299
        low = int(place)
        high = min(low + 1, source - 1)
        fraction = place - low
        planes.append((1 - fraction) * images.take(low, axis) + fraction * images.take(high, axis))
    return np.stack(planes, axis)


@pytest.mark.long
def test_spatial_features_are_the_first_channels_of_one_convolution(reference, monkeypatch):
    """sFID is of TensorFlow's mixed_6/conv after its ReLU, which is branch1x1 of Mixed_6d: seven
    channels, and every row and column of the 17 x 17 map in this order."""
    params = inception.from_state(state_dict(reference, 1008))
    inputs = {}
    mixed = inception._mixed

    def keep_inputs(block_params, chain, x, **options):
        inputs[id(block_params)] = x
        return mixed(block_params, chain, x, **options)

    monkeypatch.setattr(inception, "_mixed", keep_inputs)
    spatial = inception.features(params, reference["images"]).spatial
    assert spatial.shape == (2, 17 * 17 * 7)
    layer, x = params["Mixed_6d"]["branch1x1"], inputs[id(params["Mixed_6d"])]
    expected = np.maximum(np.asarray(x) @ layer["kernel"][0, 0] + layer["bias"], 0)[..., :7]
    np.testing.assert_allclose(spatial.reshape(2, 17, 17, 7), expected, atol=1e-4)


def test_from_state_names_mistakes(reference):
    """Missing and unknown keys and a kernel of swapped sides are named; the auxiliary head is left
    out."""
    state = state_dict(reference, 10)
    inception.from_state({**state, "AuxLogits.fc.bias": np.zeros(10)})
    with pytest.raises(UserError, match=r"there is no Mixed_6c\.branch7x7_2\.bn\.running_mean"):
        inception.from_state(
            {key: x for key, x in state.items() if key != "Mixed_6c.branch7x7_2.bn.running_mean"}
        )
    swapped = state["Mixed_6c.branch7x7_2.conv.weight"].swapaxes(2, 3)
    with pytest.raises(
        UserError, match=r"Mixed_6c\.branch7x7_2\.conv\.weight has the shape .* any x 10 x 1 x 7"
    ):
        inception.from_state({**state, "Mixed_6c.branch7x7_2.conv.weight": swapped})
    with pytest.raises(UserError, match=r"unknown key Mixed_8a\.conv;"):
        inception.from_state({**state, "Mixed_8a.conv": np.zeros(1)})
