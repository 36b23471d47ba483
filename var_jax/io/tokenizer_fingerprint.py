"""The fingerprint of a tokenizer, by which token caches know whose tokens they hold."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from var_jax.config.model import DECODING, TokenizerConfig
from var_jax.config.strict import differences, plain

Tokenizer = tuple[TokenizerConfig, Mapping[str, Any]]  # its config and parameters

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

# Settings that are a part of `tokenizer_fingerprint`, whose values are kept, and change no token.
OF_GRADIENTS = ("gradient_dtype",)


def tokenizer_fingerprint(config: TokenizerConfig, params: Mapping[str, Any]) -> str:
    """Returns one fingerprint of all weights and settings of a tokenizer that tokens depend on.

    Settings at their default are left out, so that a setting that a later version adds does not
    change the fingerprints of earlier tokenizers.
    """
    return _digest(_settings(config, TRAINING_ONLY), params)


def encoding_fingerprint(config: TokenizerConfig, params: Mapping[str, Any]) -> str:
    """Returns one fingerprint of what makes a tokenizer's tokens and their codes.

    Tokenizers that differ in their decoders alone share it, and so each reads the other's tokens.
    """
    return _digest(_settings(config, TRAINING_ONLY + OF_GRADIENTS), _encoding(params))


def encoding_differences(here: Tokenizer, there: Tokenizer) -> list[str]:
    """Returns, in words, why two tokenizers' `encoding_fingerprint` differ; empty if they do not.

    Call it for the message that refuses one: it names settings, or else parts of the weights.
    """
    own, other = (_settings(config, TRAINING_ONLY + OF_GRADIENTS) for config, _ in (here, there))
    defaults = {key: _default(key) for key in own | other}
    if different := differences(defaults | own, defaults | other, "tokenizer"):
        return different
    parts = [_encoding(params) for _, params in (here, there)]
    return [
        f"other weights of the {name}"
        for name in sorted({*parts[0], *parts[1]})
        if len({_digest({}, {name: part[name]} if name in part else {}) for part in parts}) > 1
    ]


def _settings(config: TokenizerConfig, without: Sequence[str]) -> dict[str, Any]:
    """Returns the settings that are not at their default."""
    return {
        key: value
        for key, value in plain(config).items()
        if key not in without and value != _default(key)
    }


def _default(key: str) -> Any:
    return plain(next(f.default for f in dataclasses.fields(TokenizerConfig) if f.name == key))


def _encoding(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in params.items() if name not in DECODING}


def _digest(settings: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, leaf in sorted(flatten_dict(params, sep="/").items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
