"""The fingerprint of a tokenizer, by which token caches know whose tokens they hold."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from var_jax.config.model import DECODING, TokenizerConfig
from var_jax.config.strict import plain

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


def encoding_fingerprint(config: TokenizerConfig, params: Mapping[str, Any]) -> str:
    """Returns one fingerprint of what makes a tokenizer's tokens and their codes.

    Tokenizers that differ in their decoders alone share it, and so each reads the other's tokens.
    """
    encoding = {name: part for name, part in params.items() if name not in DECODING}
    return tokenizer_fingerprint(config, encoding)
