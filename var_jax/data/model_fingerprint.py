"""Fingerprints of whole models, which sample sets, adapters and studies record."""

import dataclasses
import hashlib
from typing import NamedTuple

import jax
import numpy as np

from var_jax.config.model import ModelConfig, TransformerConfig
from var_jax.config.refiner_config import RefinerConfig
from var_jax.io.tokenizer_fingerprint import encoding_fingerprint, tokenizer_fingerprint

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
# Settings of a refiner that are hashed whatever their value; a later one counts off its default.
FIRST_OF_REFINER = ("depth", "width", "last_scale")
# Settings that change how a model is trained and not what it computes.
OF_TRAINING = (
    "progressive",
    "progressive_from",
    "progressive_warmup",
    "scale_weights",
    "flip_share",
)


class Fingerprints(NamedTuple):
    """Both fingerprints of a model.

    Attributes:
      model: of all weights and sizes (`model_fingerprint`).
      sampling: of all but the tokenizer's decoder, which makes no token: for what was trained on a
        model and does not depend on how its tokens are decoded.
    """

    model: str
    sampling: str


def model_fingerprint(config: ModelConfig, params: dict) -> str:
    """Returns one fingerprint of all weights and sizes of a model.

    Settings that only training uses are left out.
    """
    tokenizer = tokenizer_fingerprint(config.tokenizer, params["tokenizer"])
    return _digest(tokenizer, _beside_tokenizer(config, params))


def fingerprints(config: ModelConfig, params: dict) -> Fingerprints:
    """Returns both fingerprints of a model; the weights of the transformer are hashed once."""
    rest = _beside_tokenizer(config, params)
    tokenizer = config.tokenizer, params["tokenizer"]
    return Fingerprints(
        _digest(tokenizer_fingerprint(*tokenizer), rest),
        _digest(encoding_fingerprint(*tokenizer), rest),
    )


def _beside_tokenizer(config: ModelConfig, params: dict) -> list[str]:
    """Returns texts that identify the transformer and the refiner."""
    parts = [_without_training(config.transformer)]
    parts += [
        hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()
        for leaf in jax.tree.leaves([params.get("transformer"), params.get("refiner")])
    ]
    if config.refiner is not None:
        parts.append(_of_refiner(config.refiner))
    return parts


def _digest(tokenizer: str, rest: list[str]) -> str:
    return hashlib.sha256("\n".join([tokenizer, *rest]).encode()).hexdigest()[:16]


def _of_refiner(config: RefinerConfig) -> str:
    """Returns the text of a refiner's sizes: without its base, and later keys at defaults."""
    later = [
        field.name
        for field in dataclasses.fields(config)
        if field.name not in ("base", *FIRST_OF_REFINER)
        and getattr(config, field.name) != field.default
    ]
    values = (f"{name}={getattr(config, name)!r}" for name in (*FIRST_OF_REFINER, *later))
    return f"RefinerConfig(base='', {', '.join(values)})"


def _without_training(config: TransformerConfig | None) -> str:
    """Returns the repr of a transformer's config without keys that do not change its samples.

    It leaves out `OF_TRAINING`, and later keys at their defaults. Sample sets that were started
    before these keys existed can then still be continued.
    """
    if config is None:
        return repr(None)
    defaults = later_defaults(config)
    left_out = {*defaults, *OF_TRAINING}
    later = [field.name for field in _later_settings() if field.name not in left_out]
    sizes = [*FIRST_SETTINGS, *later]
    return f"TransformerConfig({', '.join(f'{name}={getattr(config, name)!r}' for name in sizes)})"


def later_defaults(config: TransformerConfig) -> frozenset[str]:
    """Returns the settings that earlier versions did not hash, where they are at their defaults."""
    return frozenset(
        field.name for field in _later_settings() if getattr(config, field.name) == field.default
    )


def _later_settings() -> list[dataclasses.Field]:
    return [
        field
        for field in dataclasses.fields(TransformerConfig)
        if field.name not in FIRST_SETTINGS and not field.name.startswith("progressive")
    ]
