"""DINO's vision transformer, such as ViT-S/16: the patch tokens of chosen blocks.

Images are normalized by ImageNet's mean and deviation. Width, depth, patch size and grid follow
from the weights. Source: Caron et al., arXiv 2104.14294.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from var_jax.errors import UserError
from var_jax.io.torch_file import read_tensors
from var_jax.pretrained import vision_transformer
from var_jax.pretrained.layers import rgb
from var_jax.pretrained.vision_transformer import read_norm
from var_jax.pretrained.weights import Layer, State

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Params = dict[str, Any]
# ImageNet's mean and deviation, of images in [0, 1].
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
KIND = vision_transformer.Kind()
EMBEDDED = -1  # in a list of blocks: the tokens before the first
LAYERS = (EMBEDDED, 2, 5, 8, 11)  # five levels, as in StyleGAN-T (Sauer et al. 2023) and vaex


def load(path: str) -> Params:
    """Returns the parameters in a file of DINO, such as `dino_deitsmall16_pretrain.pth`.

    Raises:
      UserError: the file cannot be read, or is of another network; the message names the key.
    """
    return from_state(read_tensors(path), path)


def from_state(tensors: Mapping[str, np.ndarray], name: str = "the state dict") -> Params:
    """Returns the parameters in a state dict {published key: array}; see `load`.

    The final norm and DINO's head are left out.
    """
    state = State(tensors, name, ("cls_token", "pos_embed", "patch_embed.proj.weight"))
    patch = state.conv("patch_embed.proj", None, 3, None, None)
    c = patch["bias"].size
    table = state.take("pos_embed", 1, None, c)
    params = {
        "patch": patch,
        **vision_transformer.square_of_positions(table, name, "pos_embed"),
        "blocks": [],
    }
    params["class"] = params["class"] + state.take("cls_token", 1, 1, c)
    while f"blocks.{len(params['blocks'])}.norm1.weight" in state:
        params["blocks"].append(read_block(state, f"blocks.{len(params['blocks'])}", c))
    state.finish("norm.", "head.")
    return params


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Returns {published key: shape} of DINO's ViT-S/16 at 224 pixels, as `from_state` takes it."""
    c, patch, depth, grid = 384, 16, 12, 14
    layers = {
        "norm1": (c,),
        "attn.qkv": (3 * c, c),
        "attn.proj": (c, c),
        "norm2": (c,),
        "mlp.fc1": (4 * c, c),
        "mlp.fc2": (c, 4 * c),
    }
    shapes = {
        "cls_token": (1, 1, c),
        "pos_embed": (1, grid * grid + 1, c),
        "patch_embed.proj.weight": (c, 3, patch, patch),
        "patch_embed.proj.bias": (c,),
    }
    for block in range(depth):
        for name, shape in layers.items():
            shapes |= {
                f"blocks.{block}.{name}.weight": shape,
                f"blocks.{block}.{name}.bias": shape[:1],
            }
    return shapes


def read_block(state: State, key: str, c: int) -> dict[str, Layer]:
    """Returns a block of DINO or DINOv2; LayerScale, where a file has it, is folded in."""
    hidden = state.linear(f"{key}.mlp.fc1", c)
    block = {
        "norm1": read_norm(state, f"{key}.norm1", c),
        "qkv": state.linear(f"{key}.attn.qkv", c, 3 * c),
        "proj": state.linear(f"{key}.attn.proj", c, c),
        "norm2": read_norm(state, f"{key}.norm2", c),
        "fc1": hidden,
        "fc2": state.linear(f"{key}.mlp.fc2", hidden["bias"].size, c),
    }
    for scale, name in (("ls1", "proj"), ("ls2", "fc2")):
        if f"{key}.{scale}.gamma" in state:
            gamma = state.take(f"{key}.{scale}.gamma", c)
            block[name] = {part: values * gamma for part, values in block[name].items()}
    return block


def width(params: Params) -> int:
    """Returns the channels of a token."""
    return vision_transformer.width(params)


def tokens(
    params: Params,
    images: Float[Array, "b H W c"],
    layers: Sequence[int] = LAYERS,
    *,
    with_class: bool = False,
) -> list[Float[Array, "b n d"]]:
    """Returns the patch tokens after each of some blocks, row by row, without the final norm.

    At another size than the network was trained at, position embeddings are resized bicubically by
    the ratio of the grids; the published code adds a tenth of a patch to that ratio against
    rounding, which moves them by less.

    Args:
      images: in [-1, 1], of 1 or 3 channels.
      layers: indices of blocks from 0, ascending; `EMBEDDED` stands for the tokens before the first
        block, positions included.
      with_class: whether the class token after the same block is added to every patch token.
    Raises:
      UserError: a side is no multiple of the patch size, or there is no such block.
    """
    depth = len(params["blocks"])
    if (
        not layers
        or list(layers) != sorted(set(layers))
        or not EMBEDDED <= layers[0] <= layers[-1] < depth
    ):
        raise UserError(
            f"layers are {tuple(layers)}; they must be rising numbers of blocks from 0 to "
            f"{depth - 1}, or {EMBEDDED} for what comes before"
        )
    x = vision_transformer.embed(params, (rgb(images) * 0.5 + 0.5 - MEAN) / DEVIATION, KIND)

    def read(x):
        return x[:, 1:] + x[:, :1] if with_class else x[:, 1:]

    outputs = [read(x)] if EMBEDDED in layers else []
    for number, block in enumerate(params["blocks"][: layers[-1] + 1]):
        x = vision_transformer.apply_block(block, x, KIND)
        if number in layers:
            outputs.append(read(x))
    return outputs
