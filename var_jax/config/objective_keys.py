"""Which objectives use which keys of the transformer's section, and look-ups by objective.

A key that is not listed serves every objective.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from var_jax.config.strict import plain, require
from var_jax.config.transformer_config import TransformerConfig

Entry = TypeVar("Entry")

OVER_TOKENS = ("next_scale", "next_token", "masked")  # diffusion has AdaLN-zero, without a factor
USED_BY: dict[str, tuple[str, ...]] = {
    "class_conditioning": ("next_scale", "next_token"),
    "flip_share": ("next_scale",),
    "init_adaln": OVER_TOKENS,
    "init_adaln_gamma": OVER_TOKENS,
    "init_head": OVER_TOKENS,
    "key_bias": ("diffusion",),
    "latents": ("diffusion",),
    "learn_sigma": ("diffusion",),
    "mask": ("next_scale",),
    "order": ("next_token",),
    "patch": ("diffusion",),
    "pixel_channels": ("diffusion",),
    "prediction": ("diffusion",),
    "progressive": ("next_scale",),
    "progressive_from": ("next_scale",),
    "progressive_warmup": ("next_scale",),
    "scale_weights": ("next_scale",),
}


def unused(config: TransformerConfig) -> dict[str, Any]:
    """Returns {key: value} of keys that the objective ignores and that are not the default."""
    defaults = TransformerConfig()
    return {
        key: plain(getattr(config, key))
        for key, objectives in USED_BY.items()
        if config.objective not in objectives and getattr(config, key) != getattr(defaults, key)
    }


def entry_of(table: Mapping[str, Entry], objective: str) -> Entry:
    """Returns the objective's entry of a table that has one per objective.

    Raises:
      UserError: it has none, as this version does not know the objective.
    """
    choices = " or ".join(map(repr, table))
    require(objective in table, "transformer.objective", repr(objective), f"{choices}, as yet")
    return table[objective]
