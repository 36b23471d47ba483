"""AdamW with the published schedules and weight-decay mask, made of optax's parts.

Source: VAR, appendix on training.
"""

import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from var_jax.config.sections import AdamWConfig
from var_jax.config.train import TrainConfig
from var_jax.objectives.base import Objective
from var_jax.objectives.step_types import TRAINED, OptimizerSpec
from var_jax.train import trainable

LIN0_CONSTANT = 0.05

# Neither biases nor 1-D, and still not decayed: position embeddings, AdaLN's offsets, the scale of
# QK-norm, and LayerNorm's own scales and shifts.
NOT_DECAYED = {
    "pos_embed",
    "level_embed",
    "pos_start",
    "ada_offset",
    "log_scale",
    "norms",
    "head_norm",
}


def make_optimizers(objective: Objective[Any]) -> dict[str, optax.GradientTransformation]:
    """Returns an objective's optimizers, by the name of the state's field for their network."""
    config = objective.config
    optimizers = {
        name: make_optimizer(spec.config, _steps(config, spec), config.batch_size, spec.not_decayed)
        for name, spec in objective.optimizers().items()
    }
    return {
        **optimizers,
        TRAINED: trainable.only_trained(optimizers[TRAINED], config.trainable),
    }


def _steps(config: TrainConfig, spec: OptimizerSpec) -> int:
    """Returns a network's number of training steps, at least one, which its schedules span."""
    return max(config.steps - spec.first_step, 1)


def learning_rates(objective: Objective[Any]) -> Callable[..., dict[str, float]]:
    """Returns a function from the number of steps done to the rates of the next step.

    They are "lr", and "NETWORK_lr" for each further network that learns by then, unless spikes are
    skipped: those of them that came before a network's first step are not counted. The figures for
    the log are computed on the host: outside a compiled step, optax's schedules are a dozen small
    programs, which are compiled, run on the devices, and waited for.

    The function's second argument is how many of the steps were skipped (`train.spikes`), for which
    the schedules wait.
    """
    config, specs = objective.config, objective.optimizers()

    def rates(done: int, skipped: int = 0) -> dict[str, float]:
        return {
            "lr" if name == TRAINED else f"{name}_lr": learning_rate_on_host(
                spec.config,
                _steps(config, spec),
                config.batch_size,
                max(done - spec.first_step - skipped, 0),
            )
            for name, spec in specs.items()
            if done >= spec.first_step and (name == TRAINED or not config.optimizer.skip_spikes)
        }

    return rates


def make_optimizer(
    config: AdamWConfig, steps: int, batch_size: int, not_decayed: Collection[str] = ()
) -> optax.GradientTransformation:
    """Returns AdamW: clipping by global norm, Adam, and decoupled weight decay.

    The learning rate multiplies the weight decay.

    Args:
      steps: length of the whole run, at whose last step the schedules reach their final values.
      batch_size: images per step over all devices, which scales the learning rate.
      not_decayed: names of further parameters without weight decay.
    """
    mask = functools.partial(decay_mask, not_decayed=not_decayed)
    parts = [
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(weight_decay(config, steps), mask=mask),
        optax.scale_by_learning_rate(learning_rate(config, steps, batch_size)),
    ]
    return optax.chain(*([optax.clip_by_global_norm(config.clip)] if config.clip else []), *parts)


def learning_rate(config: AdamWConfig, steps: int, batch_size: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of steps done.

    That number is 0 before the first step, and `steps` - 1 before the last, which has the final
    rate.

    "cooldown" falls by 1 - sqrt(share of the cooldown that is over) (Hägele et al. 2024, section
    3); until then it is the same for every `steps`, so that runs of several lengths can share their
    constant part.
    """
    peak = config.base_lr * batch_size / 256
    rest = max(steps - 1 - config.warmup_steps, 1)
    after = {
        "lin0": optax.linear_schedule(
            peak,
            peak * config.final_lr_ratio,
            transition_steps=(1 - LIN0_CONSTANT) * rest,
            transition_begin=LIN0_CONSTANT * rest,
        ),
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=config.final_lr_ratio),
        "constant": optax.constant_schedule(peak),
        "cooldown": _cooldown(peak, config.final_lr_ratio, rest, config.cooldown_steps),
        "bent": lambda step: peak * jnp.interp(step / rest, *map(jnp.asarray, _bent(config))),
    }[config.schedule]
    if not config.warmup_steps:
        return after
    warmup = optax.linear_schedule(peak * config.warmup_from, peak, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def learning_rate_on_host(config: AdamWConfig, steps: int, batch_size: int, done: int) -> float:
    """Returns the value of `learning_rate` after `done` steps, computed in numpy."""
    peak = config.base_lr * batch_size / 256
    warmup, final = config.warmup_steps, config.final_lr_ratio
    if done < warmup:
        return float(peak * (config.warmup_from + (1 - config.warmup_from) * done / warmup))
    done, rest = done - warmup, max(steps - 1 - warmup, 1)
    if config.schedule == "lin0":
        over = np.clip((done - LIN0_CONSTANT * rest) / ((1 - LIN0_CONSTANT) * rest), 0, 1)
        factor = 1 - (1 - final) * over
    elif config.schedule == "cosine":
        factor = final + (1 - final) * (1 + np.cos(np.pi * min(done / rest, 1))) / 2
    elif config.schedule == "cooldown" and config.cooldown_steps:
        over = np.clip((done - (rest - config.cooldown_steps)) / config.cooldown_steps, 0, 1)
        factor = 1 - (1 - final) * np.sqrt(over)
    elif config.schedule == "bent":
        factor = np.interp(done / rest, *_bent(config))
    else:
        factor = 1.0
    return float(peak * factor)


def _bent(config: AdamWConfig) -> tuple[list[float], list[float]]:
    """Returns shares of the steps after the warm-up, and the factors on the rate there."""
    straight = 1 - (1 - config.final_lr_ratio) * config.bend
    return [0.0, config.bend, 1.0], [1.0, (1 + straight) / 2, config.final_lr_ratio]


def _cooldown(peak: float, final_ratio: float, last: int, length: int) -> optax.Schedule:
    """Returns `peak` until `length` steps before step `last`, which has `final_ratio` of it."""

    def rate(step):
        over = jnp.clip((step - (last - length)) / max(length, 1), 0.0, 1.0) if length else 0.0
        return peak * (1 - (1 - final_ratio) * jnp.sqrt(over))

    return rate


def weight_decay(config: AdamWConfig, steps: int) -> optax.Schedule:
    """Returns the decay: a cosine from `weight_decay` to `final_weight_decay` at the last step."""
    final = config.final_weight_decay
    cosine = optax.cosine_decay_schedule(config.weight_decay - final, max(steps - 1, 1))
    return lambda step: final + cosine(step)


def decay_mask(params: Any, not_decayed: Collection[str] = ()) -> Any:
    """Returns True for weights that decay.

    They are matrices, convolutions, the codebook and the class embedding.

    Args:
      params: nested dicts of parameters (or their gradients); under "blocks" they have a leading
        axis of layers.
      not_decayed: names of further parameters that do not decay.
    """

    def decayed(path, leaf) -> bool:
        names = [entry.key for entry in path]
        rank = leaf.ndim - ("blocks" in names)
        return (
            rank > 1
            and not names[-1].endswith("bias")
            and names[-1] not in {*NOT_DECAYED, *not_decayed}
        )

    return jax.tree_util.tree_map_with_path(decayed, params)
