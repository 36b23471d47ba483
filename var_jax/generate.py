"""Scale-by-scale generation and zero-shot editing as one compiled program (VAR, sections 3.2 and 5.3)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from var_jax.config import ModelConfig
from var_jax.models.tokenizer import Tokenizer
from var_jax.models.transformer import Cache, Transformer
from var_jax.ops import sampling, vq
from var_jax.ops.resize import resize
from var_jax.ops.scales import Scales

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key

# Scales of at most this many tokens are the given image's throughout an edit: they hold its overall colour.
GIVEN_TOKENS = 3


class Static(NamedTuple):
    """What a compiled program is made for; changing it compiles another one."""

    top_k: int
    use_top_p: bool
    guided: bool
    smooth: bool = False


class Dynamic(NamedTuple):
    """What may change from call to call: numbers, not shapes."""

    cfg: Float[Array, ""] | float
    top_p: Float[Array, ""] | float
    temperature: Float[Array, ""] | float


class Given(NamedTuple):
    """An image to edit: its tokens, and where they are kept on the finest token grid."""

    tokens: Int[Array, "b L"]
    keep: Bool[Array, "b h w"]


def image_keys(seed: int, indices: Int[Array, " b"]) -> Key[Array, " b"]:
    """One key an image, from the seed and the image's own index: the batch it is in has no say."""
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(indices)


@functools.partial(jax.jit, static_argnames=("config", "static"))
def generate(
    config: ModelConfig, static: Static, params: dict, labels: Int[Array, " b"], keys: Key[Array, " b"],
    dynamic: Dynamic, given: Given | None = None,
) -> tuple[Float[Array, "b H W c"], Int[Array, "b L"]]:
    """Images in [0, 1] and their tokens for class labels, or edits of given images.

    Guidance rises linearly over the scales from 0 to `dynamic.cfg`. Where a given image is kept, its own code
    vectors replace the generated ones at every scale.
    """
    scales = config.tokenizer.scales
    transformer = functools.partial(Transformer(config.transformer).apply, {"params": params["transformer"]})
    tokenizer = functools.partial(Tokenizer(config.tokenizer).apply, {"params": params["tokenizer"]})
    quantizer = tokenizer(method="quantizer")
    copies = 2 if static.guided else 1
    if static.guided:
        labels = jnp.concatenate([labels, jnp.full_like(labels, config.transformer.num_classes)])
    if given is not None:
        given_tokens, kept = scales.split(given.tokens), keep_by_scale(given.keep, scales)

    total = jnp.zeros((keys.shape[0], *scales.finest, config.tokenizer.z_channels))
    inputs, cache, chosen = None, Cache(), []
    for k in range(len(scales)):
        logits, cache = transformer(k, inputs, labels, cache, method="next_scale")
        if static.guided:
            logits = sampling.guide(logits, dynamic.cfg * scales.progress(k))
        logits = logits / dynamic.temperature
        logits = sampling.filter_logits(logits, static.top_k, dynamic.top_p if static.use_top_p else None)
        scale_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, k)
        token_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(scale_keys)
        tokens = sampling.sample(token_keys, logits)
        if static.smooth:
            codes = sampling.smooth_codes(noise_keys, logits, quantizer.codebook, scales.progress(k))
        else:
            codes = vq.lookup(quantizer, tokens)
        if given is not None:
            codes = jnp.where(kept[k][..., None], vq.lookup(quantizer, given_tokens[k]), codes)
            tokens = jnp.where(kept[k], given_tokens[k], tokens)
        chosen.append(tokens)
        total = total + vq.contribution(quantizer, codes, k)
        if k + 1 < len(scales):
            inputs = jnp.tile(vq.area_tokens(quantizer, total, k + 1), (copies, 1, 1))
    image = tokenizer(total, method="decode_feature")
    return (image + 1) / 2, jnp.concatenate(chosen, axis=1)


def keep_by_scale(keep: Bool[Array, "b h w"], scales: Scales) -> list[Bool[Array, "b l"]]:
    """Which tokens of each scale are kept: the finest grid's mask resized bilinearly, above one half."""
    wide = keep[..., None].astype(jnp.float32)
    parts = []
    for size, length in zip(scales.sizes, scales.lengths, strict=True):
        at_scale = (resize(wide, size, "bilinear") > 0.5).reshape(keep.shape[0], length)
        parts.append(at_scale | (length <= GIVEN_TOKENS))
    return parts
