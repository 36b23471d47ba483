"""Parameters that a run leaves as they are (`config.trainable`), with their gradients and moments.

Every function takes a mask, a tree of booleans that are true for what is trained; None, where
everything is, leaves programs and checkpoints as they are without the key.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from var_jax.config import key_patterns
from var_jax.errors import UserError, did_you_mean


def mask_of(patterns: str, params: Any) -> Any:
    """Returns true for the parameters that patterns choose, or None if they are "".

    Args:
      patterns: `config.trainable`.
      params: nested dicts of parameters, or of their shapes.
    Raises:
      UserError: a pattern chooses nothing.
    """
    if not patterns:
        return None
    paths = list(flatten_dict(params, sep="/"))
    for pattern in key_patterns.split(patterns):
        if not any(key_patterns.matches(pattern, path) for path in paths):
            raise UserError(
                f"trainable has {pattern!r}, which is none of the model's parameters"
                f"{did_you_mean(pattern, _names(paths, depth=pattern.count('/') + 1))}"
            )
    return unflatten_dict({path: key_patterns.matches(patterns, path) for path in paths}, sep="/")


def only_trained(
    optimizer: optax.GradientTransformation, patterns: str
) -> optax.GradientTransformation:
    """Returns an optimizer that has no state for parameters that stay as they are.

    It returns their gradients, which `zeros_elsewhere` has made zero, as their updates.
    """
    if not patterns:
        return optimizer
    return optax.masked(optimizer, functools.partial(mask_of, patterns))


def zeros_elsewhere(mask: Any, gradients: Any) -> Any:
    """Returns gradients that are zero for what is not trained.

    The compiler then leaves their computation out.
    """
    if mask is None:
        return gradients
    return jax.tree.map(lambda on, value: value if on else jnp.zeros_like(value), mask, gradients)


def with_others(mask: Any, updated: Any, before: Any) -> Any:
    """Returns the updated leaves where the mask is true, and else those from before, bit for bit.

    A running average of a constant would be off by its rounding.
    """
    if mask is None:
        return updated
    return jax.tree.map(lambda on, new, old: new if on else old, mask, updated, before)


def _names(paths: list[str], depth: int) -> set[str]:
    """Returns the names of parts, of as many levels as asked for, that hold these parameters."""
    return {"/".join(path.split("/")[:depth]) for path in paths}
