"""Sampling and zero-shot editing as one compiled program (VAR, sections 3.2 and 5.3)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.model import ModelConfig
from var_jax.config.scales import Scales
from var_jax.models import refiner
from var_jax.models.tokenizer import Tokenizer
from var_jax.models.transformer import Cache, Transformer
from var_jax.ops import vq
from var_jax.ops.spatial_guidance import guide_from_coarse
from var_jax.sampling import kept_scales
from var_jax.sampling.guidance import NegativeLabels, guide, guided_rows
from var_jax.sampling.image_keys import KeySource, as_keys
from var_jax.sampling.logits import filter_logits, gumbel, noisy_argmax, sample, smooth_codes
from var_jax.sampling.refined_scale import num_refined, sample_scale
from var_jax.sampling.settings import Resolved

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key, UInt8


class SamplerConfig(NamedTuple):
    """Settings that are compiled into the sampling program; a new value compiles a new program.

    A tuple has one entry per scale.

    Attributes:
      top_k: number of largest logits that are sampled from; 0 is off.
      use_top_p: whether `SamplingParams.top_p` applies.
      guided: whether the unconditional branch counts. It is computed up to the last scale where it
        counts, since that scale attends to all scales before it, and dropped after that.
      use_ssg: whether `SamplingParams.ssg` applies.
      smooth: whether code vectors are mixed (`logits.smooth_codes`) instead of sampled.
      steps: whether the image after each scale is decoded, not only the final one.
      as_uint8: whether images are rounded to uint8.
      keep_scales: for edits, the number of leading scales that are the source image's everywhere;
        None for the published rule (`kept_scales.published_keep_scales`).
    """

    top_k: int | tuple[int, ...]
    use_top_p: bool | tuple[bool, ...]
    guided: bool | tuple[bool, ...]
    use_ssg: bool | tuple[bool, ...] = False
    smooth: bool = False
    steps: bool = False
    as_uint8: bool = False
    keep_scales: int | None = None


class SamplingParams(NamedTuple):
    """Traced settings, which change without compiling; each is a number, or one number per scale.

    Attributes:
      cfg: guidance strength t. One number is the end of the published ramp, which rises linearly
        over the scales from 0; with a single scale it is the strength itself.
      top_p: probability mass that is sampled from.
      temperature: divisor of the logits.
      ssg: strength of scaled spatial guidance (`ops.spatial_guidance`), from the second scale on.
    """

    cfg: Float[Array, "*k"] | float
    top_p: Float[Array, "*k"] | float
    temperature: Float[Array, "*k"] | float
    ssg: Float[Array, "*k"] | float = 0.0


class EditSource(NamedTuple):
    """An image to edit.

    Attributes:
      tokens: the image's tokens of all scales.
      keep: True where the image is kept, on the finest token grid.
    """

    tokens: Int[Array, "b L"]
    keep: Bool[Array, "b h w"]


class ScalePrefix(NamedTuple):
    """The leading scales of images, which sampling continues from.

    Attributes:
      tokens: tokens of these scales.
      inputs: the transformer's inputs for these scales without the first: the accumulated feature
        map, area-averaged to each scale's size.
      f_hats: the accumulated feature map after each of these scales.
    """

    tokens: Int[Array, "b l"]
    inputs: Float[Array, "b l-l1 c"]
    f_hats: tuple[Float[Array, "b h w c"], ...]


class _Model(NamedTuple):
    """A configuration with its parameters."""

    config: ModelConfig
    params: dict[str, Any]

    def predictions(self, *args):
        params = self.params["transformer"]
        return refiner.predictions(self.config.transformer, params, *args, method="next_scale")

    def transformer(self, *args, method: str):
        module = Transformer(self.config.transformer)
        return module.apply({"params": self.params["transformer"]}, *args, method=method)

    def tokenizer(self, *args, method: str):
        module = Tokenizer(self.config.tokenizer)
        return module.apply({"params": self.params["tokenizer"]}, *args, method=method)


def split_settings(config: ModelConfig, settings: Resolved) -> tuple[SamplerConfig, SamplingParams]:
    """Returns checked settings as the sampler takes them: the compiled ones and the traced ones."""
    vocab = config.transformer.vocab_size
    last_guided = -1
    for k, strength in enumerate(settings.cfg):
        if strength > 0:
            last_guided = k
    sampler = SamplerConfig(
        top_k=tuple(top_k if top_k < vocab else 0 for top_k in settings.top_k),
        use_top_p=tuple(0 < top_p < 1 for top_p in settings.top_p),
        guided=tuple(k <= last_guided for k in range(len(config.tokenizer.scales))),
        use_ssg=tuple(k > 0 and strength > 0 for k, strength in enumerate(settings.ssg)),
        smooth=settings.smooth,
    )
    params = SamplingParams(
        cfg=np.float32(settings.cfg),
        top_p=np.float32(settings.top_p),
        temperature=np.float32(settings.temperature),
        ssg=np.float32(settings.ssg),
    )
    return sampler, params


@functools.partial(jax.jit, static_argnames=("config", "sampler"))
def generate(
    config: ModelConfig,
    sampler: SamplerConfig,
    weights: dict,
    labels: Int[Array, " b"],
    keys: Key[Array, " b"] | KeySource,
    params: SamplingParams,
    *,
    prefix: ScalePrefix | None = None,
    edit: EditSource | None = None,
    negative: NegativeLabels | None = None,
) -> tuple[Float[Array, "b *k H W c"] | UInt8[Array, "b *k H W c"], Int[Array, "b L"]]:
    """Samples images for class labels, continues given leading scales, or edits given images.

    A refiner's scales are sampled token by token, all others at once.

    Args:
      weights: {"tokenizer": ..., "transformer": ...}, and "refiner" where the model has one.
      prefix: leading scales to continue from, sampled by this model or by another one with the same
        tokenizer.
      edit: an image to edit: where it is kept, its code vectors replace the sampled ones at every
        scale. Its leading scales are the prefix.
      negative: classes that guidance leads away from; None for "no class".
    Returns:
      images in [0, 1], (b, H, W, c) or with `SamplerConfig.steps` (b, K, H, W, c), and tokens.
    """
    model = _Model(config, weights)
    scales = config.tokenizer.scales
    if edit is not None:
        quantizer = model.tokenizer(method="quantizer")
        prefix = prefix_of_tokens(
            quantizer, edit.tokens, kept_scales.num_kept(sampler.keep_scales, scales)
        )
    sampled = _sample_scales(
        model, sampler, params, labels, keys, prefix=prefix, edit=edit, negative=negative
    )
    decode = functools.partial(model.tokenizer, method="decode_feature")
    if sampler.steps:
        images = jnp.moveaxis(jax.lax.map(decode, jnp.stack(sampled.f_hats)), 0, 1)
    else:
        images = decode(sampled.f_hats[-1])
    return finished(images, as_uint8=sampler.as_uint8), sampled.tokens


def finished(
    images: Float[Array, "*b H W c"], *, as_uint8: bool
) -> Float[Array, "*b H W c"] | UInt8[Array, "*b H W c"]:
    """Returns decoded images, which are in [-1, 1], in [0, 1] or as uint8."""
    images = (images + 1) / 2
    return to_uint8(images) if as_uint8 else images


def to_uint8(images: Float[Array, "*b H W c"]) -> UInt8[Array, "*b H W c"]:
    """Returns images in [0, 1] rounded to whole numbers from 0 to 255."""
    return jnp.rint(images * 255).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames=("config", "sampler", "keep_scales"))
def sample_prefix(
    config: ModelConfig,
    sampler: SamplerConfig,
    weights: dict,
    labels: Int[Array, " b"],
    keys: Key[Array, " b"] | KeySource,
    params: SamplingParams,
    *,
    keep_scales: int,
    negative: NegativeLabels | None = None,
) -> ScalePrefix:
    """Samples the leading scales of images, for another model to continue from.

    Args:
      sampler: cut to these scales by `truncate_settings`, so that settings of later ones do not
        compile another program.
      weights: {"tokenizer": ..., "transformer": ...}.
      keep_scales: number of scales to sample.
      negative: classes that guidance leads away from; None for "no class".
    """
    model = _Model(config, weights)
    return _sample_scales(
        model, sampler, params, labels, keys, num_scales=keep_scales, negative=negative
    )


def truncate_settings(sampler: SamplerConfig, num_scales: int) -> SamplerConfig:
    """Returns the settings of a program that samples only the leading scales."""
    per_scale = {}
    for name in ("top_k", "use_top_p", "guided", "use_ssg"):
        value = getattr(sampler, name)
        per_scale[name] = value[:num_scales] if isinstance(value, tuple) else value
    return sampler._replace(**per_scale, steps=False, as_uint8=False)


def prefix_of_tokens(
    quantizer: vq.Quantizer, tokens: Int[Array, "b L"], keep_scales: int
) -> ScalePrefix | None:
    """Returns the leading scales of given tokens as if they had been sampled; None for no scales.

    Args:
      keep_scales: number of leading scales.
    """
    if not keep_scales:
        return None
    prefix_tokens = tokens[:, : quantizer.scales.offsets[keep_scales]]
    f_hats = vq.decode(quantizer, prefix_tokens)
    inputs = vq.scale_inputs(quantizer, f_hats[:-1], tokens.shape[0])
    return ScalePrefix(prefix_tokens, inputs, tuple(f_hats))


def _sample_scales(
    model: _Model,
    sampler: SamplerConfig,
    params: SamplingParams,
    labels: Int[Array, " b"],
    keys: Key[Array, " b"] | KeySource,
    *,
    num_scales: int | None = None,
    prefix: ScalePrefix | None = None,
    edit: EditSource | None = None,
    negative: NegativeLabels | None = None,
) -> ScalePrefix:
    """Samples scale after scale, from the end of the prefix on.

    Args:
      num_scales: number of scales of the result, the prefix's included; None for all.
      prefix: leading scales that are there already.
      edit: an image whose kept tokens replace the sampled ones.
    """
    scales = model.config.tokenizer.scales
    num_scales = len(scales) if num_scales is None else num_scales
    quantizer = model.tokenizer(method="quantizer")
    codebook = vq.code_vectors(quantizer) if sampler.smooth else None
    keys = as_keys(keys)
    batch = labels.shape[0]
    if edit is not None:
        edit_tokens = scales.split(edit.tokens)
        kept_tokens = kept_scales.keep_by_scale(edit.keep, scales, keep_scales=sampler.keep_scales)

    if prefix is None:
        no_tokens = jnp.zeros((batch, 0), jnp.int32)
        no_inputs = jnp.zeros((batch, 0, quantizer.channels))
        prefix = ScalePrefix(no_tokens, no_inputs, ())
    start = len(prefix.f_hats)
    sampled_tokens = [prefix.tokens]
    inputs = [prefix.inputs]
    f_hats = list(prefix.f_hats)

    # Guidance doubles the batch: conditional rows first, then unconditional ones. Several negative
    # labels have rows of their own each.
    guided_scales = [k for k in range(start, num_scales) if _at_scale(sampler.guided, k)]
    model_labels = labels
    if guided_scales:
        model_labels = guided_rows(labels, model.config.transformer.num_classes, negative)
    copies = len(model_labels) // batch
    cache = Cache()
    if 0 < start < num_scales:
        prefix_inputs = jnp.tile(prefix.inputs, (copies, 1, 1))
        cache = model.transformer(start, prefix_inputs, model_labels, method="prefill")

    def choose(k: int, copies: int, noise: jax.Array, logits: jax.Array, place: Any) -> jax.Array:
        """Returns the batch's tokens at a place of a refined scale, by the noise of the scale."""
        if copies > 1:
            logits = guide(logits, _guidance(params.cfg, scales, k), negative)
        token = noisy_argmax(_filtered(sampler, params, logits, k), noise[:, place])
        if edit is None:
            return token
        return jnp.where(kept_tokens[k][:, place], edit_tokens[k][:, place], token)

    coarse_logits = None
    for k in range(start, num_scales):
        # The unconditional rows are dropped once no later scale needs them.
        if copies > 1 and k > guided_scales[-1]:
            copies = 1
            model_labels = labels
            cache = jax.tree.map(lambda x: x[:, :batch], cache)

        scale_inputs = None
        if k:
            inputs.append(vq.area_tokens(quantizer, f_hats[-1], k))
            scale_inputs = jnp.tile(inputs[-1], (copies, 1, 1))
        scale_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, k)
        token_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(scale_keys)
        if k < num_refined(model.config):
            predictions, cache = model.predictions(k, scale_inputs, model_labels, cache)
            noise = gumbel(token_keys, predictions.logits.shape[1:])
            pick = functools.partial(choose, k, copies, noise)
            tokens = sample_scale(model.config, model.params, k, predictions, pick)
        else:
            logits, cache = model.transformer(
                k, scale_inputs, model_labels, cache, method="next_scale"
            )
            if copies > 1:
                logits = guide(logits, _guidance(params.cfg, scales, k), negative)
            # Spatial guidance compares logits under class guidance, each before it was spatially
            # guided itself. Scales of a prefix have no logits: the first one after it goes without.
            class_guided = logits
            if coarse_logits is not None and _at_scale(sampler.use_ssg, k):
                logits = guide_from_coarse(
                    logits,
                    coarse_logits,
                    _at_scale(params.ssg, k),
                    size=scales.sizes[k],
                    coarse_size=scales.sizes[k - 1],
                )
            coarse_logits = class_guided
            logits = _filtered(sampler, params, logits, k)
            tokens = sample(token_keys, logits)
        if codebook is not None:
            codes = smooth_codes(noise_keys, logits, codebook, scales.progress(k))
        else:
            codes = vq.lookup(quantizer, tokens)
        if edit is not None:
            edit_codes = vq.lookup(quantizer, edit_tokens[k])
            codes = jnp.where(kept_tokens[k][..., None], edit_codes, codes)
            tokens = jnp.where(kept_tokens[k], edit_tokens[k], tokens)
        sampled_tokens.append(tokens)
        f_hats.append(vq.accumulate(quantizer, f_hats[-1] if f_hats else None, codes, k))
    return ScalePrefix(
        jnp.concatenate(sampled_tokens, axis=1), jnp.concatenate(inputs, axis=1), tuple(f_hats)
    )


def _filtered(
    sampler: SamplerConfig, params: SamplingParams, logits: Float[Array, "*b v"], k: int
) -> Float[Array, "*b v"]:
    """Returns the logits that a token of scale k is drawn from, at its temperature."""
    logits = logits / _at_scale(params.temperature, k)
    top_p = _at_scale(params.top_p, k) if _at_scale(sampler.use_top_p, k) else None
    return filter_logits(logits, _at_scale(sampler.top_k, k), top_p)


def _guidance(cfg: Any, scales: Scales, k: int) -> Any:
    """Returns the guidance strength at scale k.

    One number is the end of a ramp from 0, or the strength itself if there is only one scale.
    """
    if jnp.ndim(cfg):
        return cfg[k]
    return cfg * scales.progress(k) if len(scales) > 1 else cfg


def _at_scale(setting: Any, k: int) -> Any:
    """Returns a setting's value at scale k; one number is the value at every scale."""
    return setting[k] if isinstance(setting, tuple) or jnp.ndim(setting) else setting
