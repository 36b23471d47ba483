"""CLIP's vision tower, such as that of ViT-L/14 at 336 pixels: the embedding of an image.

It has a norm before its blocks, the activation x sigmoid(1.702 x), and a projection of the class
token into the space that it shares with texts. Files by OpenAI and of Hugging Face's `transformers`
hold the same weights under two sets of names. Source: Radford et al., arXiv 2103.00020.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from var_jax.io.torch_file import read_tensors
from var_jax.pretrained import vision_transformer
from var_jax.pretrained.layers import rgb
from var_jax.pretrained.vision_transformer import Sizes, read_norm
from var_jax.pretrained.weights import Layer, State, hwio

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Params = dict[str, Any]
# The mean and deviation of CLIP's own training images, in [0, 1].
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
LARGE = Sizes(1024, 24, 14, 336)  # ViT-L/14 at 336 pixels, the network of CMMD
# Beginnings of other keys: texts', and constants that older files hold.
UNUSED_OF_OPENAI = (
    *("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection"),
    *("logit_scale", "input_resolution", "context_length", "vocab_size"),
)
UNUSED_OF_TRANSFORMERS = ("text_model.", "text_projection.", "logit_scale", ".position_ids")


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


KIND = vision_transformer.Kind(epsilon=1e-5, activation=_quick_gelu)


def load(path: str) -> Params:
    """Returns the parameters of the vision tower in a file of CLIP, by OpenAI or `transformers`.

    Raises:
      UserError: the file cannot be read, or is of another network; the message names the key.
    """
    return from_state(read_tensors(path), path)


def from_state(tensors: Mapping[str, np.ndarray], name: str = "the state dict") -> Params:
    """Returns the parameters in a state dict {published key: array}; see `load`."""
    if any(key.endswith("visual.class_embedding") for key in tensors):
        return _of_openai(State(tensors, name, ("visual.class_embedding", "visual.proj")))
    state = State(tensors, name, ("vision_model.embeddings.class_embedding",))
    return _of_transformers(state)


def embeddings(params: Params, images: Float[Array, "b H W c"]) -> Float[Array, "b d"]:
    """Returns image embeddings, not normalized, at the highest precision of products.

    Args:
      images: in [0, 1], of 1 or 3 channels.
    Raises:
      UserError: a side is no multiple of the patch size.
    """
    with jax.default_matmul_precision("highest"):
        x = vision_transformer.embed(params, (rgb(images) - MEAN) / DEVIATION, KIND)
        x = vision_transformer.layer_norm(params["norm_before"], x, KIND)
        for block in params["blocks"]:
            x = vision_transformer.apply_block(block, x, KIND)
        return vision_transformer.layer_norm(params["norm"], x[:, 0], KIND) @ params["projection"]


def _of_openai(state: State) -> Params:
    kernel = state.take("visual.conv1.weight", None, 3, None, None)
    c = len(kernel)
    params = _embedding(state, kernel, "visual.class_embedding", "visual.positional_embedding") | {
        "norm_before": read_norm(state, "visual.ln_pre", c),
        "norm": read_norm(state, "visual.ln_post", c),
        "projection": state.take("visual.proj", c, None),
    }
    while f"{(key := _block_key('visual.transformer.resblocks', params))}.ln_1.weight" in state:
        qkv = state.take(f"{key}.attn.in_proj_weight", 3 * c, c)
        hidden = state.linear(f"{key}.mlp.c_fc", c)
        params["blocks"].append(
            {
                "norm1": read_norm(state, f"{key}.ln_1", c),
                "qkv": {
                    "kernel": np.ascontiguousarray(qkv.T),
                    "bias": state.take(f"{key}.attn.in_proj_bias", 3 * c),
                },
                "proj": state.linear(f"{key}.attn.out_proj", c, c),
                "norm2": read_norm(state, f"{key}.ln_2", c),
                "fc1": hidden,
                "fc2": state.linear(f"{key}.mlp.c_proj", hidden["bias"].size, c),
            }
        )
    state.finish(*UNUSED_OF_OPENAI)
    return params


def _of_transformers(state: State) -> Params:
    tower = "vision_model"
    kernel = state.take(f"{tower}.embeddings.patch_embedding.weight", None, 3, None, None)
    c = len(kernel)
    params = _embedding(
        state,
        kernel,
        f"{tower}.embeddings.class_embedding",
        f"{tower}.embeddings.position_embedding.weight",
    ) | {
        "norm_before": read_norm(state, f"{tower}.pre_layrnorm", c),  # published with this spelling
        "norm": read_norm(state, f"{tower}.post_layernorm", c),
        "projection": np.ascontiguousarray(state.take("visual_projection.weight", None, c).T),
    }
    while f"{(key := _block_key(f'{tower}.encoder.layers', params))}.layer_norm1.weight" in state:
        parts = [state.linear(f"{key}.self_attn.{name}_proj", c, c) for name in "qkv"]
        hidden = state.linear(f"{key}.mlp.fc1", c)
        params["blocks"].append(
            {
                "norm1": read_norm(state, f"{key}.layer_norm1", c),
                "qkv": {
                    name: np.concatenate([part[name] for part in parts], axis=-1)
                    for name in ("kernel", "bias")
                },
                "proj": state.linear(f"{key}.self_attn.out_proj", c, c),
                "norm2": read_norm(state, f"{key}.layer_norm2", c),
                "fc1": hidden,
                "fc2": state.linear(f"{key}.mlp.fc2", hidden["bias"].size, c),
            }
        )
    state.finish(*UNUSED_OF_TRANSFORMERS)
    return params


def _embedding(state: State, kernel: np.ndarray, class_key: str, positions_key: str) -> Params:
    """Returns the patches' linear map, which has no bias, the class token and the positions."""
    c = len(kernel)
    table = state.take(positions_key, None, c)[None]
    patch: Layer = {"kernel": hwio(kernel), "bias": np.zeros(c, np.float32)}
    placed = vision_transformer.square_of_positions(table, state.name, positions_key)
    placed["class"] = placed["class"] + state.take(class_key, c)
    return {"patch": patch, **placed, "blocks": []}


def _block_key(blocks: str, params: Params) -> str:
    return f"{blocks}.{len(params['blocks'])}"
