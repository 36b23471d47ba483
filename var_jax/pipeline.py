"""The public object: a trained VAR (or a tokenizer alone) that encodes, decodes, samples and
edits."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

from var_jax.config.model import DType, ModelConfig
from var_jax.config.scales import Scales
from var_jax.config.strict import differences, plain, require
from var_jax.errors import require_path
from var_jax.io import model_directory, torch_convert
from var_jax.models.tokenizer import Tokenizer
from var_jax.models.transformer import Transformer
from var_jax.ops import vq
from var_jax.sampling import sampler
from var_jax.sampling import settings as schedules
from var_jax.sampling import validate as inputs
from var_jax.sampling.settings import Settings, whole

HOST_BYTES = 2**30  # for a batch where the device does not tell its memory, as the CPU does not
WIDEST_MAPS = 4  # of an image that the decoder holds at once: an estimate
MAX_BATCH = {"cpu": 64, "gpu": 256, "tpu": 256}


class Pipeline:
    """Parameters with their configuration.

    Attributes:
      config: frozen; `.tokenizer` and `.transformer` (None for a tokenizer alone).
      params: {"tokenizer": ..., "transformer": ...}, nested dicts of arrays.
      class_names: by id, where the model's directory carries them; else empty.
    """

    def __init__(
        self, config: ModelConfig, params: dict[str, Any], class_names: Sequence[str] = ()
    ):
        self.config = config
        self.class_names = tuple(class_names)
        self.params = jax.tree.map(jnp.asarray, params)
        self._rows: NamedSharding | None = None

    @classmethod
    def _owning(
        cls, config: ModelConfig, params: dict[str, Any], class_names: Sequence[str] = ()
    ) -> "Pipeline":
        """Of a tree that nobody else holds: emptied leaf by leaf, so that its weights never lie in
        memory twice."""

        def move(tree):
            return {
                name: move(leaf) if isinstance(leaf, dict) else jnp.asarray(leaf)
                for name, leaf in _taken(tree)
            }

        return cls(config, move(params), class_names)

    @classmethod
    def from_torch(
        cls,
        tokenizer,
        transformer=None,
        *,
        scales,
        num_heads: int | None = None,
        cosine_codes: bool = False,
        norm_groups: int = 32,
        dtype: str = "float32",
    ) -> "Pipeline":
        """From the published PyTorch weights.

        Args:
          tokenizer: {published key: numpy array}, or a path (.pth, .pt, .safetensors, .npz).
          transformer: the same of the transformer; None for a tokenizer alone.
          scales: token-map sizes, coarse to fine.
          num_heads: needed only without QK-norm, where the weights do not tell it.
          cosine_codes: codes are searched by cosine.
          norm_groups: groups of the tokenizer's GroupNorms, which the weights do not tell; 32 in
            the published code.
          dtype: what the weights are stored in, "float32" or "bfloat16".
        Raises:
          UserError: unknown or missing keys, wrong shapes, or scales that do not match.
        """
        return cls._owning(
            *torch_convert.from_torch(
                tokenizer,
                transformer,
                scales=Scales.parse(scales),
                num_heads=num_heads,
                cosine_codes=cosine_codes,
                norm_groups=norm_groups,
                dtype=dtype,
            )
        )

    @classmethod
    def from_pretrained(cls, directory) -> "Pipeline":
        """From a workdir of `train`, or what `save` or `convert` wrote.

        Raises:
          UserError: the directory is missing, holds no model, or its files are damaged.
        """
        require_path(directory, "the model directory")
        path = epath.Path(directory)
        return cls._owning(*model_directory.load(path), model_directory.class_names(path))

    def save(self, directory):
        """Writes a model directory: `model.json` and one `.safetensors` a part."""
        require_path(directory, "the model directory")
        model_directory.save(epath.Path(directory), self.config, self.params, self.class_names)

    def to_torch(
        self, *, with_buffers: bool = False
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
        """(tokenizer, transformer) state dicts with published keys and layouts; None for a missing
        transformer.

        Args:
          with_buffers: also the published modules' buffers (masks, level ids), so that those load
            the dicts strictly.
        """
        return torch_convert.to_torch(self.config, self.params, with_buffers)

    def spread(self, devices: Sequence[jax.Device] | None = None) -> "Pipeline":
        """The same model, whole on each of some of this process's devices (by default all), which
        share every batch."""
        mesh = Mesh(np.asarray(jax.local_devices() if devices is None else devices), ("data",))
        params = jax.device_put(self.params, NamedSharding(mesh, PartitionSpec()))
        spread = Pipeline(self.config, params, self.class_names)
        spread._rows = NamedSharding(mesh, PartitionSpec("data"))
        return spread

    def astype(self, dtype: DType) -> "Pipeline":
        """The same model stored and computed in another dtype, "float32" or "bfloat16"."""
        require(dtype in get_args(DType), "dtype", dtype, " or ".join(get_args(DType)))
        parts = {
            name: part and dataclasses.replace(part, dtype=dtype, param_dtype=dtype)
            for name, part in vars(self.config).items()
        }
        other = Pipeline(
            ModelConfig(**parts),
            jax.tree.map(lambda x: x.astype(dtype), self.params),
            self.class_names,
        )
        other._rows = self._rows
        return other

    def with_scales(self, scales) -> "Pipeline":
        """The tokenizer alone with the same weights and other token maps, so for images of another
        size or shape.

        Its residual convolutions serve scales by their place among them, so the list may be of any
        length. A transformer is left behind: its position embeddings are those of its own scales.

        Args:
          scales: token-map sizes, coarse to fine; the image is the finest times
            `config.tokenizer.downsampling`.
        Raises:
          UserError: the tokenizer has one residual convolution a scale (`phi` 0), and the scales
            are not as many.
        """
        ours = self.config.tokenizer
        # The dropout of training may not fit fewer scales, and does nothing here.
        theirs = dataclasses.replace(ours, scales=Scales.parse(scales), quantizer_dropout=0.0)
        require(
            theirs.phi_count == ours.phi_count,
            "the number of scales",
            len(theirs.scales),
            f"{len(ours.scales)}, as this tokenizer has one residual convolution a scale",
        )
        other = Pipeline(ModelConfig(theirs), {"tokenizer": self.params["tokenizer"]})
        other._rows = self._rows
        return other

    def encode(self, images: Float[np.ndarray, "b H W c"]) -> Int[np.ndarray, "b L"]:
        """Tokens of all scales, coarse to fine, of images in [-1, 1]."""
        return self._batched(_encode, inputs.images(self.config.tokenizer, images))

    def decode(self, tokens: Int[np.ndarray, "b L"]) -> Float[np.ndarray, "b H W c"]:
        """Images in [-1, 1] of tokens of all scales."""
        return self._batched(_decode, inputs.tokens(self.config.tokenizer, tokens))

    def reconstruct(
        self, images: Float[np.ndarray, "b H W c"]
    ) -> list[Float[np.ndarray, "b H W c"]]:
        """Images in [-1, 1] after the first scale, the first two, ... and all of them."""
        return self._batched(_reconstruct, inputs.images(self.config.tokenizer, images))

    def logits(
        self, tokens: Int[np.ndarray, "b L"], labels: Int[np.ndarray, " b"]
    ) -> Float[np.ndarray, "b L V"]:
        """Teacher-forced logits of all scales, without dropout; label `num_classes` means "no
        class"."""
        tokens, labels = inputs.tokens(self.config.tokenizer, tokens), self._labels(labels)
        require(
            len(tokens) == len(labels),
            "the number of labels",
            len(labels),
            f"that of the token rows, {len(tokens)}",
        )
        return self._batched(_logits, tokens, labels)

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
        from_scale: int | None = None,
        **settings: Unpack[Settings],
    ):
        """Images of classes; image i depends on (seed, i, labels[i]) and the settings alone.

        Args:
          labels: class ids or, where the model carries them, class names; `num_classes` means "no
            class".
          preset: "fid" (cfg=1.5, top_k=900, top_p=0.96, temperature=1.0, smooth=False), "pretty" or
            "greedy".
          return_tokens: also return the tokens.
          return_steps: also return the image after each scale.
          as_uint8: images as uint8 0 to 255, rounded.
          batch_size: images that a device generates at once; by default what fits.
          first_index: index of the first image, so that a long series may be drawn in parts.
          then: another model of the same tokenizer that draws the finer scales: a small one is good
            enough for the many tokens of the last scales (CoDe, arXiv 2411.17787).
          from_scale: the first scale that `then` draws, counted from 0.
          settings: cfg, top_k, top_p, temperature and smooth, over the preset's; each a number, a
            `schedules.Ramp`, or a list of one number a scale (see `schedules.Settings`).
        Returns:
          float32 (B, H, W, C) in [0, 1]; after it, where they are asked for, the tokens, int32
          (B, L), and the image after each scale, (B, K, H, W, C).
        Raises:
          UserError: a label or setting out of range, or a model `then` that does not fit.
        """
        labels = self._labels(labels)
        require(
            whole(first_index) and 0 <= first_index <= 2**32 - len(labels),
            "first_index",
            first_index,
            f"a whole number from 0 to {2**32 - len(labels)}",
        )
        from_scale = self._partner_scale(then, from_scale)
        static, dynamic = self._settings(seed, preset, settings)
        static = static._replace(steps=return_steps, as_uint8=as_uint8)

        def run(config, params, labels, indices):
            keys = sampler.Seeded(np.uint32(seed), indices)
            if then is None:
                return sampler.generate(config, static, params, labels, keys, dynamic)
            drawn = sampler.begin(
                config, _until(static, from_scale), params, labels, keys, dynamic, from_scale
            )
            return sampler.generate(
                then.config, static, then.params, labels, keys, dynamic, None, drawn
            )

        if batch_size is None:
            batch_size = self._at_once(static, then)
        images, tokens = self._batched(
            run, labels, _indices(labels, int(first_index)), batch_size=batch_size
        )
        found = [images[:, -1] if return_steps else images]
        found += [tokens] * return_tokens + [images] * return_steps
        return tuple(found) if len(found) > 1 else found[0]

    def edit(
        self,
        images,
        keep,
        labels=None,
        *,
        seed: int = 0,
        preset: str = "fid",
        from_scale: int | None = None,
        composite: bool = False,
        batch_size: int | None = None,
        **settings: Unpack[Settings],
    ):
        """Zero-shot in-painting, out-painting or class-conditional editing (VAR, section 5.3).

        Args:
          images: (B, H, W, C) in [-1, 1].
          keep: bool (h, w) or (B, h, w), True where the image is kept; on the finest token grid, or
            at image resolution, where a token is kept when more than half of its pixels are.
          labels: classes of the new content, as `sample` takes them; None for "no class".
          from_scale: the first scale with new content, counted from 0; coarser ones are the image's
            own everywhere. The later, the closer new content stays to the old. None: the published
              rule, the first of more than 3 tokens.
          composite: puts the image's own pixels back where they are kept, instead of the
            tokenizer's reconstruction.

        The other arguments are those of `sample`.

        Returns:
          float32 (B, H, W, C) in [0, 1].
        """
        images = inputs.images(self.config.tokenizer, images)
        inputs.transformer(self.config)
        first = None if from_scale is None else self._scale("from_scale", from_scale, least=0)
        kept = self.kept_tokens(keep)
        require(
            kept.ndim == 2 or len(kept) == len(images),
            "the number of masks",
            len(kept),
            f"that of the images, {len(images)}",
        )
        edited = self._redraw(images, kept, labels, first, seed, preset, batch_size, settings)[0]
        if not composite:
            return edited
        return np.where(
            inputs.kept_pixels(self.config.tokenizer, keep)[..., None], (images + 1) / 2, edited
        )

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
        **settings: Unpack[Settings],
    ):
        """New images that share the first scales of given ones: variations of an image with few of
        them, other fine detail with nearly all.

        Of an image that was enlarged to the model's size, the first scales hold all that there is,
        and the rest is zero-shot super-resolution.

        Args:
          images: (B, H, W, C) in [-1, 1].
          labels: class ids; None for "no class".
          keep_scales: how many of the first scales are the image's own.
          return_tokens: also return the tokens.

        The other arguments are those of `sample`.

        Returns:
          float32 (B, H, W, C) in [0, 1]; with `return_tokens` also int32 (B, L).
        """
        images = inputs.images(self.config.tokenizer, images)
        inputs.transformer(self.config)
        first, nowhere = (
            self._scale("keep_scales", keep_scales),
            np.zeros(self.config.tokenizer.scales.finest, bool),
        )
        images, tokens = self._redraw(
            images, nowhere, labels, first, seed, preset, batch_size, settings
        )
        return (images, tokens) if return_tokens else images

    def check_sampling(
        self,
        *,
        seed: int,
        preset: str = "fid",
        then: "Pipeline | None" = None,
        from_scale: int | None = None,
        **settings: Unpack[Settings],
    ):
        """Raises the UserError that `sample` would of these settings."""
        self._partner_scale(then, from_scale)
        self._settings(seed, preset, settings)

    def sampling_batch(
        self,
        *,
        seed: int = 0,
        preset: str = "fid",
        then: "Pipeline | None" = None,
        **settings: Unpack[Settings],
    ) -> int:
        """Images that `sample` of these settings generates at once on a device, where no batch size
        is given."""
        static, _ = self._settings(seed, preset, settings)
        return self._at_once(static, then)

    def _labels(self, labels) -> Int[np.ndarray, " b"]:
        return inputs.labels(self.config, labels, self.class_names)

    def _redraw(self, images, kept, labels, first: int | None, seed, preset, batch_size, settings):
        """Images and tokens with new content where tokens are not kept, from the scale `first`
        on."""
        if labels is None:
            labels, settings = (
                np.full(len(images), inputs.transformer(self.config).num_classes),
                {**settings, "cfg": 0},
            )
        labels = self._labels(labels)
        require(
            len(labels) == len(images),
            "the number of labels",
            len(labels),
            f"that of the images, {len(images)}",
        )
        static, dynamic = self._settings(seed, preset, settings)
        static = static._replace(given_scales=first)

        def run(config, params, labels, indices, tokens, keep):
            keys = sampler.Seeded(np.uint32(seed), indices)
            return sampler.generate(
                config, static, params, labels, keys, dynamic, sampler.Given(tokens, keep)
            )

        kept = np.broadcast_to(kept, (len(images), *kept.shape[-2:]))
        batch_size = self._at_once(static) if batch_size is None else batch_size
        return self._batched(
            run, labels, _indices(labels), self.encode(images), kept, batch_size=batch_size
        )

    def _settings(
        self, seed, preset: str, settings: Settings
    ) -> tuple[sampler.Static, sampler.Dynamic]:
        """The settings as `generate` takes them, checked: what compiles another program, and what
        does not."""
        vocab, scales = inputs.transformer(self.config).vocab_size, self.config.tokenizer.scales
        require(
            whole(seed) and 0 <= seed < 2**32, "seed", seed, "a whole number from 0 to 4294967295"
        )
        given = schedules.resolve(scales, schedules.settings(preset, settings))
        last = max((k for k, strength in enumerate(given.cfg) if strength > 0), default=-1)
        static = sampler.Static(
            top_k=tuple(k if k < vocab else 0 for k in given.top_k),
            use_top_p=tuple(0 < p < 1 for p in given.top_p),
            guided=tuple(k <= last for k in range(len(scales))),
            smooth=given.smooth,
        )
        return static, sampler.Dynamic(
            *(np.float32(x) for x in (given.cfg, given.top_p, given.temperature))
        )

    def _scale(self, name: str, k: Any, least: int = 1) -> int:
        most = len(self.config.tokenizer.scales) - 1
        require(
            whole(k) and least <= k <= most,
            name,
            k,
            f"a whole number from {least} to {most}, as there are {most + 1} scales",
        )
        return int(k)

    def _partner_scale(self, then: "Pipeline | None", from_scale: Any) -> int | None:
        """The scale that another model goes on from, both checked; None where there is none."""
        require(
            (then is None) == (from_scale is None),
            "from_scale",
            from_scale,
            "given together with `then`, the model that goes on from there",
        )
        if then is None:
            return None
        first = self._scale("from_scale", from_scale)
        self._check_partner(then)
        return first

    def _check_partner(self, then: "Pipeline"):
        """Whether another model may go on with this one's tokens."""
        ours, theirs = inputs.transformer(self.config), inputs.transformer(then.config)
        require(
            theirs.num_classes == ours.num_classes,
            "the number of classes of `then`",
            theirs.num_classes,
            f"that of the first model, {ours.num_classes}",
        )
        dtypes = {"dtype": "", "param_dtype": "", "gradient_dtype": ""}
        same_sizes = not differences(
            *({**plain(model.config.tokenizer), **dtypes} for model in (self, then))
        )
        codes = [jax.tree.leaves(model.params["tokenizer"]["quantize"]) for model in (self, then)]
        require(
            same_sizes and all(a is b or np.array_equal(a, b) for a, b in zip(*codes, strict=True)),
            "the tokenizer of `then`",
            "another one",
            "the first model's, as it goes on with its tokens",
        )
        require(
            self._devices == then._devices,
            "the devices of `then`",
            then._devices,
            f"those of the first model, {self._devices}; spread both, or neither",
        )

    @property
    def _devices(self) -> list[int] | None:
        return [device.id for device in self._rows.mesh.devices.flat] if self._rows else None

    def _at_once(self, static: sampler.Static, then: "Pipeline | None" = None) -> int:
        """Images that fit where they are generated by this model, and by another one after it."""
        return min(model._fitting_batch(any(static.guided)) for model in (self, then) if model)

    def _fitting_batch(self, guided: bool) -> int:
        """Images whose keys, values and decoded maps take at most half of the memory that weights
        leave on a device, or 1 GiB where it does not tell; a power of two."""
        v, t = self.config.tokenizer, self.config.transformer
        height, width, _ = v.image_shape
        an_image = WIDEST_MAPS * height * width * v.channels * jnp.dtype(v.dtype).itemsize
        if t is not None:
            an_image += (
                (2 if guided else 1)
                * 2
                * t.depth
                * t.scales.total
                * t.width
                * jnp.dtype(t.dtype).itemsize
            )
        limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))
        budget = HOST_BYTES if limit is None else (limit - weights) // 2
        most = MAX_BATCH.get(jax.default_backend(), 64)
        return 2 ** int(np.log2(np.clip(budget // an_image, 1, most)))

    def _batched(self, function: Callable, *arrays: np.ndarray, batch_size: int | None = None):
        """`function` over rows in equal batches, so that few programs are compiled; the padding is
        cut off."""
        rows = len(arrays[0])
        require(rows > 0, "the batch", "empty", "at least one row")
        require(
            batch_size is None or (whole(batch_size) and batch_size >= 1),
            "batch_size",
            batch_size,
            "a whole number of at least 1",
        )
        devices = self._rows.mesh.size if self._rows else 1
        batch_size = batch_size and int(batch_size) or self._fitting_batch(guided=False)
        batch_size = devices * min(batch_size, 2 ** math.ceil(math.log2(math.ceil(rows / devices))))
        results = []
        for start in range(0, rows, batch_size):
            parts = [a[start : start + batch_size] for a in arrays]
            missing = batch_size - len(parts[0])
            parts = [
                np.concatenate([p, np.repeat(p[-1:], missing, axis=0)]) if missing else p
                for p in parts
            ]
            out = function(
                self.config,
                self.params,
                *(jax.device_put(parts, self._rows) if self._rows else parts),
            )
            results.append(
                jax.tree.map(lambda x, kept=batch_size - missing: np.asarray(x[:kept]), out)
            )
        return jax.tree.map(lambda *xs: np.concatenate(xs), *results)

    def kept_tokens(self, keep) -> Bool[np.ndarray, "*b h w"]:
        """The mask of `edit` on the finest token grid.

        Args:
          keep: bool (h, w) or (B, h, w), on the finest token grid or at image resolution.
        Raises:
          UserError: it has another shape.
        """
        return inputs.kept_tokens(self.config.tokenizer, keep)


def _taken(tree: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The items of a dict, each taken out of it before it is given."""
    for name in list(tree):
        yield name, tree.pop(name)


def _until(static: sampler.Static, stop: int) -> sampler.Static:
    """Of a program that ends before a scale: what comes after it compiles no other one."""
    cut = {name: getattr(static, name)[:stop] for name in ("top_k", "use_top_p", "guided")}
    return static._replace(**cut, steps=False, as_uint8=False)


def _indices(labels: np.ndarray, first: int = 0) -> np.ndarray:
    return (first + np.arange(len(labels), dtype=np.int64)).astype(np.uint32)


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: ModelConfig, params, images):
    return Tokenizer(config.tokenizer).apply(
        {"params": params["tokenizer"]}, images, method="encode"
    )


@functools.partial(jax.jit, static_argnums=0)
def _decode(config: ModelConfig, params, tokens):
    return Tokenizer(config.tokenizer).apply(
        {"params": params["tokenizer"]}, tokens, method="decode"
    )


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(config: ModelConfig, params, images):
    apply = functools.partial(Tokenizer(config.tokenizer).apply, {"params": params["tokenizer"]})
    _, totals = vq.encode(apply(method="quantizer"), apply(images, method="features"))
    return [apply(total, method="decode_feature") for total in totals]


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: ModelConfig, params, tokens, labels):
    inputs = Tokenizer(config.tokenizer).apply(
        {"params": params["tokenizer"]}, tokens, method="teacher_input"
    )
    return Transformer(config.transformer).apply({"params": params["transformer"]}, inputs, labels)
