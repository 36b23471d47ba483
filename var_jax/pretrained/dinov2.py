"""DINOv2's vision transformer, such as ViT-L/14: the class token, normalized, of an image.

It is DINO's with LayerScale, patches of 14 pixels and positions of 518 pixels, which are resized to
224; networks with registers, and the giant one with SwiGLU, are refused. Source: Oquab et al.,
arXiv 2304.07193.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.io.torch_file import read_tensors
from var_jax.pretrained import vision_transformer
from var_jax.pretrained.dino_vit import DEVIATION, MEAN, read_block
from var_jax.pretrained.layers import rgb
from var_jax.pretrained.vision_transformer import Sizes, read_norm
from var_jax.pretrained.weights import State

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Params = dict[str, Any]
KIND = vision_transformer.Kind(offset=0.1)
SIDE = 224  # pixels of the images that FD-DINOv2 looks at
LARGE = Sizes(1024, 24, 14, 518)  # ViT-L/14, the network of FD-DINOv2


def load(path: str) -> Params:
    """Returns the parameters in a file of DINOv2, such as `dinov2_vitl14_pretrain.pth`.

    Raises:
      UserError: the file cannot be read, or is of another network; the message names the key.
    """
    return from_state(read_tensors(path), path)


def from_state(tensors: Mapping[str, np.ndarray], name: str = "the state dict") -> Params:
    """Returns the parameters in a state dict {published key: array}; see `load`."""
    state = State(tensors, name, ("cls_token", "pos_embed", "blocks.0.ls1.gamma", "norm.weight"))
    patch = state.conv("patch_embed.proj", None, 3, None, None)
    c = patch["bias"].size
    table = state.take("pos_embed", 1, None, c)
    params = {
        "patch": patch,
        **vision_transformer.square_of_positions(table, name, "pos_embed"),
        "blocks": [],
        "norm": read_norm(state, "norm", c),
    }
    params["class"] = params["class"] + state.take("cls_token", 1, 1, c)
    state.take("blocks.0.ls1.gamma", c)  # DINO's first version has none
    while f"blocks.{len(params['blocks'])}.norm1.weight" in state:
        params["blocks"].append(read_block(state, f"blocks.{len(params['blocks'])}", c))
    state.finish("mask_token")
    return params


def class_features(params: Params, images: Float[Array, "b H W c"]) -> Float[Array, "b d"]:
    """Returns the class tokens after the final norm, at the highest precision of products.

    Args:
      images: in [0, 1], of 1 or 3 channels.
    Raises:
      UserError: a side is no multiple of the patch size.
    """
    with jax.default_matmul_precision("highest"):
        x = vision_transformer.embed(params, (rgb(images) - MEAN) / DEVIATION, KIND)
        for block in params["blocks"]:
            x = vision_transformer.apply_block(block, x, KIND)
        return vision_transformer.layer_norm(params["norm"], x[:, 0], KIND)


def as_pillow_resizes(images: Float[Array, "b H W c"], side: int = SIDE) -> Float[Array, "b S S c"]:
    """Returns images of [0, 255] at the network's size, as Pillow's bicubic filter gives them.

    The filter has a = -0.5 and is widened where it makes an image smaller. It goes along the rows
    and then along the columns, and both results are rounded and clipped to whole numbers; Pillow's
    weights are rounded, too, so that a few pixels differ by 1.
    """
    x = jnp.asarray(images, jnp.float32)
    b, height, _, channels = x.shape
    for size in ((b, height, side, channels), (b, side, side, channels)):
        if x.shape != size:
            x = jax.image.resize(x, size, "cubic", antialias=True)
            x = jnp.clip(jnp.floor(x + 0.5), 0, 255)
    return x
