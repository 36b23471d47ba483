"""Cross-entropy and accuracy of predicted tokens, over all of them and per scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax

from var_jax.config.model import TransformerConfig
from var_jax.config.scales import Scales
from var_jax.objectives.step_types import Metrics
from var_jax.ops.argmax import argmax

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

# Held-out metrics with class dropout, and the metrics that they are computed from.
WITH_CLASS_DROPOUT = {
    "loss_with_class_dropout": "loss_mean",
    "loss_last_with_class_dropout": "loss_last",
    "accuracy_with_class_dropout": "accuracy_mean",
    "accuracy_last_with_class_dropout": "accuracy_last",
}


def cross_entropy(
    logits: Float[Array, "b L v"], tokens: Int[Array, "b L"], smoothing: float = 0.0
) -> Float[Array, "b L"]:
    """Returns -log softmax(logits)[token], or the same against the smoothed target.

    Ours because optax picks the token's logit by a gather, whose operand XLA writes to memory: of a
    bfloat16 head that would be the one float32 copy of the logits. A masked sum is fused with the
    conversion, and needs no communication when the vocabulary is sharded.

    Args:
      smoothing: share of the target that is spread evenly over the vocabulary.
    """
    if not smoothing:
        shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        is_token = tokens[..., None] == jnp.arange(logits.shape[-1])
        token_logits = jnp.sum(jnp.where(is_token, shifted, 0), axis=-1)
        return jnp.log(jnp.sum(jnp.exp(shifted), axis=-1)) - token_logits
    targets = optax.smooth_labels(jax.nn.one_hot(tokens, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def token_metrics(
    scales: Scales,
    logits: Float[Array, "b L v"],
    tokens: Int[Array, "b L"],
    weights: Float[Array, " b"] | None = None,
) -> Metrics:
    """Returns cross-entropy and accuracy (0 to 1) over all tokens, the last scale and each scale.

    There is no label smoothing in them.

    Args:
      weights: weights of the rows in sums; by default the metrics are means over the rows.
    """
    weights = jnp.full(tokens.shape[0], 1 / tokens.shape[0]) if weights is None else weights
    losses = weights @ cross_entropy(logits, tokens)
    hits = weights @ (argmax(logits) == tokens).astype(jnp.float32)
    loss_by_scale = [jnp.mean(losses[scales.span(k)]) for k in range(len(scales))]
    return {
        "loss_mean": jnp.mean(losses),
        "loss_last": loss_by_scale[-1],
        "loss_scale": jnp.stack(loss_by_scale),
        "accuracy_mean": jnp.mean(hits),
        "accuracy_last": jnp.mean(hits[scales.span(len(scales) - 1)]),
    }


def held_out(
    measure: Callable[[Int[Array, " b"]], Metrics],
    labels: Int[Array, " b"],
    config: TransformerConfig,
) -> Metrics:
    """Returns the held-out metrics of labeled images, and the same under class dropout.

    Metrics whose names end in "_with_class_dropout" are averages over labels that are dropped as in
    training.

    Args:
      measure: returns the metrics with some labels.
    """
    labeled = measure(labels)
    if not config.class_dropout:
        return labeled
    unlabeled = measure(jnp.full_like(labels, config.num_classes))
    return labeled | with_class_dropout(labeled, unlabeled, config.class_dropout)


def with_class_dropout(labeled: Metrics, unlabeled: Metrics, dropout: float) -> Metrics:
    """Returns the averages of some metrics when labels are dropped as in training.

    The published code drops them in its validation too: compare these with its logs.

    Args:
      labeled: metrics with every label.
      unlabeled: metrics with "no class" in place of every label.
      dropout: share of labels that are dropped.
    """
    return {
        name: (1 - dropout) * labeled[source] + dropout * unlabeled[source]
        for name, source in WITH_CLASS_DROPOUT.items()
    }
