"""`Pipeline`: a VAR model, or only a tokenizer, that encodes, decodes, samples and edits."""

import functools
from collections.abc import Callable
from typing import Any, Unpack

import numpy as np
from jaxtyping import Bool, Float, Int

from var_jax.config.strict import require
from var_jax.devices import batched
from var_jax.io.loaded_model import LoadedModel
from var_jax.models import programs
from var_jax.sampling import sampler, settings, validate
from var_jax.sampling.batch_size import max_batch
from var_jax.sampling.settings import Settings, is_integer


class Pipeline(LoadedModel):
    """A trained VAR model, or only a tokenizer; `from_pretrained` and `from_torch` load one.

    Attributes:
      config: the frozen configuration; `.tokenizer` and `.transformer` (None without a
        transformer).
      params: {"tokenizer": ..., "transformer": ...}, nested dicts of arrays.
      class_names: class names by id, where the model's directory has them; else empty.
    """

    def encode(self, images: Float[np.ndarray, "b H W c"]) -> Int[np.ndarray, "b L"]:
        """Returns tokens of all scales, coarse to fine, of images in [-1, 1]."""
        return self._run(programs.encode, validate.images(self.config.tokenizer, images))

    def decode(self, tokens: Int[np.ndarray, "b L"]) -> Float[np.ndarray, "b H W c"]:
        """Returns images in [-1, 1] of tokens of all scales."""
        return self._run(programs.decode, validate.tokens(self.config.tokenizer, tokens))

    def reconstruct(
        self, images: Float[np.ndarray, "b H W c"]
    ) -> list[Float[np.ndarray, "b H W c"]]:
        """Returns images in [-1, 1] decoded after the first scale, the first two, ... and all."""
        return self._run(programs.reconstruct, validate.images(self.config.tokenizer, images))

    def logits(
        self, tokens: Int[np.ndarray, "b L"], labels: Int[np.ndarray, " b"]
    ) -> Float[np.ndarray, "b L V"]:
        """Returns teacher-forced logits of all scales, without dropout.

        The label `num_classes` means "no class".
        """
        tokens = validate.tokens(self.config.tokenizer, tokens)
        labels = self._labels(labels)
        _require_as_many("labels", len(labels), "token rows", len(tokens))
        return self._run(programs.logits, tokens, labels)

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
        **overrides: Unpack[Settings],
    ):
        """Samples images of classes; image i depends only on (seed, i, labels[i]) and the settings.

        Args:
          labels: class ids or, where the model has them, class names; `num_classes` means "no
            class".
          preset: "fid" (cfg=1.5, top_k=900, top_p=0.96, temperature=1.0, smooth=False), "pretty" or
            "greedy".
          return_tokens: whether to return the tokens too.
          return_steps: whether to return the image after each scale too.
          as_uint8: whether images are uint8 from 0 to 255, rounded.
          batch_size: images per device that are sampled at once; by default as many as fit.
          first_index: index of the first image, to sample a long series in parts.
          then: another model with the same tokenizer, which samples the scales after the first
            `keep_scales`: a small model is good enough for the many tokens of the last scales
            (CoDe, arXiv 2411.17787).
          keep_scales: number of leading scales that this model samples before `then` continues.
          from_scale: an alias of `keep_scales`.
          overrides: cfg, top_k, top_p, temperature and smooth, in place of the preset's; each is a
            number, a `settings.Ramp`, or a list of one number per scale (see `settings.Settings`).
        Returns:
          float32 (B, H, W, C) in [0, 1]; after it, if requested, the tokens, int32 (B, L), and the
          image after each scale, (B, K, H, W, C).
        Raises:
          UserError: a label or setting is out of range, or the model `then` does not fit.
        """
        labels = self._labels(labels)
        require(
            is_integer(first_index) and 0 <= first_index <= 2**32 - len(labels),
            "first_index",
            first_index,
            f"a whole number from 0 to {2**32 - len(labels)}",
        )
        keep_scales = self._check_then(then, _one_of(keep_scales, from_scale))
        sampler_config, params = self._settings(seed, preset, overrides)
        sampler_config = sampler_config._replace(steps=return_steps, as_uint8=as_uint8)

        def run(config, weights, labels, indices):
            keys = sampler.KeySource(np.uint32(seed), indices)
            if then is None:
                return sampler.generate(config, sampler_config, weights, labels, keys, params)
            prefix_config = sampler.truncate_settings(sampler_config, keep_scales)
            prefix = sampler.sample_prefix(
                config, prefix_config, weights, labels, keys, params, keep_scales=keep_scales
            )
            return sampler.generate(
                then.config, sampler_config, then.params, labels, keys, params, prefix=prefix
            )

        if batch_size is None:
            batch_size = self._max_batch(sampler_config, then)
        indices = _image_indices(len(labels), int(first_index))
        images, tokens = self._run(run, labels, indices, batch_size=batch_size)
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
        **overrides: Unpack[Settings],
    ):
        """Edits images zero-shot (VAR, section 5.3).

        It does in-painting, out-painting or class-conditional editing.

        Args:
          images: (B, H, W, C) in [-1, 1].
          keep: bool (h, w) or (B, h, w), True where the image is kept; on the finest token grid, or
            at image resolution, where a token is kept when more than half of its pixels are.
          labels: classes of the new content, as `sample` takes them; None for "no class".
          keep_scales: number of leading scales that stay the image's own everywhere. With more of
            them, new content stays closer to the old. None for the published rule: the scales of at
            most 3 tokens.
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
        images = validate.images(tokenizer, images)
        validate.transformer(self.config)
        keep_scales = _one_of(keep_scales, from_scale)
        if keep_scales is not None:
            keep_scales = validate.keep_scales(tokenizer, keep_scales, least=0)
        kept_tokens = self.kept_tokens(keep)
        if kept_tokens.ndim == 3:
            _require_as_many("masks", len(kept_tokens), "images", len(images))
        edited, _ = self._resample(
            images,
            kept_tokens,
            labels,
            seed=seed,
            preset=preset,
            keep_scales=keep_scales,
            batch_size=batch_size,
            overrides=overrides,
        )
        if not composite:
            return edited
        kept_pixels = validate.kept_pixels(tokenizer, keep)[..., None]
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
        images = validate.images(tokenizer, images)
        validate.transformer(self.config)
        varied, tokens = self._resample(
            images,
            np.zeros(tokenizer.scales.finest, bool),
            labels,
            seed=seed,
            preset=preset,
            keep_scales=validate.keep_scales(tokenizer, keep_scales),
            batch_size=batch_size,
            overrides=overrides,
        )
        return (varied, tokens) if return_tokens else varied

    def check_sampling(
        self,
        *,
        seed: int,
        preset: str = "fid",
        then: "Pipeline | None" = None,
        keep_scales: int | None = None,
        **overrides: Unpack[Settings],
    ):
        """Raises the UserError that `sample` would raise for these settings."""
        self._check_then(then, keep_scales)
        self._settings(seed, preset, overrides)

    def sampling_batch(
        self,
        *,
        seed: int = 0,
        preset: str = "fid",
        then: "Pipeline | None" = None,
        **overrides: Unpack[Settings],
    ) -> int:
        """Returns the number of images per device that `sample` samples at once by default."""
        sampler_config, _ = self._settings(seed, preset, overrides)
        return self._max_batch(sampler_config, then)

    def kept_tokens(self, keep) -> Bool[np.ndarray, "*b h w"]:
        """Returns the mask of `edit` on the finest token grid.

        Args:
          keep: bool (h, w) or (B, h, w), on the finest token grid or at image resolution.
        Raises:
          UserError: the mask has another shape.
        """
        return validate.kept_tokens(self.config.tokenizer, keep)

    def _labels(self, labels) -> Int[np.ndarray, " b"]:
        return validate.labels(self.config, labels, self.class_names)

    def _settings(
        self, seed: Any, preset: str, overrides: Settings
    ) -> tuple[sampler.SamplerConfig, sampler.SamplingParams]:
        """Returns checked settings as the sampler takes them."""
        validate.transformer(self.config)
        require(
            is_integer(seed) and 0 <= seed < 2**32,
            "seed",
            seed,
            "a whole number from 0 to 4294967295",
        )
        chosen = settings.settings(preset, overrides)
        return sampler.split_settings(
            self.config, settings.resolve(self.config.tokenizer.scales, chosen)
        )

    def _resample(
        self, images, keep, labels, *, seed, preset, keep_scales, batch_size, overrides
    ) -> tuple[np.ndarray, np.ndarray]:
        """Resamples the tokens that are not kept after the leading scales.

        Returns the images and all of their tokens.
        """
        if labels is None:
            labels = np.full(len(images), validate.transformer(self.config).num_classes)
            overrides = {**overrides, "cfg": 0}
        labels = self._labels(labels)
        _require_as_many("labels", len(labels), "images", len(images))
        sampler_config, params = self._settings(seed, preset, overrides)
        sampler_config = sampler_config._replace(keep_scales=keep_scales)

        def run(config, weights, labels, indices, tokens, keep):
            keys = sampler.KeySource(np.uint32(seed), indices)
            edit = sampler.EditSource(tokens, keep)
            return sampler.generate(
                config, sampler_config, weights, labels, keys, params, edit=edit
            )

        keep = np.broadcast_to(keep, (len(images), *keep.shape[-2:]))
        if batch_size is None:
            batch_size = self._max_batch(sampler_config)
        return self._run(
            run,
            labels,
            _image_indices(len(labels)),
            self.encode(images),
            keep,
            batch_size=batch_size,
        )

    def _check_then(self, then: "Pipeline | None", keep_scales: Any) -> int | None:
        """Returns the number of scales before another model continues; None without another model.

        It checks both.
        """
        require(
            (then is None) == (keep_scales is None),
            "keep_scales",
            keep_scales,
            "given together with `then`, the model that goes on from there",
        )
        if then is None:
            return None
        keep_scales = validate.keep_scales(self.config.tokenizer, keep_scales)
        validate.same_tokenizer(self.config, self.params, then.config, then.params)
        require(
            self._device_ids == then._device_ids,
            "the devices of `then`",
            then._device_ids,
            f"those of the first model, {self._device_ids}; spread both, or neither",
        )
        return keep_scales

    @property
    def _device_ids(self) -> list[int] | None:
        if self._sharding is None:
            return None
        return [device.id for device in self._sharding.mesh.devices.flat]

    def _max_batch(
        self, sampler_config: sampler.SamplerConfig, then: "Pipeline | None" = None
    ) -> int:
        """Returns the number of images per device that fit in memory with both models."""
        guided = any(sampler_config.guided)
        batch = max_batch(self.config, self.params, guided=guided)
        return batch if then is None else min(batch, then._max_batch(sampler_config))

    def _run(self, function: Callable, *arrays: np.ndarray, batch_size: int | None = None):
        """Returns `function(config, params, *rows)` of all rows, computed in equal batches."""
        require(len(arrays[0]) > 0, "the batch", "empty", "at least one row")
        if batch_size is None:
            batch_size = max_batch(self.config, self.params, guided=False)
        require(
            is_integer(batch_size) and batch_size >= 1,
            "batch_size",
            batch_size,
            "a whole number of at least 1",
        )
        return batched.run_in_batches(
            functools.partial(function, self.config, self.params),
            arrays,
            batch_size=int(batch_size),
            sharding=self._sharding,
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


def _require_as_many(name: str, count: int, of: str, expected: int):
    require(count == expected, f"the number of {name}", count, f"that of the {of}, {expected}")


def _image_indices(count: int, first: int = 0) -> np.ndarray:
    return (first + np.arange(count, dtype=np.int64)).astype(np.uint32)
