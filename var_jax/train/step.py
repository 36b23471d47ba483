"""One training step and one evaluation step of either stage, as pure functions to be jitted."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from var_jax.models.tokenizer import Tokenizer
from var_jax.ops import partition
from var_jax.train import losses
from var_jax.train.config import TrainConfig
from var_jax.train.state import TrainState

Batch = Mapping[str, jax.Array]


def make_train_step(config: TrainConfig, optimizer: optax.GradientTransformation) -> Callable:
    """(state, batch, frozen) -> (state, metrics); `frozen` is the tokenizer's parameters, None in its own stage.

    Gradients are averaged over `config.microbatches` parts of the batch. Randomness is a function of the seed and
    the step alone, so that no key is stored.
    """

    def loss_fn(params, batch: Batch, frozen, rng):
        if config.stage == "tokenizer":
            return losses.tokenizer_loss(config, params, batch)
        return losses.transformer_loss(config, params, frozen, batch, rng)

    def train_step(state: TrainState, batch: Batch, frozen: Any) -> tuple[TrainState, losses.Metrics]:
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
        grads, metrics = _mean_gradients(functools.partial(_gradients, loss_fn, state.params, frozen), batch, rng,
                                         config.microbatches)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema and _average(state.ema, params, config.ema, state.step)
        metrics["grad_norm"] = optax.tree_utils.tree_norm(grads)
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return train_step


def make_eval_step(config: TrainConfig) -> Callable:
    """(params, batch, frozen) -> metrics of a held-out batch, without any dropout: sums over the rows that count, whose
    number is "images"."""

    def eval_step(params: Any, batch: Batch, frozen: Any) -> losses.Metrics:
        images = {"images": jnp.sum(batch["mask"])}
        if config.stage == "tokenizer":
            return images | losses.reconstruction_metrics(config, params, batch)
        return images | losses.held_out_metrics(config, params, frozen, batch)

    return eval_step


def make_encode(config: TrainConfig) -> Callable:
    """(frozen, images) -> tokens: the frozen tokenizer's part of the transformer's stage."""

    def encode(frozen: Any, images: jax.Array) -> jax.Array:
        signal = partition.constrain(losses.to_signal(images), "batch", None, None, None)
        return Tokenizer(config.tokenizer).apply({"params": frozen}, signal, method="encode")

    return encode


def _gradients(loss_fn, params, frozen, batch, rng):
    return jax.grad(loss_fn, has_aux=True)(params, batch, frozen, rng)


def _mean_gradients(gradients: Callable, batch: Batch, rng: jax.Array, parts: int):
    """Gradients and metrics averaged over equal parts of the batch, one part in memory at a time."""
    if parts == 1:
        return gradients(batch, rng)

    def split(x):  # strided, so that each part is spread over all devices as the batch is
        rows = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return partition.constrain(rows, None, "batch", *(None,) * (x.ndim - 1))

    def body(total, part):
        index, rows = part
        return jax.tree.map(jnp.add, total, gradients(rows, jax.random.fold_in(rng, index))), None

    stacked = jax.tree.map(split, dict(batch))
    shapes = jax.eval_shape(gradients, jax.tree.map(lambda x: x[0], stacked), rng)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(body, zeros, (jnp.arange(parts), stacked))
    return jax.tree.map(lambda x: x / parts, total)


def _average(ema: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """The running average, its decay warmed up so that early steps do not linger."""
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, p: (a * decay + p * (1 - decay)).astype(a.dtype), ema, params)
