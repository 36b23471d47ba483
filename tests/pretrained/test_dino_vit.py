"""Against PyTorch: `vit.npz` holds every fifth patch token that torch.nn.functional gives in
float64 for the weights of `helpers.random_weights` (two heads, three blocks, patches of 4, a grid
of 5 x 5), on images of the grid's size and of 24 x 12."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from helpers import random_weights
from var_jax.errors import UserError
from var_jax.pretrained import dino_vit


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parent / "dino_vit.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def state(reference):
    return random_weights.state_dict(json.loads(str(reference["shapes"])))


@pytest.mark.parametrize(("size", "count"), [("trained", 25), ("other", 18)])
def test_tokens_are_pytorchs(reference, state, size, count):
    """The tokens after each of three blocks equal PyTorch's, for images of the trained size and of
    another one, whose positions are interpolated."""
    params = dino_vit.from_state(state)
    result = jax.jit(lambda p, x: dino_vit.tokens(p, x, (0, 1, 2)))(
        params, reference[f"{size}_images"]
    )
    assert [x.shape for x in result] == [(2, count, dino_vit.width(params))] * 3
    for i, x in enumerate(result):
        np.testing.assert_allclose(x[:, ::5], reference[f"{size}_{i}"], atol=2e-5)


def test_tokens_begin_with_patches_and_their_positions(reference, state):
    """The lowest level is the patches' linear map plus positions, written out in numpy."""
    params, images = dino_vit.from_state(state), reference["trained_images"]
    embedded, after = dino_vit.tokens(params, images, (dino_vit.EMBEDDED, 0))
    np.testing.assert_array_equal(after, dino_vit.tokens(params, images, (0,))[0])
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    patches = ((images.astype(np.float64) / 2 + 0.5 - mean) / deviation).reshape(2, 5, 4, 5, 4, 3)
    kernel, bias = (
        state[f"patch_embed.proj.{name}"].astype(np.float64) for name in ("weight", "bias")
    )
    expected = (
        np.einsum("bhiwjc,dcij->bhwd", patches, kernel).reshape(2, 25, -1)
        + bias
        + state["pos_embed"][:, 1:]
    )
    np.testing.assert_allclose(embedded, expected, atol=1e-5)
    assert len(dino_vit.LAYERS) == 5


def test_levels_may_add_the_class_token_to_every_patch(reference, state):
    """The published readout: at every level one vector of an image more, which before the blocks is
    the class token with its position."""
    params, images = dino_vit.from_state(state), reference["trained_images"]
    layers = (dino_vit.EMBEDDED, 0, 2)
    patches, both = (dino_vit.tokens(params, images, layers, with_class=w) for w in (False, True))
    for before, after in zip(patches, both, strict=True):
        added = np.asarray(after - before)
        np.testing.assert_allclose(added, np.broadcast_to(added[:, :1], added.shape), atol=1e-5)
    embedded = state["cls_token"] + state["pos_embed"][:, :1]
    np.testing.assert_allclose((both[0] - patches[0])[:1, :1], embedded, atol=1e-5)
    # After blocks it is what the class token has become: it attends, so images differ in it.
    assert float(np.abs((both[2] - patches[2])[0, 0] - (both[2] - patches[2])[1, 0]).max()) > 1e-3


def test_from_state_and_tokens_name_mistakes(reference, state):
    """Missing, misshapen and unknown keys, image sizes and layers are each named with what would be
    right."""
    with pytest.raises(UserError, match=r"there is no blocks\.1\.attn\.qkv\.bias"):
        dino_vit.from_state({key: x for key, x in state.items() if key != "blocks.1.attn.qkv.bias"})
    with pytest.raises(
        UserError, match=r"blocks\.1\.attn\.qkv\.weight has the shape .*; it must be 384 x 128"
    ):
        dino_vit.from_state({**state, "blocks.1.attn.qkv.weight": np.zeros((128, 128))})
    with pytest.raises(UserError, match=r"unknown key blocks\.9\.norm1\.bias;"):
        dino_vit.from_state(
            {**state, "blocks.9.norm1.bias": np.zeros(128), "head.weight": np.zeros(1)}
        )
    with pytest.raises(UserError, match="24 positions"):
        dino_vit.from_state({**state, "pos_embed": np.zeros((1, 24, 128))})
    params = dino_vit.from_state(state)
    with pytest.raises(UserError, match="22 x 20; .* multiples of 4"):
        dino_vit.tokens(params, np.zeros((1, 22, 20, 3)), (0,))
    for layers in ((), (0, 3), (1, 0), (-2,)):
        with pytest.raises(UserError, match="from 0 to 2"):
            dino_vit.tokens(params, reference["trained_images"], layers)
