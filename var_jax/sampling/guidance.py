"""Classifier-free guidance, away from "no class" or from negative labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from var_jax.config.model import ModelConfig
from var_jax.config.strict import require
from var_jax.sampling import validate
from var_jax.sampling.settings import as_float_or_nan

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class NegativeLabels(NamedTuple):
    """Classes that guidance subtracts; the prediction subtracted is their weighted mean.

    Attributes:
      labels: n class ids for each image.
      weights: weights of the n predictions, which sum to 1.
    """

    labels: Int[Array, "b n"] | Int[np.ndarray, "b n"]
    weights: Float[Array, " n"] | Float[np.ndarray, " n"]


def resolve(
    config: ModelConfig, values: Any, class_names: Sequence[str], *, count: int, guided: bool
) -> NegativeLabels | None:
    """Returns the negative labels of a batch; None for None.

    Args:
      values: a class id or name for all images, a list with one for each image, or a mapping of
        several, for all images, to their weights, which need not sum to 1.
      class_names: the model's class names, by id.
      count: number of images.
      guided: whether the images are sampled with guidance at all.
    Raises:
      UserError: a class is none of the model's, a weight is not above 0, there are neither one nor
        `count` classes, or nothing is guided.
    """
    if values is None:
        return None
    require(guided, "negative_labels", values, "left out with a cfg of 0, as guidance uses them")
    if not isinstance(values, Mapping):
        labels = validate.labels(config, values, class_names)
        require(
            len(labels) in (1, count),
            "the number of negative_labels",
            len(labels),
            f"1, or that of the images, {count}",
        )
        return NegativeLabels(np.resize(labels, count)[:, None], np.ones(1, np.float32))

    require(len(values) > 0, "negative_labels", "empty", "None, or at least one class")
    for name, weight in values.items():
        valid = 0 < as_float_or_nan(weight) < math.inf
        require(valid, f"the weight of negative label {name}", weight, "a number above 0")
    labels = validate.labels(config, list(values), class_names)
    weights = np.array([float(weight) for weight in values.values()])
    weights = weights / weights.sum()
    return NegativeLabels(np.tile(labels, (count, 1)), weights.astype(np.float32))


def guided_rows(
    labels: Int[Array, " b"], num_classes: int, negative: NegativeLabels | None
) -> Int[Array, " rows"]:
    """Returns the labels of a guided batch: the given ones, then those to guide away from.

    They are "no class" for each image, or the first negative label of each, then the second, ...
    """
    if negative is None:
        return jnp.concatenate([labels, jnp.full_like(labels, num_classes)])
    return jnp.concatenate([labels, negative.labels.T.reshape(-1)])


def guide(
    predictions: Float[Array, "rows ..."],
    strength: Float[Array, ""] | float,
    negative: NegativeLabels | None = None,
) -> Float[Array, "b ..."]:
    """Returns predictions under classifier-free guidance.

    They are (1 + strength) * conditional - strength * unconditional, where negative labels take the
    place of the unconditional prediction if there are any.

    Args:
      predictions: logits, velocities or noise for the rows of `guided_rows`.
      strength: guidance strength; 0 for none.
    """
    if negative is None:
        conditional, away = jnp.split(predictions, 2)
    else:
        batch, count = negative.labels.shape
        conditional, others = predictions[:batch], predictions[batch:]
        others = others.reshape(count, batch, *predictions.shape[1:])
        away = jnp.tensordot(negative.weights, others, 1, precision="highest")
    return away_from(conditional, away, strength)


def away_from(
    conditional: Float[Array, "b ..."],
    away: Float[Array, "b ..."],
    strength: Float[Array, ...] | float,
) -> Float[Array, "b ..."]:
    """Returns (1 + strength) * conditional - strength * away, the formula of guidance."""
    return (1 + strength) * conditional - strength * away
