"""The continuous latents that diffusion learns: a tokenizer's features, or blocks of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from var_jax.config.model import ModelConfig
from var_jax.devices.sharding import constrain
from var_jax.models.diffusion_transformer import from_patches, to_patches
from var_jax.models.tokenizer import Tokenizer
from var_jax.ops.normalize import normalize_images

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt8


def encode_latents(
    config: ModelConfig, params: Mapping[str, Any], images: UInt8[Array, "b H W c"]
) -> Float[Array, "b h w z"]:
    """Returns the latents of uint8 images, not yet normalized; the caller compiles this.

    Args:
      params: parameters of the tokenizer; the encoder is enough, and pixels need none.
    """
    tokenizer, transformer = config.tokenizer, config.transformer
    assert transformer is not None
    normalized = constrain(normalize_images(images), "images", None, None, None)
    if transformer.latents == "features":
        return Tokenizer(tokenizer).apply({"params": params}, normalized, method="features")
    blocks = to_patches(normalized, tokenizer.downsampling)
    return blocks.reshape(len(images), *transformer.latent_shape)


def decode_latents(
    config: ModelConfig, params: Mapping[str, Any], latents: Float[Array, "b h w z"]
) -> Float[Array, "b H W c"]:
    """Returns the images of latents, in [-1, 1].

    Args:
      params: parameters of the tokenizer; decoder and quantizer are enough, and pixels need none.
    """
    tokenizer, transformer = config.tokenizer, config.transformer
    assert transformer is not None
    if transformer.latents == "features":
        return Tokenizer(tokenizer).apply({"params": params}, latents, method="decode_latents")
    blocks = latents.reshape(len(latents), -1, transformer.latent_channels)
    images = from_patches(blocks, tokenizer.scales.finest, tokenizer.downsampling)
    return jnp.clip(images, -1, 1)
