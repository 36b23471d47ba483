"""`Pipeline`: a VAR model, or only a tokenizer, that encodes, decodes, samples and edits."""

from typing import Unpack

import numpy as np
from jaxtyping import Bool

from var_jax.config.strict import require
from var_jax.models import networks
from var_jax.sampling import edit_mask, sampler, sampler_registry, validate
from var_jax.sampling.coding_model import require_as_many
from var_jax.sampling.image_keys import KeySource
from var_jax.sampling.sampling_model import SamplingModel
from var_jax.sampling.settings import Settings, is_integer


class Pipeline(SamplingModel):
    """A trained VAR model, or only a tokenizer; `from_pretrained` and `from_torch` load one.

    Attributes:
      config: the frozen configuration; `.tokenizer` and `.transformer` (None without a
        transformer).
      params: {"tokenizer": ..., "transformer": ...}, nested dicts of arrays.
      class_names: class names by id, where the model's directory has them; else empty.
    """

    def sample(
        self,
        labels,
        *,
        seed: int = 0,
        preset: str = "fid",
        return_tokens: bool = False,
        return_steps: bool = False,
        as_uint8: bool = False,
        batch_size: int | None = None,
        first_index: int = 0,
        then: "Pipeline | None" = None,
        keep_scales: int | None = None,
        from_scale: int | None = None,
        negative_labels=None,
        **overrides: Unpack[Settings],
    ):
        """Samples images of classes; image i depends only on (seed, i, labels[i]) and the settings.

        Args:
          labels: class ids or, where the model has them, class names; `num_classes` means "no
            class".
          preset: "fid" (cfg=1.5, top_k=900, top_p=0.96, temperature=1.0, ssg=0, smooth=False),
            "pretty" or "greedy"; rivals of next-scale prediction have their own
            (`sampling.sampler_registry`).
          return_tokens: whether to return the tokens too.
          return_steps: whether to return the image after each scale too (next-scale only).
          as_uint8: whether images are uint8 from 0 to 255, rounded.
          batch_size: images per device that are sampled at once; by default as many as fit.
          first_index: index of the first image, to sample a long series in parts.
          then: another model with the same tokenizer, which samples the scales after the first
            `keep_scales`: a small model is good enough for the many tokens of the last scales
            (CoDe, arXiv 2411.17787; next-scale only).
          keep_scales: number of leading scales that this model samples before `then` continues.
          from_scale: an alias of `keep_scales`.
          negative_labels: classes that guidance leads away from, in place of "no class": an id or
            name for all images, a list with one for each, or a dict of several for all images to
            their weights, such as {3: 2, 5: 1}.
          overrides: cfg, top_k, top_p, temperature, ssg, smooth, steps, noise and solver, in place
            of the preset's; None is the preset's. For next-scale prediction each of the first five
            is a number, a `settings.Ramp`, or a list of one number per scale (see
            `settings.Settings`); for other objectives, one number.
        Returns:
          float32 (B, H, W, C) in [0, 1]; after it, if requested, the tokens, int32 (B, L), and the
          image after each scale, (B, K, H, W, C).
        Raises:
          UserError: a label or setting is out of range, the objective has no use for a setting, or
            the model `then` does not fit.
        """
        labels = self._labels(labels)
        if return_tokens:
            networks.require_tokens(self.config, "return_tokens")
        require(
            is_integer(first_index) and 0 <= first_index <= 2**32 - len(labels),
            "first_index",
            first_index,
            f"a whole number from 0 to {2**32 - len(labels)}",
        )
        if return_steps:
            self.require_by_scale("return_steps", return_steps)
        keep_scales = self._check_then(then, _one_of(keep_scales, from_scale))
        prepared = self._prepare(seed, preset, overrides)
        objective_sampler = sampler_registry.find(self.config)
        sampler_config, params = prepared.compiled, prepared.traced
        if objective_sampler.by_scale:
            sampler_config = sampler_config._replace(steps=return_steps)
        sampler_config = sampler_config._replace(as_uint8=as_uint8)

        negative = self._negative(negative_labels, len(labels), prepared)

        def run(config, weights, labels, indices, **away):
            keys = KeySource(np.uint32(seed), indices)
            if then is None:
                return objective_sampler.program(
                    config, sampler_config, weights, labels, keys, params, **away
                )
            prefix_config = sampler.truncate_settings(sampler_config, keep_scales)
            prefix = sampler.sample_prefix(
                config,
                prefix_config,
                weights,
                labels,
                keys,
                params,
                keep_scales=keep_scales,
                **away,
            )
            return sampler.generate(
                then.config,
                sampler_config,
                then.params,
                labels,
                keys,
                params,
                prefix=prefix,
                **away,
            )

        if batch_size is None:
            batch_size = self._max_batch(prepared, negative, then)
        indices = _image_indices(len(labels), int(first_index))
        images, tokens = self._run_guided(run, negative, labels, indices, batch_size=batch_size)
        results = [images[:, -1] if return_steps else images]
        if return_tokens:
            results.append(tokens)
        if return_steps:
            results.append(images)
        return tuple(results) if len(results) > 1 else results[0]

    def edit(
        self,
        images,
        keep,
        labels=None,
        *,
        seed: int = 0,
        preset: str = "fid",
        keep_scales: int | None = None,
        from_scale: int | None = None,
        composite: bool = False,
        batch_size: int | None = None,
        negative_labels=None,
        **overrides: Unpack[Settings],
    ):
        """Edits images zero-shot (VAR, section 5.3; MaskGIT).

        It does in-painting, out-painting or class-conditional editing, with a model of next-scale
        or masked prediction.

        Args:
          images: (B, H, W, C) in [-1, 1].
          keep: bool (h, w) or (B, h, w), True where the image is kept; on the finest token grid, or
            at image resolution, where a token is kept when more than half of its pixels are.
          labels: classes of the new content, as `sample` takes them; None for "no class".
          keep_scales: number of leading scales that stay the image's own everywhere. With more of
            them, new content stays closer to the old. None for the published rule: the scales of at
            most 3 tokens. Next-scale only.
          from_scale: an alias of `keep_scales`.
          composite: whether the image's own pixels replace the tokenizer's reconstruction where
            they are kept.

        The other arguments are those of `sample`.

        Returns:
          float32 (B, H, W, C) in [0, 1].
        Raises:
          UserError: an argument does not fit the model, or a setting is out of range.
        """
        tokenizer = self.config.tokenizer
        self._require_able("edit", "edits")
        images = validate.images(tokenizer, images)
        keep_scales = _one_of(keep_scales, from_scale)
        if keep_scales is not None:
            self.require_by_scale("keep_scales", keep_scales)
            keep_scales = validate.keep_scales(tokenizer, keep_scales, least=0)
        kept_tokens = self.kept_tokens(keep)
        if kept_tokens.ndim == 3:
            require_as_many("masks", len(kept_tokens), "images", len(images))
        edited, _ = self._resample(
            images,
            kept_tokens,
            labels,
            seed=seed,
            preset=preset,
            keep_scales=keep_scales,
            batch_size=batch_size,
            negative_labels=negative_labels,
            overrides=overrides,
        )
        if not composite:
            return edited
        kept_pixels = edit_mask.kept_pixels(tokenizer, keep)[..., None]
        return np.where(kept_pixels, (images + 1) / 2, edited)

    def vary(
        self,
        images,
        labels=None,
        *,
        keep_scales: int,
        seed: int = 0,
        preset: str = "fid",
        return_tokens: bool = False,
        batch_size: int | None = None,
        negative_labels=None,
        **overrides: Unpack[Settings],
    ):
        """Samples new images that share the leading scales of given ones.

        With few shared scales they are variations of an image; with nearly all, only fine detail
        differs.

        For an image that was enlarged to the model's size, whose detail is only in the leading
        scales, this is zero-shot super-resolution.

        Args:
          images: (B, H, W, C) in [-1, 1].
          labels: class ids; None for "no class".
          keep_scales: number of leading scales that are the image's own.
          return_tokens: whether to return the tokens too.

        The other arguments are those of `sample`.

        Returns:
          float32 (B, H, W, C) in [0, 1]; with `return_tokens` also int32 (B, L).
        Raises:
          UserError: an argument does not fit the model, or a setting is out of range.
        """
        tokenizer = self.config.tokenizer
        self._require_able("vary", "by_scale")
        images = validate.images(tokenizer, images)
        varied, tokens = self._resample(
            images,
            np.zeros(tokenizer.scales.finest, bool),
            labels,
            seed=seed,
            preset=preset,
            keep_scales=validate.keep_scales(tokenizer, keep_scales),
            batch_size=batch_size,
            negative_labels=negative_labels,
            overrides=overrides,
        )
        return (varied, tokens) if return_tokens else varied

    def kept_tokens(self, keep) -> Bool[np.ndarray, "*b h w"]:
        """Returns the mask of `edit` on the finest token grid.

        Args:
          keep: bool (h, w) or (B, h, w), on the finest token grid or at image resolution.
        Raises:
          UserError: the mask has another shape.
        """
        return edit_mask.kept_tokens(self.config.tokenizer, keep)

    def _resample(
        self,
        images,
        keep,
        labels,
        *,
        seed,
        preset,
        keep_scales,
        batch_size,
        negative_labels,
        overrides,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Resamples the tokens that are not kept after the leading scales.

        Returns the images and all of their tokens.
        """
        if labels is None:
            labels = np.full(len(images), validate.transformer(self.config).num_classes)
            # Guidance from "no class" to "no class" would change nothing.
            if negative_labels is None:
                overrides = {**overrides, "cfg": 0}
        labels = self._labels(labels)
        require_as_many("labels", len(labels), "images", len(images))
        prepared = self._prepare(seed, preset, overrides)
        program, sampler_config = sampler_registry.find(self.config).program, prepared.compiled
        if keep_scales is not None:
            sampler_config = sampler_config._replace(keep_scales=keep_scales)

        negative = self._negative(negative_labels, len(labels), prepared)

        def run(config, weights, labels, indices, tokens, keep, **away):
            keys = KeySource(np.uint32(seed), indices)
            edit = sampler.EditSource(tokens, keep)
            traced = prepared.traced
            return program(config, sampler_config, weights, labels, keys, traced, edit=edit, **away)

        keep = np.broadcast_to(keep, (len(images), *keep.shape[-2:]))
        if batch_size is None:
            batch_size = self._max_batch(prepared, negative)
        return self._run_guided(
            run,
            negative,
            labels,
            _image_indices(len(labels)),
            self.encode(images),
            keep,
            batch_size=batch_size,
        )


def _one_of(keep_scales: int | None, from_scale: int | None) -> int | None:
    """Returns the value of an argument or of its alias."""
    require(
        keep_scales is None or from_scale is None,
        "from_scale",
        from_scale,
        "left out where keep_scales is given, as both are one setting",
    )
    return from_scale if keep_scales is None else keep_scales


def _image_indices(count: int, first: int = 0) -> np.ndarray:
    return (first + np.arange(count, dtype=np.int64)).astype(np.uint32)
