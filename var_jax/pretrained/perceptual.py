"""Perceptual distances: how far apart the features of two images are in a frozen network.

Each distance normalizes the channels of the features at each position (x / (|x| + 1e-10)), takes
squared differences, and averages over positions:

- "efficientnet": EfficientNet-Lite0's first five stages, summed over channels and averaged over
  stages, so that it is in [0, 4]. Its weights come with a package, and it costs a small part of
  VGG16. It has no learned weights of channels.
- "lpips": LPIPS version 0.1 with VGG16 (Zhang et al., arXiv 1801.03924). Learned heads weigh the
  channels, and stages are added. It needs two files: `path`, torchvision's `vgg16-397923af.pth`,
  and `heads`, `weights/v0.1/vgg.pth` of the package `lpips`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax.numpy as jnp
import numpy as np

from var_jax.errors import UserError
from var_jax.io.torch_file import read_tensors
from var_jax.ops.normalize import l2_normalize
from var_jax.pretrained import efficientnet, vgg
from var_jax.pretrained.layers import rgb
from var_jax.pretrained.weights import State, fingerprint, zeros

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Kind = Literal["efficientnet", "lpips"]
EPS = 1e-10
# LPIPS subtracts SHIFT from images in [-1, 1] and divides by SCALE: ImageNet's mean and deviation,
# rounded.
SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Perceptual:
    """A distance and its weights.

    Attributes:
      name: network and version of its weights, for reports.
      params: nested dicts and lists of float32 numpy arrays; pass them to compiled functions as an
        argument, never as a constant.
      distance: takes params and two batches of images in [-1, 1] of 1 or 3 channels, and returns
        (b,) distances, zero for equal images.
    """

    name: str
    params: Any
    distance: Callable[[Any, Float[Array, "b H W c"], Float[Array, "b H W c"]], Float[Array, " b"]]


def load(kind: Kind, path: str = "", heads: str = "") -> Perceptual:
    """Returns a distance with its weights.

    Args:
      kind: "efficientnet" or "lpips".
      path: file of the network's weights; "" for the installed package's, for "efficientnet".
      heads: file of LPIPS's weights of channels.
    Raises:
      UserError: the kind is unknown, a file is missing or cannot be read, or its weights are of
        another network.
    """
    if kind == "efficientnet":
        if heads:
            raise UserError(f"heads are {heads}; they belong to lpips, and the distance is {kind}")
        path = efficientnet.find_weights(path)
        return Perceptual(
            f"efficientnet-lite0 {fingerprint(path)}",
            efficientnet.load(path),
            efficientnet_distance,
        )
    if kind == "lpips":
        if not path or not heads:
            raise UserError(
                "lpips needs two files: VGG16's weights (torchvision's vgg16-397923af.pth) and its "
                "heads (weights/v0.1/vgg.pth of the package lpips)"
            )
        network = vgg.load(path)
        params = {
            "network": network,
            "heads": read_heads(read_tensors(heads), vgg.stage_channels(network), heads),
        }
        return Perceptual(
            f"lpips vgg16 {fingerprint(path)} heads {fingerprint(heads)}", params, lpips_distance
        )
    raise UserError(
        f"the perceptual distance is {kind!r}; it must be {' or '.join(map(repr, get_args(Kind)))}"
    )


def lpips_shapes() -> Perceptual:
    """Returns LPIPS with VGG16 in its published shapes, all weights zero.

    Use it for programs that are compiled and not run.
    """
    network = vgg.from_state(zeros(vgg.published_shapes()))
    heads = [np.zeros(n, np.float32) for n in vgg.stage_channels(network)]
    return Perceptual(
        "lpips vgg16, sizes only", {"network": network, "heads": heads}, lpips_distance
    )


def read_heads(
    tensors: Mapping[str, np.ndarray],
    channels: tuple[int, ...],
    name: str = "the heads",
) -> list[np.ndarray]:
    """Returns a weight per channel for each stage, from the state dict of LPIPS's linear layers.

    Args:
      tensors: {key: array}.
      channels: number of channels of each stage.
      name: the file's name, for messages.
    Raises:
      UserError: a key is missing, unknown, or of another shape.
    """
    state = State(tensors, name, ("lin0.model.1.weight",))
    heads = []
    for i, n in enumerate(channels):
        heads.append(state.take(f"lin{i}.model.1.weight", 1, n, 1, 1).reshape(n))
    state.finish()
    return heads


def efficientnet_distance(
    params: efficientnet.Params,
    x: Float[Array, "b H W c"],
    y: Float[Array, "b H W c"],
) -> Float[Array, " b"]:
    """Returns the EfficientNet distance of images in [-1, 1]; see the module."""
    stages_x, stages_y = efficientnet.stages(params, x), efficientnet.stages(params, y)
    terms = [
        jnp.sum((_unit(a) - _unit(b)) ** 2, -1).mean((1, 2))
        for a, b in zip(stages_x, stages_y, strict=True)
    ]
    return jnp.stack(terms).mean(0)


def lpips_distance(
    params: dict[str, Any],
    x: Float[Array, "b H W c"],
    y: Float[Array, "b H W c"],
) -> Float[Array, " b"]:
    """Returns the LPIPS of images in [-1, 1] with sides of at least 16; see the module."""
    stages_x = vgg.stages(params["network"], (rgb(x) - SHIFT) / SCALE)
    stages_y = vgg.stages(params["network"], (rgb(y) - SHIFT) / SCALE)
    terms = [
        ((_unit(a) - _unit(b)) ** 2 * head).sum(-1).mean((1, 2))
        for head, a, b in zip(params["heads"], stages_x, stages_y, strict=True)
    ]
    return jnp.stack(terms).sum(0)


def _unit(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return l2_normalize(x, floor=0.0, added=EPS)
