"""The losses of both stages: parameters and a batch in, one number and its parts out.

A batch's images are uint8 and its tokens int32; `mask` (evaluation only) marks the rows that count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from var_jax.config.scales import Scales
from var_jax.config.train import LossConfig, TrainConfig
from var_jax.devices import sharding
from var_jax.models.tokenizer import Tokenizer
from var_jax.models.transformer import Transformer
from var_jax.objectives.frozen_networks import Networks
from var_jax.objectives.phase import Phase
from var_jax.ops import vq

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, UInt8

Metrics = dict[str, jax.Array]
ALL_SCALES = Phase()
LEAST_NEWEST = 0.01  # the least share of its weight that a scale begins with
# Held-out metrics with class dropout, and those without it that they are made of.
WITH_CLASS_DROPOUT = {
    "loss_with_class_dropout": "loss_mean",
    "loss_last_with_class_dropout": "loss_last",
    "accuracy_with_class_dropout": "accuracy_mean",
    "accuracy_last_with_class_dropout": "accuracy_last",
}


def to_signal(images: UInt8[Array, "b H W c"]) -> Float[Array, "b H W c"]:
    """uint8 pixels to [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def image_terms(
    config: TrainConfig,
    networks: Networks,
    frozen: Any,
    rec: Float[Array, "b H W c"],
    images: Float[Array, "b H W c"],
) -> dict[str, Float[Array, " b"]]:
    """How far reconstructions are from their images, an image: l1 and l2 (means over pixels), and
    the perceptual distance where the run has one.

    Args:
      frozen: weights of the run's frozen networks.
    """
    terms = {
        "l1": jnp.mean(jnp.abs(rec - images), axis=(1, 2, 3)),
        "l2": jnp.mean((rec - images) ** 2, axis=(1, 2, 3)),
    }
    if networks.perceptual is not None:
        terms["perceptual"] = networks.perceptual.distance(frozen["perceptual"], rec, images)
    return terms


def weighted(weights: LossConfig, terms: Mapping[str, jax.Array]) -> jax.Array:
    """The sum of terms by their weights in the config."""
    return sum((getattr(weights, name) * value for name, value in terms.items()), jnp.zeros(()))


def transformer_loss(
    config: TrainConfig,
    params: Any,
    frozen: Any,
    batch: Mapping[str, jax.Array],
    rng: jax.Array | None,
    phase: Phase = ALL_SCALES,
    step: jax.Array | int = 0,
) -> tuple[jax.Array, Metrics]:
    """Mean cross-entropy over the tokens of all scales; class dropout and drop-path act when `rng`
    is given.

    In progressive training only the first scales are computed. Each of their tokens has the weight
    that it has in the mean over all, and those of the scale that was added last have a growing
    share of it.

    Args:
      frozen: the tokenizer's parameters; only its quantizer's are used.
      step: steps done before this one.
    """
    tokens, scales = batch["tokens"], config.tokenizer.scales
    inputs = Tokenizer(config.tokenizer).apply({"params": frozen}, tokens, method="teacher_input")
    if phase.first is not None:
        scales = phase.present(config)
        tokens, inputs = tokens[:, : scales.total], inputs[:, : scales.total - scales.lengths[0]]
    logits = Transformer(config.transformer).apply({"params": params}, inputs, batch["label"], rng)
    losses = cross_entropy(logits, tokens, config.loss.label_smoothing)
    if phase.first is None:
        loss = jnp.mean(losses)
    else:
        newest = 1.0
        if phase.since is not None:
            warmup = max(config.steps_of(config.transformer.progressive_warmup), 1)
            newest = jnp.clip((step - phase.since + 1) / warmup, LEAST_NEWEST, 1.0)
        weights = (
            jnp.where(scales.level_ids == phase.first - 1, newest, 1.0)
            / config.tokenizer.scales.total
        )
        loss = jnp.mean(losses @ weights)
    metrics = token_metrics(scales, logits, tokens)
    if phase.first is not None:  # the last scale of these is not the last
        metrics = {name: value for name, value in metrics.items() if not name.endswith("_last")}
    return loss, {"loss": loss, **metrics}


def cross_entropy(
    logits: Float[Array, "b L v"], tokens: Int[Array, "b L"], smoothing: float = 0.0
) -> Float[Array, "b L"]:
    """-log softmax(logits)[token], or with label smoothing against the smoothed target.

    Ours because optax picks the token's logit by a gather, whose operand XLA writes to memory: of a
    bfloat16 head that would be the one float32 copy of the logits. A masked sum is fused with the
    conversion, and needs no communication when the vocabulary is sharded.
    """
    if not smoothing:
        shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        chosen = jnp.sum(
            jnp.where(tokens[..., None] == jnp.arange(logits.shape[-1]), shifted, 0), axis=-1
        )
        return jnp.log(jnp.sum(jnp.exp(shifted), axis=-1)) - chosen
    targets = optax.smooth_labels(jax.nn.one_hot(tokens, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def held_out_metrics(
    config: TrainConfig, params: Any, frozen: Any, batch: Mapping[str, jax.Array]
) -> Metrics:
    """A transformer's `token_metrics` of one held-out batch, without dropout, summed over the rows
    that count.

    Those that end in "_with_class_dropout" are what they come to on average when labels are dropped
    as in training,
    which the published code does in its validation too: what to compare with its logs.
    """
    tokens, weights = batch["tokens"], batch["mask"].astype(jnp.float32)
    inputs = Tokenizer(config.tokenizer).apply({"params": frozen}, tokens, method="teacher_input")

    def measured(labels):
        logits = Transformer(config.transformer).apply({"params": params}, inputs, labels)
        return token_metrics(config.tokenizer.scales, logits, tokens, weights)

    found, dropped = measured(batch["label"]), config.transformer.class_dropout
    if not dropped:
        return found
    unlabeled = measured(jnp.full_like(batch["label"], config.transformer.num_classes))
    mixed = {
        name: (1 - dropped) * found[of] + dropped * unlabeled[of]
        for name, of in WITH_CLASS_DROPOUT.items()
    }
    return {**found, **mixed}


def token_metrics(
    scales: Scales,
    logits: Float[Array, "b L v"],
    tokens: Int[Array, "b L"],
    weights: Float[Array, " b"] | None = None,
) -> Metrics:
    """Cross-entropy and accuracy (shares, 0 to 1) over all tokens, over the last scale, and a
    scale; no smoothing.

    A weighted sum over rows, or their mean.
    """
    weights = jnp.full(tokens.shape[0], 1 / tokens.shape[0]) if weights is None else weights
    losses = weights @ cross_entropy(logits, tokens)
    hits = weights @ (jnp.argmax(logits, axis=-1) == tokens).astype(jnp.float32)
    by_scale = [jnp.mean(losses[scales.span(k)]) for k in range(len(scales))]
    return {
        "loss_mean": jnp.mean(losses),
        "loss_last": by_scale[-1],
        "loss_scale": jnp.stack(by_scale),
        "accuracy_mean": jnp.mean(hits),
        "accuracy_last": jnp.mean(hits[scales.span(len(scales) - 1)]),
    }


def reconstruction_metrics(
    config: TrainConfig,
    networks: Networks,
    params: Any,
    frozen: Any,
    batch: Mapping[str, jax.Array],
) -> Metrics:
    """A tokenizer's sums over the rows of one held-out batch that count; adversarial terms have no
    place in them.

    `psnr` is in dB with a peak of 1 for pixels in [0, 1], of the clamped reconstruction, summed
    over images.
    """
    c = config.tokenizer
    images = sharding.constrain(to_signal(batch["image"]), "images", None, None, None)
    weights = batch["mask"].astype(jnp.float32)
    model = Tokenizer(c)
    feature = model.apply({"params": params}, images, method="features")
    tokens, totals = vq.encode(model.apply({"params": params}, method="quantizer"), feature)
    rec = model.apply({"params": params}, totals[-1], method="decode_feature")
    by_image = image_terms(config, networks, frozen, rec, images)
    by_image["vq"] = jax.vmap(lambda f, t: vq.vq_loss(f, t, c.vq_beta))(feature, totals)
    by_image["loss"] = weighted(config.loss, by_image)
    by_image["psnr"] = -10 * jnp.log10(jnp.maximum(by_image["l2"] / 4, 1e-10))
    sums = {name: jnp.sum(weights * value) for name, value in by_image.items()}
    return {
        **sums,
        "code_counts": vq.code_counts(c.scales, tokens, c.vocab_size, batch["mask"][:, None]),
    }
