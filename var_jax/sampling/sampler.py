"""Scale-by-scale generation and zero-shot editing as one compiled program (VAR, sections 3.2 and
5.3)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from var_jax.config.model import ModelConfig
from var_jax.config.scales import Scales
from var_jax.models.tokenizer import Tokenizer
from var_jax.models.transformer import Cache, Transformer
from var_jax.ops import vq
from var_jax.ops.resize import resize
from var_jax.sampling import logits as sampling

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key, UInt8

# Scales of at most this many tokens are the given image's throughout an edit: they hold its overall
# colour.
GIVEN_TOKENS = 3


class Static(NamedTuple):
    """What a compiled program is made for; changing it compiles another one. A tuple has one entry
    a scale.

    Attributes:
      top_k: 0 is off.
      use_top_p: whether `Dynamic.top_p` counts.
      guided: whether the unconditional branch counts. It is computed as far as the last scale that
        it counts at, since that one sees all before it, and left out from there on.
      smooth: code vectors are mixed (`sampling.smooth_codes`).
      steps: the image after each scale, not after the last alone.
      as_uint8: images as uint8, rounded.
      given_scales: of an edit, the first scales that are wholly the given image's; None: those of
        at most `GIVEN_TOKENS` tokens.
    """

    top_k: int | tuple[int, ...]
    use_top_p: bool | tuple[bool, ...]
    guided: bool | tuple[bool, ...]
    smooth: bool = False
    steps: bool = False
    as_uint8: bool = False
    given_scales: int | None = None


class Dynamic(NamedTuple):
    """What may change from call to call: numbers, not shapes; one for all scales, or one a scale.

    Attributes:
      cfg: guidance; one number is what it rises to, linearly over the scales from 0.
    """

    cfg: Float[Array, "*k"] | float
    top_p: Float[Array, "*k"] | float
    temperature: Float[Array, "*k"] | float


class Given(NamedTuple):
    """An image to edit: its tokens, and where they are kept on the finest token grid."""

    tokens: Int[Array, "b L"]
    keep: Bool[Array, "b h w"]


class Drawn(NamedTuple):
    """The first scales of images, which a generation may go on from.

    Attributes:
      tokens: of those scales.
      inputs: what a transformer sees for the second one and on: the map so far, averaged down to a
        scale's size.
      totals: the cumulative map after each.
    """

    tokens: Int[Array, "b l"]
    inputs: Float[Array, "b l-l1 c"]
    totals: tuple[Float[Array, "b h w c"], ...]


class Seeded(NamedTuple):
    """What the images' keys are made of, inside the program."""

    seed: Int[Array, ""] | int
    indices: Int[Array, " b"]


def image_keys(seed: Int[Array, ""] | int, indices: Int[Array, " b"]) -> Key[Array, " b"]:
    """One key an image, from the seed and the image's own index: the batch it is in has no say."""
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(indices)


@functools.partial(jax.jit, static_argnames=("config", "static"))
def generate(
    config: ModelConfig,
    static: Static,
    params: dict,
    labels: Int[Array, " b"],
    keys: Key[Array, " b"] | Seeded,
    dynamic: Dynamic,
    given: Given | None = None,
    drawn: Drawn | None = None,
) -> tuple[Float[Array, "b *k H W c"] | UInt8[Array, "b *k H W c"], Int[Array, "b L"]]:
    """Images in [0, 1] and their tokens for class labels, or edits of given images.

    Where a given image is kept, its own code vectors replace the generated ones at every scale.

    Args:
      drawn: first scales to go on from, drawn by this model or another one of the same tokenizer.
    Returns:
      images (with `Static.steps` (b, K, H, W, c), else (b, H, W, c)), and tokens (b, L).
    """
    tokenizer = _tokenizer(config, params)
    if given is not None:
        drawn = first_scales(
            tokenizer(method="quantizer"),
            given.tokens,
            given_scales(static, config.tokenizer.scales),
        )
    drawn = _draw(
        config, static, params, labels, keys, dynamic, len(config.tokenizer.scales), given, drawn
    )
    decode = functools.partial(tokenizer, method="decode_feature")
    if static.steps:
        images = jnp.moveaxis(jax.lax.map(decode, jnp.stack(drawn.totals)), 0, 1)
    else:
        images = decode(drawn.totals[-1])
    images = (images + 1) / 2
    if static.as_uint8:
        images = jnp.rint(images * 255).astype(jnp.uint8)
    return images, drawn.tokens


@functools.partial(jax.jit, static_argnames=("config", "static", "stop"))
def begin(
    config: ModelConfig,
    static: Static,
    params: dict,
    labels: Int[Array, " b"],
    keys: Key[Array, " b"] | Seeded,
    dynamic: Dynamic,
    stop: int,
) -> Drawn:
    """The first `stop` scales of images, for another model to go on from."""
    return _draw(config, static, params, labels, keys, dynamic, stop, None, None)


def first_scales(quantizer: vq.Quantizer, tokens: Int[Array, "b L"], n: int) -> Drawn | None:
    """The first n scales of tokens, as if they had been drawn; None of none."""
    inputs, totals = [jnp.zeros((tokens.shape[0], 0, quantizer.channels))], []
    for k, part in enumerate(quantizer.scales.split(tokens)[:n]):
        if k:
            inputs.append(vq.area_tokens(quantizer, totals[-1], k))
        step = vq.contribution(quantizer, vq.lookup(quantizer, part), k)
        totals.append(totals[-1] + step if totals else step)
    return (
        Drawn(
            tokens[:, : quantizer.scales.offsets[n]], jnp.concatenate(inputs, axis=1), tuple(totals)
        )
        if n
        else None
    )


def given_scales(static: Static, scales: Scales) -> int:
    """How many first scales of an edit are wholly the given image's."""
    if static.given_scales is not None:
        return static.given_scales
    return published_given(scales)


def published_given(scales: Scales) -> int:
    """How many first scales the published rule leaves to the given image: those of at most
    `GIVEN_TOKENS` tokens."""
    return sum(length <= GIVEN_TOKENS for length in scales.lengths)


def keep_by_scale(
    keep: Bool[Array, "b h w"], scales: Scales, given: int | None = None
) -> list[Bool[Array, "b l"]]:
    """Which tokens of each scale are kept: the finest grid's mask resized bilinearly, above one
    half.

    Args:
      given: first scales of which all are; None for those of at most `GIVEN_TOKENS` tokens.
    """
    given = published_given(scales) if given is None else given
    wide = keep[..., None].astype(jnp.float32)
    parts = []
    for k, (size, length) in enumerate(zip(scales.sizes, scales.lengths, strict=True)):
        at_scale = (resize(wide, size, "bilinear") > 0.5).reshape(keep.shape[0], length)
        parts.append(at_scale | (k < given))
    return parts


def _draw(
    config: ModelConfig,
    static: Static,
    params: dict,
    labels,
    keys,
    dynamic: Dynamic,
    stop: int,
    given: Given | None,
    drawn: Drawn | None,
) -> Drawn:
    """All scales before `stop`, those of `drawn` first."""
    scales, classes = config.tokenizer.scales, config.transformer.num_classes
    transformer = functools.partial(
        Transformer(config.transformer).apply, {"params": params["transformer"]}
    )
    quantizer = _tokenizer(config, params)(method="quantizer")
    table = vq.code_vectors(quantizer) if static.smooth else None
    keys = image_keys(*keys) if isinstance(keys, Seeded) else keys
    batch = labels.shape[0]
    if given is not None:
        given_tokens = scales.split(given.tokens)
        kept = keep_by_scale(given.keep, scales, given_scales(static, scales))

    drawn = drawn or Drawn(
        jnp.zeros((batch, 0), jnp.int32), jnp.zeros((batch, 0, quantizer.channels)), ()
    )
    start, chosen, inputs, totals = (
        len(drawn.totals),
        [drawn.tokens],
        [drawn.inputs],
        list(drawn.totals),
    )
    guided = [k for k in range(start, stop) if _at_scale(static.guided, k)]
    copies = 2 if guided else 1
    both = jnp.concatenate([labels, jnp.full_like(labels, classes)]) if guided else labels
    cache = Cache()
    if 0 < start < stop:
        cache = transformer(start, jnp.tile(drawn.inputs, (copies, 1, 1)), both, method="prefill")
    for k in range(start, stop):
        if copies == 2 and k > guided[-1]:
            copies, both, cache = 1, labels, jax.tree.map(lambda x: x[:, :batch], cache)
        if k:
            inputs.append(vq.area_tokens(quantizer, totals[-1], k))
        logits, cache = transformer(
            k, jnp.tile(inputs[-1], (copies, 1, 1)) if k else None, both, cache, method="next_scale"
        )
        if copies == 2:
            strength = (
                _at_scale(dynamic.cfg, k)
                if jnp.ndim(dynamic.cfg)
                else dynamic.cfg * scales.progress(k)
            )
            logits = sampling.guide(logits, strength)
        logits = logits / _at_scale(dynamic.temperature, k)
        top_p = _at_scale(dynamic.top_p, k) if _at_scale(static.use_top_p, k) else None
        logits = sampling.filter_logits(logits, _at_scale(static.top_k, k), top_p)
        scale_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, k)
        token_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(scale_keys)
        tokens = sampling.sample(token_keys, logits)
        if table is not None:
            codes = sampling.smooth_codes(noise_keys, logits, table, scales.progress(k))
        else:
            codes = vq.lookup(quantizer, tokens)
        if given is not None:
            codes = jnp.where(kept[k][..., None], vq.lookup(quantizer, given_tokens[k]), codes)
            tokens = jnp.where(kept[k], given_tokens[k], tokens)
        chosen.append(tokens)
        step = vq.contribution(quantizer, codes, k)
        totals.append(totals[-1] + step if totals else step)
    return Drawn(jnp.concatenate(chosen, axis=1), jnp.concatenate(inputs, axis=1), tuple(totals))


def _tokenizer(config: ModelConfig, params: dict):
    return functools.partial(Tokenizer(config.tokenizer).apply, {"params": params["tokenizer"]})


def _at_scale(setting: Any, k: int) -> Any:
    return setting[k] if isinstance(setting, tuple) or jnp.ndim(setting) else setting
