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
    params = inception.from_state(state_dict(reference, classes))
    pooled, logits = jax.jit(lambda p, x: (inception.pooled(p, x), inception.logits(p, x)))(
        params, reference["images"]
    )
    assert pooled.shape == (2, 128) and logits.shape == (2, classes)
    np.testing.assert_allclose(pooled, reference[f"{name}_pooled"], atol=2e-5)
    np.testing.assert_allclose(logits[:, :64], reference[f"{name}_logits"], atol=2e-5)
    # The two kinds differ by far more than that.
    assert np.abs(reference["tensorflow_pooled"] - reference["torchvision_pooled"]).max() > 0.01


def test_mistakes_are_named(reference):
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
