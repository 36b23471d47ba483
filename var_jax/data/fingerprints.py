"""Fingerprints of tokenizers and models, which token caches and sample sets record."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from var_jax.config.model import ModelConfig, TokenizerConfig, TransformerConfig
from var_jax.config.strict import plain

# Settings of the transformer that are hashed whatever their value, in this order, as they were
# before there were others; a later setting counts where it is not at its default.
FIRST_SETTINGS = (
    "depth",
    "width",
    "heads",
    "num_classes",
    "vocab_size",
    "z_channels",
    "scales",
    "mlp_ratio",
    "shared_adaln",
    "qk_norm",
    "drop_path",
    "class_dropout",
    "init_std",
    "init_head",
    "init_adaln",
    "init_adaln_gamma",
    "mask",
    "attention",
    "remat",
    "dtype",
    "param_dtype",
    "gradient_dtype",
)
# Settings of the tokenizer that change no token.
TRAINING_ONLY = (
    "vq_beta",
    "init_codes",
    "init_gain",
    "dropout",
    "quantizer_dropout",
    "quantizer_dropout_from",
    "remat",
)


def tokenizer_fingerprint(config: TokenizerConfig, params: Mapping[str, Any]) -> str:
    """Returns one fingerprint of all weights and settings of a tokenizer that tokens depend on.

    Settings at their default are left out, so that a setting that a later version adds does not
    change the fingerprints of earlier tokenizers.
    """
    defaults = {field.name: plain(field.default) for field in dataclasses.fields(TokenizerConfig)}
    settings = {
        key: value
        for key, value in plain(config).items()
        if key not in TRAINING_ONLY and value != defaults[key]
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, leaf in sorted(flatten_dict(params, sep="/").items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def model_fingerprint(config: ModelConfig, params: dict) -> str:
    """Returns one fingerprint of all weights and sizes of a model.

    Settings that only training uses are left out.
    """
    parts = [
        tokenizer_fingerprint(config.tokenizer, params["tokenizer"]),
        _without_training(config.transformer),
    ]
    parts += [
        hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()
        for leaf in jax.tree.leaves(params.get("transformer"))
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _without_training(config: TransformerConfig | None) -> str:
    """Returns the repr of a transformer's config without keys that do not change its samples.

    It leaves out the keys of progressive training, and later keys at their defaults. Sample sets
    that were started before these keys existed can then still be continued.
    """
    if config is None:
        return repr(None)
    defaults = later_defaults(config)
    later = [field.name for field in _later_settings() if field.name not in defaults]
    sizes = [*FIRST_SETTINGS, *later]
    return f"TransformerConfig({', '.join(f'{name}={getattr(config, name)!r}' for name in sizes)})"


def later_defaults(config: TransformerConfig) -> frozenset[str]:
    """Returns the settings for rivals of next-scale prediction that are at their defaults.

    The configs that earlier versions hashed had no such settings.
    """
    return frozenset(
        field.name for field in _later_settings() if getattr(config, field.name) == field.default
    )


def _later_settings() -> list[dataclasses.Field]:
    return [
        field
        for field in dataclasses.fields(TransformerConfig)
        if field.name not in FIRST_SETTINGS and not field.name.startswith("progressive")
    ]
