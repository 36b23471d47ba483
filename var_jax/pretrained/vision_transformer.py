"""The vision transformer of DINO, DINOv2 and CLIP: pre-norm blocks over patches and a class token.

What these differ in is an argument here, or is folded into the weights where these are read
(`dino_vit`, `dinov2`, `clip_vision`). Source: Dosovitskiy et al., arXiv 2010.11929.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from var_jax.errors import UserError
from var_jax.ops.resize import resize_by_matrices, scaled_bicubic
from var_jax.pretrained.layers import linear
from var_jax.pretrained.weights import Layer, State

if TYPE_CHECKING:
    from jaxtyping import Array, Float

HEAD = 64  # channels of a head in every size of these networks, which does not follow from weights


class Kind(NamedTuple):
    """What a network's forward pass depends on besides its weights.

    Attributes:
      epsilon: of every layer norm.
      activation: of the MLPs.
      offset: share of a patch that the published code adds to each side's number of patches where
        it resizes the positions, against rounding.
    """

    epsilon: float = 1e-6
    activation: Callable[[jax.Array], jax.Array] = lambda x: jax.nn.gelu(x, approximate=False)
    offset: float = 0.0


class Sizes(NamedTuple):
    """The sizes of a network.

    Attributes:
      width: channels of a token.
      depth: number of blocks.
      patch: side of a patch in pixels.
      side: side in pixels of the images that it has positions for.
    """

    width: int
    depth: int
    patch: int
    side: int


def embed(
    params: dict[str, Any], images: Float[Array, "b H W 3"], kind: Kind
) -> Float[Array, "b n d"]:
    """Returns the tokens before the first block: that of the class, and the patches row by row.

    At another size than the network was trained at, position embeddings are resized bicubically.

    Args:
      images: normalized as the network takes them.
    Raises:
      UserError: a side is no multiple of the patch size.
    """
    size = params["patch"]["kernel"].shape[0]
    if images.shape[1] % size or images.shape[2] % size:
        raise UserError(
            f"images are {images.shape[1]} x {images.shape[2]}; the transformer's patches need "
            f"multiples of {size}"
        )
    # Patches do not overlap, so that a product is all there is; the gradient of a convolution would
    # be one over a map that is spread by the stride, nearly all zeros.
    patches = rearrange(images, "b (h p) (w q) c -> b h w (p q c)", p=size, q=size)
    kernel = params["patch"]["kernel"].reshape(-1, width(params))
    x = linear({**params["patch"], "kernel": kernel}, patches)
    b, h, w, c = x.shape
    positions = jnp.asarray(params["positions"])
    if positions.shape[1:3] != (h, w):
        matrices = (
            scaled_bicubic(source, target, kind.offset)
            for source, target in zip(positions.shape[1:3], (h, w), strict=True)
        )
        positions = resize_by_matrices(positions, *matrices)
    x = (x + positions).reshape(b, h * w, c)
    return jnp.concatenate([jnp.broadcast_to(params["class"], (b, 1, c)), x], axis=1)


def apply_block(
    block: dict[str, Layer], x: Float[Array, "b n d"], kind: Kind
) -> Float[Array, "b n d"]:
    """Returns the tokens after a block of self-attention and an MLP."""
    b, _, c = x.shape
    qkv = linear(block["qkv"], layer_norm(block["norm1"], x, kind))
    qkv = qkv.reshape(b, -1, 3, c // HEAD, HEAD)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    x = x + linear(block["proj"], jax.nn.dot_product_attention(q, k, v).reshape(x.shape))
    hidden = linear(block["fc1"], layer_norm(block["norm2"], x, kind))
    return x + linear(block["fc2"], kind.activation(hidden))


def layer_norm(layer: Layer, x: Float[Array, "b n d"], kind: Kind) -> Float[Array, "b n d"]:
    """Returns tokens normalized over their channels."""
    return jax.nn.standardize(x, epsilon=kind.epsilon) * layer["scale"] + layer["bias"]


def square_of_positions(positions: np.ndarray, name: str, key: str) -> dict[str, np.ndarray]:
    """Returns {"class": (1, 1, c), "positions": (1, grid, grid, c)} of a (1, 1 + n, c) table.

    Raises:
      UserError: the positions behind the first are those of no square, or the channels are not
        whole heads.
    """
    count, c = positions.shape[1:]
    grid = round((count - 1) ** 0.5)
    if grid * grid + 1 != count:
        raise UserError(f"{name}: {key} has {count} positions; it must be one and a square's")
    if c % HEAD:
        raise UserError(f"{name}: tokens have {c} channels; they must be heads of {HEAD} each")
    return {"class": positions[:, :1], "positions": positions[:, 1:].reshape(1, grid, grid, c)}


def read_norm(state: State, key: str, c: int) -> Layer:
    """Returns the scale and bias of a layer norm."""
    return {"scale": state.take(f"{key}.weight", c), "bias": state.take(f"{key}.bias", c)}


def width(params: dict[str, Any]) -> int:
    """Returns the channels of a token."""
    return params["positions"].shape[-1]


def sizes(params: dict[str, Any]) -> Sizes:
    """Returns the sizes of a network, as its weights have them."""
    patch = params["patch"]["kernel"].shape[0]
    return Sizes(width(params), len(params["blocks"]), patch, patch * params["positions"].shape[1])
