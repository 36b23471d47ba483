"""One training step and one evaluation step of either stage, as pure functions to be jitted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from var_jax.config.train import TrainConfig
from var_jax.devices import sharding
from var_jax.models.tokenizer import Tokenizer
from var_jax.objectives import losses, tokenizer_step
from var_jax.objectives.critic import make_critic
from var_jax.objectives.frozen_networks import Networks
from var_jax.objectives.phase import Phase, last_phase
from var_jax.ops import codebook

if TYPE_CHECKING:
    from var_jax.train.optimizer import Optimizers
    from var_jax.train.state import TrainState

Batch = Mapping[str, jax.Array]
NONE = Networks()


def make_train_step(
    config: TrainConfig,
    optimizers: Optimizers,
    networks: Networks = NONE,
    phase: Phase | None = None,
) -> Callable:
    """(state, batch, frozen) -> (state, metrics).

    `frozen` is what is not trained: the tokenizer's parameters in the transformer's stage, those of
    `networks` in the tokenizer's own (None where there are none). Gradients are averaged over
    `config.microbatches` parts of the batch, of which each has its own adaptive weight. Randomness
    is a function of the seed and the step alone, so that no key is stored.
    """
    phase = last_phase(config) if phase is None else phase
    if config.stage == "tokenizer":
        return _tokenizer_step(config, optimizers, networks, phase)

    def train_step(
        state: TrainState, batch: Batch, frozen: Any
    ) -> tuple[TrainState, losses.Metrics]:
        def gradients(rows, rng):
            loss = functools.partial(losses.transformer_loss, config, phase=phase, step=state.step)
            return jax.grad(loss, has_aux=True)(state.params, frozen, rows, rng), None

        (grads, metrics), _ = _mean_gradients(
            gradients, batch, _rng(config, state), config.microbatches
        )
        return _update(config, optimizers.trained, state, grads, metrics)

    return train_step


def _tokenizer_step(
    config: TrainConfig, optimizers: Optimizers, networks: Networks, phase: Phase
) -> Callable:
    gradients_of = tokenizer_step.make_gradients(
        config, networks, make_critic(config, networks), phase
    )

    def train_step(
        state: TrainState, batch: Batch, frozen: Any
    ) -> tuple[TrainState, losses.Metrics]:
        found, vectors = _mean_gradients(
            functools.partial(gradients_of, state, frozen),
            batch,
            _rng(config, state),
            config.microbatches,
        )
        after, metrics = _update(config, optimizers.trained, state, found.params, found.metrics)
        if phase.adversarial:
            metrics["discriminator_grad_norm"] = optax.tree_utils.tree_norm(found.discriminator)
            after = after.replace(
                discriminator=tokenizer_step.update_discriminator(
                    config, optimizers.discriminator, state.discriminator, found
                )
            )
        if vectors is not None:
            after, metrics["revived"] = tokenizer_step.revive(config, after, found.counts, vectors)
        usage = {
            "code_usage": jnp.mean(found.counts > 0, axis=1),
            "perplexity": codebook.perplexity(found.counts),
        }
        return after, metrics | usage

    return train_step


def make_eval_step(config: TrainConfig, networks: Networks = NONE) -> Callable:
    """(params, batch, frozen) -> metrics of a held-out batch, without any dropout: sums over the
    rows that count, whose number is "images"."""

    def eval_step(params: Any, batch: Batch, frozen: Any) -> losses.Metrics:
        images = {"images": jnp.sum(batch["mask"])}
        if config.stage == "tokenizer":
            return images | losses.reconstruction_metrics(config, networks, params, frozen, batch)
        return images | losses.held_out_metrics(config, params, frozen, batch)

    return eval_step


def make_encode(config: TrainConfig) -> Callable:
    """(frozen, images) -> tokens: the frozen tokenizer's part of the transformer's stage."""

    def encode(frozen: Any, images: jax.Array) -> jax.Array:
        signal = sharding.constrain(losses.to_signal(images), "images", None, None, None)
        return Tokenizer(config.tokenizer).apply({"params": frozen}, signal, method="encode")

    return encode


def _rng(config: TrainConfig, state: TrainState) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), state.step)


def _update(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    grads: Any,
    metrics: losses.Metrics,
) -> tuple[TrainState, losses.Metrics]:
    """The trained stage and its running average after a step."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema and _average(state.ema, params, config.ema, state.step // config.ema_warmup)
    metrics = {**metrics, "grad_norm": optax.tree_utils.tree_norm(grads)}
    return state.replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state), metrics


def _mean_gradients(gradients: Callable, batch: Batch, rng: jax.Array, parts: int):
    """What `gradients` (rows, rng) gives, over equal parts of the batch of which one is in memory
    at a time: the mean of its first result, and all rows of its second."""
    if parts == 1:
        return gradients(batch, rng)

    def split(x):  # strided, so that each part is spread over all devices as the batch is
        rows = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return sharding.constrain(rows, None, "batch", *(None,) * (x.ndim - 1))

    def body(total, part):
        index, rows = part
        averaged, kept = gradients(rows, jax.random.fold_in(rng, index))
        return jax.tree.map(jnp.add, total, averaged), kept

    stacked = jax.tree.map(split, dict(batch))
    shapes, _ = jax.eval_shape(gradients, jax.tree.map(lambda x: x[0], stacked), rng)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, kept = jax.lax.scan(body, zeros, (jnp.arange(parts), stacked))
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kept)
    return jax.tree.map(lambda x: x / parts, total), rows


def _average(ema: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """The running average, its decay warmed up over `step` so that early steps do not linger."""
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, p: (a * decay + p * (1 - decay)).astype(a.dtype), ema, params)
