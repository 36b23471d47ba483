"""Checks of the pipeline's arguments: images, tokens, labels, masks and second models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from var_jax.config.model import ModelConfig, TokenizerConfig, TransformerConfig
from var_jax.config.strict import differences, plain, require
from var_jax.sampling.labels import of_name
from var_jax.sampling.settings import is_integer

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def transformer(config: ModelConfig) -> TransformerConfig:
    """Returns the config of a model's transformer, if it has one.

    Raises:
      UserError: the model is a tokenizer without a transformer.
    """
    require(
        config.transformer is not None, "the model", "a tokenizer alone", "one with a transformer"
    )
    assert config.transformer is not None
    return config.transformer


def images(config: TokenizerConfig, values) -> Float[np.ndarray, "b H W c"]:
    """Returns images in [-1, 1] as float32.

    Raises:
      UserError: the shape is not the model's, or a value is out of range.
    """
    values = np.asarray(values, np.float32)
    shape = config.image_shape
    require(
        values.ndim == 4 and values.shape[1:] == shape,
        "the images' shape",
        values.shape,
        f"(B, {', '.join(map(str, shape))})",
    )
    require(len(values) > 0, "the batch", "empty", "at least one row")
    require(
        bool(np.all(np.abs(values) <= 1 + 1e-6)),
        "the images' range",
        f"{values.min():.3g} to {values.max():.3g}",
        "-1 to 1",
    )
    return values


def tokens(
    config: TokenizerConfig, values, *, allow_masked: bool = False
) -> Int[np.ndarray, "b L"]:
    """Returns tokens of all scales as int32.

    Args:
      allow_masked: whether V, one beyond the codebook, is a token too.
    Raises:
      UserError: the shape is not the model's, or a token is not an index of the codebook.
    """
    values = np.asarray(values)
    length, vocab = config.scales.total, config.vocab_size + allow_masked
    require(
        values.ndim == 2 and values.shape[1] == length,
        "the tokens' shape",
        values.shape,
        f"(B, {length})",
    )
    in_range = (
        np.issubdtype(values.dtype, np.integer)
        and values.min(initial=0) >= 0
        and values.max(initial=0) < vocab
    )
    require(in_range, "a token", "out of range", f"a whole number from 0 to {vocab - 1}")
    return values.astype(np.int32)


def labels(config: ModelConfig, values, class_names: Sequence[str] = ()) -> Int[np.ndarray, " b"]:
    """Returns class ids as int32; `num_classes` means "no class".

    Args:
      values: ids or names, or one of them. A text is always a name, a number always an id.
      class_names: the model's class names, by id.
    Raises:
      UserError: the model has no transformer, an id is out of range, or a name is unknown.
    """
    classes = transformer(config).num_classes
    rows = [values] if isinstance(values, str) else values
    if isinstance(rows, Sequence | np.ndarray) and any(isinstance(row, str) for row in rows):
        values = [of_name(str(row), class_names) if isinstance(row, str) else row for row in rows]
    values = np.atleast_1d(np.asarray(values))
    require(
        values.ndim == 1 and np.issubdtype(values.dtype, np.integer),
        "labels",
        values.tolist(),
        "whole numbers",
    )
    for label in values:
        require(
            0 <= label <= classes, "label", label, f"from 0 to {classes - 1} ({classes}: no class)"
        )
    return values.astype(np.int32)


def keep_scales(config: TokenizerConfig, value: Any, *, least: int = 1) -> int:
    """Returns a number of leading scales that stay as they are, at most all but the last.

    Raises:
      UserError: it is not a whole number from `least` to the number of scales less one.
    """
    most = len(config.scales) - 1
    require(
        is_integer(value) and least <= value <= most,
        "keep_scales",
        value,
        f"a whole number from {least} to {most}, as there are {most + 1} scales",
    )
    return int(value)


def same_tokenizer(
    config: ModelConfig, params: dict[str, Any], then_config: ModelConfig, then_params: dict
):
    """Checks that another model can continue from this model's tokens.

    Raises:
      UserError: its classes or its tokenizer are not the same. Dtypes may differ.
    """
    num_classes = transformer(config).num_classes
    then_num_classes = transformer(then_config).num_classes
    require(
        then_num_classes == num_classes,
        "the number of classes of `then`",
        then_num_classes,
        f"that of the first model, {num_classes}",
    )
    dtypes = {"dtype": "", "param_dtype": "", "gradient_dtype": ""}
    different = differences(
        {**plain(config.tokenizer), **dtypes}, {**plain(then_config.tokenizer), **dtypes}
    )
    codes = jax.tree.leaves(params["tokenizer"]["quantize"])
    then_codes = jax.tree.leaves(then_params["tokenizer"]["quantize"])
    require(
        not different
        and all(a is b or np.array_equal(a, b) for a, b in zip(codes, then_codes, strict=True)),
        "the tokenizer of `then`",
        "another one",
        "the first model's, as it goes on with its tokens",
    )
