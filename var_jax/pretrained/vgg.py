"""VGG16 (Simonyan and Zisserman, arXiv 1409.1556): the features before each max-pool, for LPIPS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np

from var_jax.errors import UserError
from var_jax.io.torch_file import read_tensors
from var_jax.pretrained.layers import conv, max_pool
from var_jax.pretrained.weights import Layer, State

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Params = list[list[Layer]]
MIN_SIDE = 16  # four max-pools reduce a smaller side to nothing
# Numbers of the convolutions within torchvision's `features`, stage by stage.
CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
CHANNELS = (64, 128, 256, 512, 512)


def load(path: str) -> Params:
    """Returns the parameters in a file with torchvision's state dict, such as `vgg16-397923af.pth`.

    Raises:
      UserError: the file cannot be read, or holds another network's weights; the message names the
        key.
    """
    return from_state(read_tensors(path), path)


def from_state(tensors: Mapping[str, np.ndarray], name: str = "the state dict") -> Params:
    """Returns the parameters in a state dict {torchvision's key: array}; see `load`.

    The classifier is left out.
    """
    state = State(tensors, name, ("features.0.weight",))
    in_channels = 3
    params: Params = []
    for indices in CONVOLUTIONS:
        stage = []
        for index in indices:
            layer = state.conv(f"features.{index}", None, in_channels, 3, 3)
            in_channels = layer["bias"].size
            stage.append(layer)
        params.append(stage)
    state.finish("classifier.")
    return params


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Returns {torchvision's key: shape} as `from_state` takes it."""
    shapes: dict[str, tuple[int, ...]] = {}
    in_channels = 3
    for indices, channels in zip(CONVOLUTIONS, CHANNELS, strict=True):
        for index in indices:
            shapes[f"features.{index}.weight"] = (channels, in_channels, 3, 3)
            shapes[f"features.{index}.bias"] = (channels,)
            in_channels = channels
    return shapes


def stage_channels(params: Params) -> tuple[int, ...]:
    """Returns the channels of each array of `stages`."""
    return tuple(stage[-1]["bias"].size for stage in params)


def stages(params: Params, x: Float[Array, "b H W 3"]) -> list[Float[Array, "b h w c"]]:
    """Returns relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.

    They are at 1, 1/2, 1/4, 1/8 and 1/16 of the images' size, rounded down.

    Args:
      x: images normalized as in the network's training (see `pretrained.perceptual`), with sides of
        at least 16.
    Raises:
      UserError: the images are smaller.
    """
    if min(x.shape[1:3]) < MIN_SIDE:
        raise UserError(
            f"images are {x.shape[1]} x {x.shape[2]}; VGG16 needs sides of at least {MIN_SIDE}"
        )
    features = []
    for i, stage in enumerate(params):
        x = max_pool(x, 2, 2) if i else x
        for layer in stage:
            x = jax.nn.relu(conv(layer, x))
        features.append(x)
    return features
