"""Inception v3 (Szegedy et al., arXiv 1512.00567), for FID, sFID and the Inception Score.

The number of classes distinguishes two sets of weights:

- 1008 classes: TensorFlow's of 2015-12-05, which define FID: in the frozen graph that the ADM
  evaluator reads (`inception_graph`), or as ported by pytorch-fid
  (`pt_inception-2015-12-05-6726825d.pth`). Average pools leave the padding out of the mean, and the
  pool of the last block, Mixed_7c, is a maximum.
- 1000 classes: torchvision's own (`inception_v3_google-0cc3c7bd.pth`). Average pools count the
  padding.

Images are resized to 299 x 299, bilinearly and without antialiasing, in one of two ways, by which
FID differs in the second decimal:

- "pytorch_fid": between half-pixel centers, then scaled to [-1, 1].
- "tensorflow": as the graph does, with corners for centers, then (x - 128) / 128.

Batch norm has an epsilon of 1e-3. Everything is computed at the highest precision of matrix
products.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.io.torch_file import read_tensors
from var_jax.ops.resize import resize
from var_jax.pretrained.layers import average_pool, conv, linear, max_pool, rgb
from var_jax.pretrained.weights import Layer, State

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt8

Params = dict[str, Any]
Preprocessing = Literal["pytorch_fid", "tensorflow"]
# The convolutions of a block: name, the convolution whose output it takes ("" for the block's
# input), height and width of the kernel.
Chain = tuple[tuple[str, str, int, int], ...]
SIZE, EPS = 299, 1e-3
TENSORFLOW_CLASSES = 1008
# The convolutions before the blocks: name, kernel size, stride and padding; "pool" is a maximum
# over 3 x 3 at stride 2.
STEM = (
    ("Conv2d_1a_3x3", 3, 2, "VALID"),
    ("Conv2d_2a_3x3", 3, 1, "VALID"),
    ("Conv2d_2b_3x3", 3, 1, "SAME"),
    "pool",
    ("Conv2d_3b_1x1", 1, 1, "VALID"),
    ("Conv2d_4a_3x3", 3, 1, "VALID"),
    "pool",
)
A: Chain = (
    ("branch1x1", "", 1, 1),
    ("branch5x5_1", "", 1, 1),
    ("branch5x5_2", "branch5x5_1", 5, 5),
    ("branch3x3dbl_1", "", 1, 1),
    ("branch3x3dbl_2", "branch3x3dbl_1", 3, 3),
    ("branch3x3dbl_3", "branch3x3dbl_2", 3, 3),
    ("branch_pool", "pool", 1, 1),
)
B: Chain = (
    ("branch3x3", "", 3, 3),
    ("branch3x3dbl_1", "", 1, 1),
    ("branch3x3dbl_2", "branch3x3dbl_1", 3, 3),
    ("branch3x3dbl_3", "branch3x3dbl_2", 3, 3),
)
C: Chain = (
    ("branch1x1", "", 1, 1),
    ("branch7x7_1", "", 1, 1),
    ("branch7x7_2", "branch7x7_1", 1, 7),
    ("branch7x7_3", "branch7x7_2", 7, 1),
    ("branch7x7dbl_1", "", 1, 1),
    ("branch7x7dbl_2", "branch7x7dbl_1", 7, 1),
    ("branch7x7dbl_3", "branch7x7dbl_2", 1, 7),
    ("branch7x7dbl_4", "branch7x7dbl_3", 7, 1),
    ("branch7x7dbl_5", "branch7x7dbl_4", 1, 7),
    ("branch_pool", "pool", 1, 1),
)
D: Chain = (
    ("branch3x3_1", "", 1, 1),
    ("branch3x3_2", "branch3x3_1", 3, 3),
    ("branch7x7x3_1", "", 1, 1),
    ("branch7x7x3_2", "branch7x7x3_1", 1, 7),
    ("branch7x7x3_3", "branch7x7x3_2", 7, 1),
    ("branch7x7x3_4", "branch7x7x3_3", 3, 3),
)
E: Chain = (
    ("branch1x1", "", 1, 1),
    ("branch3x3_1", "", 1, 1),
    ("branch3x3_2a", "branch3x3_1", 1, 3),
    ("branch3x3_2b", "branch3x3_1", 3, 1),
    ("branch3x3dbl_1", "", 1, 1),
    ("branch3x3dbl_2", "branch3x3dbl_1", 3, 3),
    ("branch3x3dbl_3a", "branch3x3dbl_2", 1, 3),
    ("branch3x3dbl_3b", "branch3x3dbl_2", 3, 1),
    ("branch_pool", "pool", 1, 1),
)
# Blocks without "pool" halve the image: their last convolutions, and a maximum, have stride 2 and
# no padding.
BLOCKS = {
    "Mixed_5b": A,
    "Mixed_5c": A,
    "Mixed_5d": A,
    "Mixed_6a": B,
    "Mixed_6b": C,
    "Mixed_6c": C,
    "Mixed_6d": C,
    "Mixed_6e": C,
    "Mixed_7a": D,
    "Mixed_7b": E,
    "Mixed_7c": E,
}
LAST = "Mixed_7c"
# sFID is of the first channels of this block's branch1x1, TensorFlow's mixed_6/conv.
SPATIAL_BLOCK, SPATIAL_CHANNELS = "Mixed_6d", 7


def load(path: str) -> Params:
    """Returns the parameters in a file of either set of weights.

    Raises:
      UserError: the file cannot be read, or is of another network; the message names the key.
    """
    return from_state(read_tensors(path), path)


def from_state(tensors: Mapping[str, np.ndarray], name: str = "the state dict") -> Params:
    """Returns the parameters in a state dict {published key: array}; see `load`.

    The auxiliary classifier is left out.
    """
    state, width = State(tensors, name, ("Conv2d_1a_3x3.conv.weight",)), 3
    params: Params = {}
    for layer in STEM:
        if layer != "pool":
            key, size = layer[:2]
            params[key] = state.conv_norm(
                f"{key}.conv", f"{key}.bn", None, width, size, size, eps=EPS
            )
            width = params[key]["bias"].size
    for block, chain in BLOCKS.items():
        widths, params[block] = {"": width, "pool": width}, {}
        for branch, source, height, across in chain:
            key = f"{block}.{branch}"
            params[block][branch] = layer = state.conv_norm(
                f"{key}.conv", f"{key}.bn", None, widths[source], height, across, eps=EPS
            )
            widths[branch] = layer["bias"].size
        width = sum(widths[branch] for branch in _ends(chain)) + (width if _halves(chain) else 0)
    params["fc"] = state.linear("fc", width)
    state.finish("AuxLogits.", ".num_batches_tracked")
    return params


class InceptionFeatures(NamedTuple):
    """Features for FID and for sFID.

    Attributes:
      pooled: the 2048 features below the classifier, TensorFlow's "pool_3".
      spatial: the first 7 channels of TensorFlow's "mixed_6/conv" by rows, columns and channels,
        17 * 17 * 7 = 2023 numbers.
    """

    pooled: Float[Array, "b d"]
    spatial: Float[Array, "b s"]


def features(
    params: Params,
    images: UInt8[Array, "b H W c"] | Float[Array, "b H W c"],
    preprocessing: Preprocessing = "pytorch_fid",
) -> InceptionFeatures:
    """Returns the features of images for FID and sFID.

    Args:
      images: in [0, 255], of 1 or 3 channels, at any size.
      preprocessing: how images are resized and scaled; the module says how.
    """
    with jax.default_matmul_precision("highest"):
        x = _network_input(images, preprocessing)
        for layer in STEM:
            if layer == "pool":
                x = max_pool(x, 3, 2)
            else:
                key, _, stride, padding = layer
                x = jax.nn.relu(conv(params[key], x, stride, padding))
        tensorflow = params["fc"]["bias"].size == TENSORFLOW_CLASSES
        spatial = x
        for block, chain in BLOCKS.items():
            if block == SPATIAL_BLOCK:
                layer = params[block]["branch1x1"]
                first = {name: array[..., :SPATIAL_CHANNELS] for name, array in layer.items()}
                spatial = jax.nn.relu(conv(first, x))
            x = _mixed(
                params[block],
                chain,
                x,
                count_padding=not tensorflow,
                max_pooled=tensorflow and block == LAST,
            )
        return InceptionFeatures(x.mean((1, 2)), spatial.reshape(len(spatial), -1))


def pooled(
    params: Params,
    images: UInt8[Array, "b H W c"] | Float[Array, "b H W c"],
    preprocessing: Preprocessing = "pytorch_fid",
) -> Float[Array, "b d"]:
    """Returns only the 2048 features below the classifier; arguments are those of `features`."""
    return features(params, images, preprocessing).pooled


def logits(
    params: Params, pooled_features: Float[Array, "b d"], *, biases: bool = True
) -> Float[Array, "b k"]:
    """Returns the logits of Inception's classifier.

    Args:
      pooled_features: as `pooled` returns them.
      biases: whether to add the biases; the published Inception Score has none.
    """
    with jax.default_matmul_precision("highest"):
        if biases:
            return linear(params["fc"], pooled_features)
        return pooled_features @ params["fc"]["kernel"]


def _network_input(
    images: UInt8[Array, "b H W c"] | Float[Array, "b H W c"], preprocessing: Preprocessing
) -> Float[Array, "b 299 299 3"]:
    if preprocessing == "tensorflow":
        return (resize(rgb(images), (SIZE, SIZE), "bilinear_tensorflow1") - 128) / 128
    return resize(rgb(images), (SIZE, SIZE), "bilinear") / 127.5 - 1


def _ends(chain: Chain) -> list[str]:
    """Returns the convolutions whose outputs are the block's, in order: no other takes them."""
    sources = {source for _, source, _, _ in chain}
    return [branch for branch, *_ in chain if branch not in sources]


def _halves(chain: Chain) -> bool:
    return all(source != "pool" for _, source, _, _ in chain)


def _mixed(
    params: dict[str, Layer],
    chain: Chain,
    x: Float[Array, "b h w c"],
    *,
    count_padding: bool,
    max_pooled: bool,
) -> Float[Array, "b H W d"]:
    """Returns the output of one block.

    Args:
      count_padding: whether average pools count the padding in their mean.
      max_pooled: whether a maximum takes the place of the average pool.
    """
    ends, halves = _ends(chain), _halves(chain)
    if halves:
        pool = max_pool(x, 3, 2)
    elif max_pooled:
        pool = max_pool(x, 3, 1, pad=1)
    else:
        pool = average_pool(x, 3, count_padding=count_padding)
    outputs = {"": x, "pool": pool}
    for branch, source, _, _ in chain:
        stride, padding = (2, "VALID") if halves and branch in ends else (1, "SAME")
        outputs[branch] = jax.nn.relu(conv(params[branch], outputs[source], stride, padding))
    names = [*ends, "pool"] if halves else ends
    return jnp.concatenate([outputs[name] for name in names], axis=-1)
