"""Perceptual distances: how far apart the features of two images are in a frozen network.

Both unit-normalise the channels of the network's features at each position (x / (|x| + 1e-10)),
take squared differences, and average over positions:
  "efficientnet": EfficientNet-Lite0's first five stages; summed over channels, averaged over
  stages, so from 0 to 4.
    Its weights come with a package, and it is a small part of VGG16's work. No channel is weighed
    by anything learned.
  "lpips": LPIPS of Zhang et al. (arXiv 1801.03924), version 0.1 with VGG16: channels are weighed by
  learned heads, and
    stages added. Needs two files: `path`, torchvision's `vgg16-397923af.pth`, and `heads`,
      `weights/v0.1/vgg.pth` of
    the package `lpips`.
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
# What LPIPS subtracts from images in [-1, 1] and divides them by: ImageNet's mean and deviation,
# rounded.
SHIFT, SCALE = (
    np.array([-0.030, -0.088, -0.188], np.float32),
    np.array([0.458, 0.448, 0.450], np.float32),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Perceptual:
    """A distance and the weights it needs.

    Attributes:
      name: network and version of its weights, for reports.
      params: nested dicts and lists of float32 numpy arrays; an argument of compiled functions,
        never a constant.
      distance: (params, x, y) -> (b,) distances of images in [-1, 1] of 1 or 3 channels; zero for
        equal images.
    """

    name: str
    params: Any
    distance: Callable[[Any, Float[Array, "b H W c"], Float[Array, "b H W c"]], Float[Array, " b"]]


def load(kind: Kind, path: str = "", heads: str = "") -> Perceptual:
    """The named distance with its weights.

    Args:
      kind: "efficientnet" or "lpips".
      path: the network's weights; for "efficientnet" the installed package's when empty.
      heads: LPIPS's weights of the channels.
    Raises:
      UserError: an unknown kind, a missing or unreadable file, or weights of another network.
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


def described() -> Perceptual:
    """LPIPS with VGG16 in its published sizes, without values: for programs that are compiled and
    not run."""
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
    """A weight a channel for each stage, from the state dict of LPIPS's linear layers.

    Raises:
      UserError: a key is missing, unknown, or of another shape.
    """
    state = State(tensors, name, ("lin0.model.1.weight",))
    heads = [
        state.take(f"lin{i}.model.1.weight", 1, n, 1, 1).reshape(n) for i, n in enumerate(channels)
    ]
    state.finish()
    return heads


def efficientnet_distance(
    params: efficientnet.Params,
    x: Float[Array, "b H W c"],
    y: Float[Array, "b H W c"],
) -> Float[Array, " b"]:
    """Of images in [-1, 1]; see the module."""
    features = zip(*(efficientnet.stages(params, images) for images in (x, y)), strict=True)
    terms = [jnp.sum((_unit(a) - _unit(b)) ** 2, -1).mean((1, 2)) for a, b in features]
    return jnp.stack(terms).mean(0)


def lpips_distance(
    params: dict[str, Any],
    x: Float[Array, "b H W c"],
    y: Float[Array, "b H W c"],
) -> Float[Array, " b"]:
    """Of images in [-1, 1], sides of at least 16; see the module."""
    features = zip(
        *(vgg.stages(params["network"], (rgb(images) - SHIFT) / SCALE) for images in (x, y)),
        strict=True,
    )
    terms = [
        ((_unit(a) - _unit(b)) ** 2 * head).sum(-1).mean((1, 2))
        for head, (a, b) in zip(params["heads"], features, strict=True)
    ]
    return jnp.stack(terms).sum(0)


def _unit(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return l2_normalize(x, floor=0.0, added=EPS)
