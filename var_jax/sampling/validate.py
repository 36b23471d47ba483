"""What a caller hands the pipeline, checked: images, tokens, labels and masks as arrays of the
model's shapes."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from var_jax.config.model import ModelConfig, TokenizerConfig, TransformerConfig
from var_jax.config.strict import require
from var_jax.ops.resize import resize
from var_jax.sampling.labels import of_name


def transformer(config: ModelConfig) -> TransformerConfig:
    """The model's transformer.

    Raises:
      UserError: it has none.
    """
    require(
        config.transformer is not None, "the model", "a tokenizer alone", "one with a transformer"
    )
    assert config.transformer is not None
    return config.transformer


def images(config: TokenizerConfig, given) -> Float[np.ndarray, "b H W c"]:
    """Images in [-1, 1].

    Raises:
      UserError: another shape or range.
    """
    given = np.asarray(given, np.float32)
    shape = config.image_shape
    require(
        given.ndim == 4 and given.shape[1:] == shape,
        "the images' shape",
        given.shape,
        f"(B, {', '.join(map(str, shape))})",
    )
    require(len(given) > 0, "the batch", "empty", "at least one row")
    require(
        bool(np.all(np.abs(given) <= 1 + 1e-6)),
        "the images' range",
        f"{given.min():.3g} to {given.max():.3g}",
        "-1 to 1",
    )
    return given


def tokens(config: TokenizerConfig, given) -> Int[np.ndarray, "b L"]:
    """Tokens of all scales.

    Raises:
      UserError: another shape, or a token that is no code's.
    """
    given = np.asarray(given)
    length, vocab = config.scales.total, config.vocab_size
    require(
        given.ndim == 2 and given.shape[1] == length,
        "the tokens' shape",
        given.shape,
        f"(B, {length})",
    )
    known = (
        np.issubdtype(given.dtype, np.integer)
        and given.min(initial=0) >= 0
        and given.max(initial=0) < vocab
    )
    require(known, "a token", "out of range", f"a whole number from 0 to {vocab - 1}")
    return given.astype(np.int32)


def labels(config: ModelConfig, given, class_names: Sequence[str] = ()) -> Int[np.ndarray, " b"]:
    """Class ids, of ids or names; `num_classes` means "no class".

    Args:
      class_names: of the model, by id. A text is always a name, a number always an id.
    Raises:
      UserError: no transformer, an id out of range, or a name that no class has.
    """
    classes = transformer(config).num_classes
    rows = [given] if isinstance(given, str) else given
    if isinstance(rows, Sequence | np.ndarray) and any(isinstance(row, str) for row in rows):
        given = [of_name(str(row), class_names) if isinstance(row, str) else row for row in rows]
    given = np.atleast_1d(np.asarray(given))
    require(
        given.ndim == 1 and np.issubdtype(given.dtype, np.integer),
        "labels",
        given.tolist(),
        "whole numbers",
    )
    for label in given:
        require(
            0 <= label <= classes, "label", label, f"from 0 to {classes - 1} ({classes}: no class)"
        )
    return given.astype(np.int32)


def kept_tokens(config: TokenizerConfig, keep) -> Bool[np.ndarray, "*b h w"]:
    """A mask on the finest token grid, of one there or at image resolution, where more than half of
    a token counts.

    Raises:
      UserError: another shape, or other values than 0 and 1.
    """
    keep, grid = _mask(config, keep), config.scales.finest
    rows = jnp.asarray(keep, jnp.float32).reshape(-1, *keep.shape[-2:], 1)
    return np.asarray(resize(rows, grid, "area") > 0.5).reshape(*keep.shape[:-2], *grid)


def kept_pixels(config: TokenizerConfig, keep) -> Bool[np.ndarray, "*b H W"]:
    """A mask at image resolution, of one there or on the finest token grid.

    Raises:
      UserError: another shape, or other values than 0 and 1.
    """
    keep = _mask(config, keep)
    if keep.shape[-2:] == config.image_shape[:2]:
        return keep
    return keep.repeat(config.downsampling, axis=-2).repeat(config.downsampling, axis=-1)


def _mask(config: TokenizerConfig, keep) -> Bool[np.ndarray, "*b h w"]:
    keep, grid, pixels = np.asarray(keep), config.scales.finest, config.image_shape[:2]
    require(
        keep.ndim in (2, 3) and keep.shape[-2:] in (grid, pixels),
        "the mask's shape",
        keep.shape,
        f"(h, w) or (B, h, w), at {grid} tokens or {pixels} pixels",
    )
    flags = keep.dtype == bool or (
        np.issubdtype(keep.dtype, np.number) and bool(np.all((keep == 0) | (keep == 1)))
    )
    require(
        flags, "the mask", f"of {keep.dtype} values other than 0 and 1", "bool, or 0 and 1 (kept)"
    )
    return keep.astype(bool)
