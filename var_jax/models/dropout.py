"""Class dropout and drop-path, drawn at random in a transformer's training."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from var_jax.config.model import TransformerConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PRNGKeyArray


class Dropped(NamedTuple):
    """The class labels after class dropout, and the residual branches that drop-path keeps.

    Attributes:
      labels: the class labels, some of them replaced by "no class".
      keep: drop-path's factor on each layer's two branches, by sample; None to keep all.
    """

    labels: Int[Array, " b"]
    keep: Float[Array, "layers 2 b"] | None


def drop(config: TransformerConfig, labels: Int[Array, " b"], rng: PRNGKeyArray | None) -> Dropped:
    """Returns the labels after class dropout, and the branches that drop-path keeps.

    Args:
      rng: None to drop nothing.
    """
    if rng is None:
        return Dropped(labels, None)
    batch = labels.shape[0]
    class_rng, path_rng = jax.random.split(rng)
    dropped = jax.random.bernoulli(class_rng, config.class_dropout, (batch,))
    labels = jnp.where(dropped, config.num_classes, labels)
    keep_rate = 1 - jnp.linspace(0, config.drop_path, config.depth)[:, None, None]
    keep = jax.random.bernoulli(path_rng, keep_rate, (config.depth, 2, batch)) / keep_rate
    return Dropped(labels, keep)
