"""Encodes a data set's images as the tokens that a transformer learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from var_jax.config.model import TokenizerConfig
from var_jax.devices.sharding import constrain
from var_jax.models.tokenizer import Tokenizer
from var_jax.ops.normalize import normalize_images

if TYPE_CHECKING:
    from jaxtyping import Array, Int, UInt8


def encode_pixels(
    config: TokenizerConfig, params: Mapping[str, Any], images: UInt8[Array, "b H W c"]
) -> Int[Array, "b L"]:
    """Returns the tokens of uint8 images, as a function to be compiled.

    Args:
      params: the tokenizer's parameters; the encoder and the quantizer are enough.
    """
    normalized = constrain(normalize_images(images), "images", None, None, None)
    return Tokenizer(config).apply({"params": params}, normalized, method="encode")
