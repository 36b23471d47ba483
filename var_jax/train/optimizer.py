"""AdamW with the published weight-decay mask, made of optax's parts.

Source: VAR, appendix on training. `schedules` has the learning rate and the weight decay by step.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from var_jax.config.sections import AdamWConfig
from var_jax.config.train import TrainConfig
from var_jax.objectives.base import Objective
from var_jax.objectives.step_types import TRAINED, OptimizerSpec
from var_jax.train import schedules, trainable
from var_jax.train.schedules import ScheduleNumbers

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


def make_optimizers(
    objective: Objective[Any], numbers: Mapping[str, ScheduleNumbers] | None = None
) -> dict[str, optax.GradientTransformation]:
    """Returns an objective's optimizers, by the name of the state's field for their network.

    Args:
      numbers: those of `numbers_of`, which may be arguments of a compiled step.
    """
    config, numbers = objective.config, numbers or numbers_of(objective)
    optimizers = {
        name: make_optimizer(spec.config, numbers[name], spec.not_decayed)
        for name, spec in objective.optimizers().items()
    }
    return {
        **optimizers,
        TRAINED: trainable.only_trained(optimizers[TRAINED], config.trainable),
    }


def numbers_of(objective: Objective[Any]) -> dict[str, ScheduleNumbers]:
    """Returns the numbers of each network's schedules, by its name as in `make_optimizers`."""
    config = objective.config
    return {
        name: schedules.numbers(spec.config, _steps(config, spec), config.batch_size)
        for name, spec in objective.optimizers().items()
    }


def _steps(config: TrainConfig, spec: OptimizerSpec) -> int:
    """Returns a network's number of training steps, at least one, which its schedules span."""
    return max(config.steps - spec.first_step, 1)


def learning_rates(objective: Objective[Any]) -> Callable[..., dict[str, float]]:
    """Returns a function from the number of steps done to the rates of the next step.

    They are "lr", and "NETWORK_lr" for each further network that learns by then, unless spikes are
    skipped: those of them that came before a network's first step are not counted. The figures for
    the log are computed on the host: outside a compiled step, a schedule is a dozen small programs,
    which are compiled, run on the devices, and waited for.

    The function's second argument is how many of the steps were skipped (`train.spikes`), for which
    the schedules wait.
    """
    config, specs = objective.config, objective.optimizers()

    def rates(done: int, skipped: int = 0) -> dict[str, float]:
        return {
            "lr" if name == TRAINED else f"{name}_lr": schedules.learning_rate_on_host(
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
    config: AdamWConfig, numbers: ScheduleNumbers, not_decayed: Collection[str] = ()
) -> optax.GradientTransformation:
    """Returns AdamW: clipping by global norm, Adam, and decoupled weight decay.

    The learning rate multiplies the weight decay.

    Args:
      numbers: those of the schedules of learning rate and weight decay.
      not_decayed: names of further parameters without weight decay.
    """
    mask = functools.partial(decay_mask, not_decayed=not_decayed)
    decay = functools.partial(schedules.weight_decay_after, numbers)
    rate = functools.partial(schedules.rate_after, config.schedule, numbers)
    parts = [
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(decay, mask=mask),
        optax.scale_by_learning_rate(rate),
    ]
    return optax.chain(*([clip_by_global_norm(config.clip)] if config.clip else []), *parts)


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """Returns a transformation that scales gradients down to a global norm of at most `largest`.

    In optax.clip_by_global_norm each gradient is divided by the norm. The CPU compiler repeats no
    division, and writes all divided gradients for Adam's two moments to read; a product with one
    factor becomes a part of their own passes. The state is the same, and values are up to rounding.
    """

    def update(updates, state, params=None):
        del params
        factor = jnp.minimum(1.0, largest / optax.global_norm(updates))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


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
