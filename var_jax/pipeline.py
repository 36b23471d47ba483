"""The public object: a trained VAR (or a tokenizer alone) that encodes, decodes, samples and edits."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int

from var_jax import convert, generate, model_directory
from var_jax.config import ModelConfig, require
from var_jax.models.tokenizer import Tokenizer
from var_jax.models.transformer import Transformer
from var_jax.ops import vq
from var_jax.ops.resize import resize
from var_jax.ops.scales import Scales

# Bytes of keys and values that one batch of generation may hold, by backend.
CACHE_BYTES = {"cpu": 2**30, "gpu": 2**34, "tpu": 2**32}
MAX_BATCH = 64


class Pipeline:
    """Parameters with their configuration.

    Attributes:
      config: frozen; `.tokenizer` and `.transformer` (None for a tokenizer alone).
      params: {"tokenizer": ..., "transformer": ...}, nested dicts of arrays.
    """

    def __init__(self, config: ModelConfig, params: dict[str, Any]):
        self.config = config
        self.params = jax.tree.map(jnp.asarray, params)

    @classmethod
    def _owning(cls, config: ModelConfig, params: dict[str, Any]) -> "Pipeline":
        """Of a tree that nobody else holds: emptied leaf by leaf, so that its weights never lie in memory twice."""

        def move(tree):
            return {name: move(leaf) if isinstance(leaf, dict) else jnp.asarray(leaf) for name, leaf in _taken(tree)}

        return cls(config, move(params))

    @classmethod
    def from_torch(cls, tokenizer, transformer=None, *, scales, num_heads: int | None = None,
                   cosine_codes: bool = False, norm_groups: int = 32, dtype: str = "float32") -> "Pipeline":
        """From the published PyTorch weights.

        Args:
          tokenizer, transformer: {published key: numpy array}, or a path (.pth, .pt, .safetensors, .npz).
          scales: token-map sizes, coarse to fine.
          num_heads: needed only without QK-norm, where the weights do not tell it.
          cosine_codes: codes are searched by cosine.
          norm_groups: groups of the tokenizer's GroupNorms, which the weights do not tell; 32 in the published code.
          dtype: what the weights are stored in, "float32" or "bfloat16".
        Raises:
          UserError: unknown or missing keys, wrong shapes, or scales that do not match.
        """
        return cls._owning(*convert.from_torch(
            tokenizer, transformer, scales=Scales.parse(scales), num_heads=num_heads, cosine_codes=cosine_codes,
            norm_groups=norm_groups, dtype=dtype))

    @classmethod
    def from_pretrained(cls, directory) -> "Pipeline":
        """From a workdir of `train`, or what `save` or `convert` wrote.

        Raises:
          UserError: the directory is missing, holds no model, or its files are damaged.
        """
        return cls._owning(*model_directory.load(epath.Path(directory)))

    def save(self, directory):
        """Writes a model directory: `model.json` and one `.safetensors` a part."""
        model_directory.save(epath.Path(directory), self.config, self.params)

    def to_torch(self, *, with_buffers: bool = False) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
        """(tokenizer, transformer) state dicts with published keys and layouts; None for a missing transformer.

        Args:
          with_buffers: also the published modules' buffers (masks, level ids), so that those load the dicts strictly.
        """
        return convert.to_torch(self.config, self.params, with_buffers)

    def encode(self, images: Float[np.ndarray, "b H W c"]) -> Int[np.ndarray, "b L"]:
        """Tokens of all scales, coarse to fine, of images in [-1, 1]."""
        return self._batched(_encode, self._images(images))

    def decode(self, tokens: Int[np.ndarray, "b L"]) -> Float[np.ndarray, "b H W c"]:
        """Images in [-1, 1] of tokens of all scales."""
        return self._batched(_decode, self._tokens(tokens))

    def reconstruct(self, images: Float[np.ndarray, "b H W c"]) -> list[Float[np.ndarray, "b H W c"]]:
        """Images in [-1, 1] after the first scale, the first two, ... and all of them."""
        return self._batched(_reconstruct, self._images(images))

    def logits(self, tokens: Int[np.ndarray, "b L"], labels: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b L V"]:
        """Teacher-forced logits of all scales, without dropout; label `num_classes` means "no class"."""
        tokens, labels = self._tokens(tokens), self._labels(labels)
        require(len(tokens) == len(labels), "the number of labels", len(labels),
                f"that of the token rows, {len(tokens)}")
        return self._batched(_logits, tokens, labels)

    def sample(self, labels, *, seed: int = 0, cfg: float = 1.5, top_k: int = 900, top_p: float = 0.96,
               temperature: float = 1.0, smooth: bool = False, return_tokens: bool = False,
               batch_size: int | None = None):
        """Images of classes; image i depends on (seed, i, labels[i]) and the settings alone.

        Args:
          labels: class ids; `num_classes` means "no class".
          cfg: guidance at the last scale, 0 for none.
          top_k: 0 or >= V is off. top_p: 0 or 1 is off.
          smooth: mixes code vectors instead of choosing one: prettier, but not for measuring.
          return_tokens: also return the tokens.
          batch_size: images generated at once; by default what fits.
        Returns:
          float32 (B, H, W, C) in [0, 1] [, int32 (B, L)].
        Raises:
          UserError: a label or setting out of range.
        """
        labels = self._labels(labels)
        run = self._generator(seed, cfg, top_k, top_p, temperature, smooth)
        batch_size = self._fitting_batch(cfg) if batch_size is None else batch_size
        images, tokens = self._batched(run, labels, _indices(labels), batch_size=batch_size)
        return (images, tokens) if return_tokens else images

    def edit(self, images, keep, labels=None, *, seed: int = 0, cfg: float = 1.5, top_k: int = 900, top_p: float = 0.96,
             temperature: float = 1.0, smooth: bool = False, batch_size: int | None = None):
        """Zero-shot in-painting, out-painting or class-conditional editing (VAR, section 5.3).

        Args:
          images: (B, H, W, C) in [-1, 1].
          keep: bool (h, w) or (B, h, w), True where the image is kept; on the finest token grid, or at image
            resolution, where a token is kept when more than half of its pixels are.
          labels: class ids of the new content; None for "no class".
          The rest as `sample`.
        Returns:
          float32 (B, H, W, C) in [0, 1].
        """
        images = self._images(images)
        require(self.config.transformer is not None, "the model", "a tokenizer alone", "one with a transformer")
        keep = self.kept_tokens(keep)
        require(keep.ndim == 2 or len(keep) == len(images), "the number of masks", len(keep),
                f"that of the images, {len(images)}")
        keep = np.broadcast_to(keep, (len(images), *keep.shape[-2:]))
        if labels is None:
            labels, cfg = np.full(len(images), self.config.transformer.num_classes), 0.0
        labels = self._labels(labels)
        require(len(labels) == len(images), "the number of labels", len(labels), f"that of the images, {len(images)}")
        run = self._generator(seed, cfg, top_k, top_p, temperature, smooth)
        batch_size = self._fitting_batch(cfg) if batch_size is None else batch_size
        return self._batched(run, labels, _indices(labels), self.encode(images), keep, batch_size=batch_size)[0]

    def _generator(self, seed, cfg, top_k, top_p, temperature, smooth) -> Callable:
        """`generate` with its settings checked and bound, as a function of batched arrays."""
        require(self.config.transformer is not None, "the model", "a tokenizer alone", "one with a transformer")
        require(0 <= _number(cfg) < np.inf, "cfg", cfg, "0 (off) or more")
        require(0 <= _number(top_p) <= 1, "top_p", top_p, "from 0 to 1 (0 or 1: off)")
        require(_whole(top_k) and top_k >= 0, "top_k", top_k, "a whole number, 0 (off) or more")
        require(0 < _number(temperature) < np.inf, "temperature", temperature, "above 0")
        require(_whole(seed) and 0 <= seed < 2**32, "seed", seed, "a whole number from 0 to 4294967295")
        vocab = self.config.transformer.vocab_size
        static = generate.Static(int(top_k) if top_k < vocab else 0, 0 < top_p < 1, cfg > 0, bool(smooth))
        dynamic = generate.Dynamic(*(jnp.float32(x) for x in (cfg, top_p, temperature)))

        def run(config, params, labels, indices, tokens=None, keep=None):
            given = None if tokens is None else generate.Given(tokens, keep)
            keys = generate.image_keys(int(seed), indices)
            return generate.generate(config, static, params, labels, keys, dynamic, given)

        return run

    def _fitting_batch(self, cfg: float) -> int:
        """Images whose keys and values fit into what the backend may spend on them."""
        t = self.config.transformer
        if t is None:
            return MAX_BATCH
        an_image = (2 if cfg > 0 else 1) * 2 * t.depth * t.scales.total * t.width * jnp.dtype(t.dtype).itemsize
        budget = CACHE_BYTES.get(jax.default_backend(), CACHE_BYTES["gpu"])
        return int(np.clip(budget // an_image, 1, MAX_BATCH))

    def _batched(self, function: Callable, *arrays: np.ndarray, batch_size: int | None = None):
        """`function` over rows in equal batches, so that few programs are compiled; the padding is cut off."""
        rows = len(arrays[0])
        require(rows > 0, "the batch", "empty", "at least one row")
        require(batch_size is None or (_whole(batch_size) and batch_size >= 1), "batch_size", batch_size,
                "a whole number of at least 1")
        batch_size = min(batch_size and int(batch_size) or self._fitting_batch(0), 2 ** int(np.ceil(np.log2(rows))))
        results = []
        for start in range(0, rows, batch_size):
            parts = [a[start:start + batch_size] for a in arrays]
            missing = batch_size - len(parts[0])
            parts = [np.concatenate([p, np.repeat(p[-1:], missing, axis=0)]) if missing else p for p in parts]
            out = function(self.config, self.params, *parts)
            results.append(jax.tree.map(lambda x, kept=batch_size - missing: np.asarray(x[:kept]), out))
        return jax.tree.map(lambda *xs: np.concatenate(xs), *results)

    def _images(self, images) -> np.ndarray:
        images = np.asarray(images, np.float32)
        shape = self.config.tokenizer.image_shape
        require(images.ndim == 4 and images.shape[1:] == shape, "the images' shape", images.shape,
                f"(B, {', '.join(map(str, shape))})")
        require(len(images) > 0, "the batch", "empty", "at least one row")
        require(bool(np.all(np.abs(images) <= 1 + 1e-6)), "the images' range",
                f"{images.min():.3g} to {images.max():.3g}", "-1 to 1")
        return images

    def _tokens(self, tokens) -> np.ndarray:
        tokens = np.asarray(tokens)
        length, vocab = self.config.tokenizer.scales.total, self.config.tokenizer.vocab_size
        require(tokens.ndim == 2 and tokens.shape[1] == length, "the tokens' shape", tokens.shape, f"(B, {length})")
        known = np.issubdtype(tokens.dtype, np.integer) and tokens.min(initial=0) >= 0 and tokens.max(initial=0) < vocab
        require(known, "a token", "out of range", f"a whole number from 0 to {vocab - 1}")
        return tokens.astype(np.int32)

    def _labels(self, labels) -> np.ndarray:
        require(self.config.transformer is not None, "the model", "a tokenizer alone", "one with a transformer")
        labels, classes = np.atleast_1d(np.asarray(labels)), self.config.transformer.num_classes
        require(labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer), "labels", labels.tolist(),
                "whole numbers")
        for label in labels:
            require(0 <= label <= classes, "label", label, f"from 0 to {classes - 1} ({classes}: no class)")
        return labels.astype(np.int32)

    def kept_tokens(self, keep) -> Bool[np.ndarray, "*b h w"]:
        """The mask of `edit` on the finest token grid.

        Args:
          keep: bool (h, w) or (B, h, w), on the finest token grid or at image resolution.
        Raises:
          UserError: it has another shape.
        """
        keep, grid = np.asarray(keep), self.config.tokenizer.scales.finest
        pixels = self.config.tokenizer.image_shape[:2]
        require(keep.ndim in (2, 3) and keep.shape[-2:] in (grid, pixels), "the mask's shape",
                keep.shape, f"(h, w) or (B, h, w), at {grid} tokens or {pixels} pixels")
        rows = jnp.asarray(keep, jnp.float32).reshape(-1, *keep.shape[-2:], 1)
        return np.asarray(resize(rows, grid, "area") > 0.5).reshape(*keep.shape[:-2], *grid)


def _number(value: Any) -> float:
    """NaN, which is in no range, for what is no number."""
    try:
        return math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _whole(value: Any) -> bool:
    return _number(value).is_integer()


def _taken(tree: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The items of a dict, each taken out of it before it is given."""
    for name in list(tree):
        yield name, tree.pop(name)


def _indices(labels: np.ndarray) -> np.ndarray:
    return np.arange(len(labels), dtype=np.uint32)


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: ModelConfig, params, images):
    return Tokenizer(config.tokenizer).apply({"params": params["tokenizer"]}, images, method="encode")


@functools.partial(jax.jit, static_argnums=0)
def _decode(config: ModelConfig, params, tokens):
    return Tokenizer(config.tokenizer).apply({"params": params["tokenizer"]}, tokens, method="decode")


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(config: ModelConfig, params, images):
    apply = functools.partial(Tokenizer(config.tokenizer).apply, {"params": params["tokenizer"]})
    _, totals = vq.encode(apply(method="quantizer"), apply(images, method="features"))
    return [apply(total, method="decode_feature") for total in totals]


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: ModelConfig, params, tokens, labels):
    inputs = Tokenizer(config.tokenizer).apply({"params": params["tokenizer"]}, tokens, method="teacher_input")
    return Transformer(config.transformer).apply({"params": params["transformer"]}, inputs, labels)
