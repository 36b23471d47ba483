"""Learning rate and weight decay by step.

They are ours in place of optax's schedules, whose numbers become constants of the compiled step:
here they are its arguments, so that runs which differ in their rates, their lengths or their seeds
share one compiled program. The same formulas serve the step, in JAX, and the log, in numpy.

Source: VAR, appendix on training; Hägele et al. 2024, section 3 ("cooldown").
"""

import math
from types import ModuleType
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.sections import AdamWConfig

LIN0_CONSTANT = 0.05


@flax.struct.dataclass
class ScheduleNumbers:
    """The numbers of a network's schedules; each is a scalar of float32, or a Python number.

    Attributes:
      peak: the learning rate after the warm-up.
      warmup_from: the share of it at the first step.
      warmup_steps: number of steps of the warm-up.
      rest: number of steps from its end to the run's last step, at least 1.
      final_ratio: the share of the peak at the last step.
      cooldown_steps: length of a "cooldown".
      bend: the share of the steps after the warm-up at which "bent" bends.
      decay_first, decay_last: weight decay at the first and at the last step.
      decay_rest: number of steps between the two, at least 1.
    """

    peak: Any
    warmup_from: Any
    warmup_steps: Any
    rest: Any
    final_ratio: Any
    cooldown_steps: Any
    bend: Any
    decay_first: Any
    decay_last: Any
    decay_rest: Any


def numbers(config: AdamWConfig, steps: int, batch_size: int) -> ScheduleNumbers:
    """Returns the numbers of a network's schedules, as numpy scalars of float32.

    Args:
      steps: length of the whole run, at whose last step the schedules reach their final values.
      batch_size: images per step over all devices, which scales the learning rate.
    """
    return jax.tree.map(np.float32, _exact_numbers(config, steps, batch_size))


def _exact_numbers(config: AdamWConfig, steps: int, batch_size: int) -> ScheduleNumbers:
    return ScheduleNumbers(
        peak=config.base_lr * batch_size / 256,
        warmup_from=config.warmup_from,
        warmup_steps=config.warmup_steps,
        rest=max(steps - 1 - config.warmup_steps, 1),
        final_ratio=config.final_lr_ratio,
        cooldown_steps=config.cooldown_steps,
        bend=config.bend,
        decay_first=config.weight_decay,
        decay_last=config.final_weight_decay,
        decay_rest=max(steps - 1, 1),
    )


def learning_rate_on_host(config: AdamWConfig, steps: int, batch_size: int, done: int) -> float:
    """Returns the rate of the step that follows `done` steps, computed in numpy."""
    values = _exact_numbers(config, steps, batch_size)
    return float(rate_after(config.schedule, values, done, np))


def rate_after(schedule: str, n: ScheduleNumbers, done: Any, xp: ModuleType = jnp) -> Any:
    """Returns the learning rate of the step that follows `done` steps.

    These are 0 before the first step, and one less than the run's length before the last, which has
    the final rate.

    "cooldown" falls by 1 - sqrt(share of the cooldown that is over); until then it is the same for
    every length of the run, so that runs of several lengths can share their constant part.

    Args:
      xp: the module that computes, `jax.numpy` or `numpy`.
    """
    since = done - n.warmup_steps
    if schedule == "lin0":
        over = xp.clip((since - LIN0_CONSTANT * n.rest) / ((1 - LIN0_CONSTANT) * n.rest), 0, 1)
        factor = 1 - (1 - n.final_ratio) * over
    elif schedule == "cosine":
        factor = n.final_ratio + (1 - n.final_ratio) * _half_cosine(since / n.rest, xp)
    elif schedule == "cooldown":
        begun = since - (n.rest - n.cooldown_steps)
        over = xp.clip(begun / xp.maximum(n.cooldown_steps, 1), 0, 1) * (n.cooldown_steps > 0)
        factor = 1 - (1 - n.final_ratio) * xp.sqrt(over)
    elif schedule == "bent":
        straight = 1 - (1 - n.final_ratio) * n.bend
        shares, factors = (0.0, n.bend, 1.0), (1.0, (1 + straight) / 2, n.final_ratio)
        factor = xp.interp(since / n.rest, xp.asarray(shares), xp.asarray(factors))
    else:
        factor = 1.0
    warm = n.warmup_from + (1 - n.warmup_from) * done / xp.maximum(n.warmup_steps, 1)
    return n.peak * xp.where(done < n.warmup_steps, warm, factor)


def weight_decay_after(n: ScheduleNumbers, done: Any) -> Any:
    """Returns the weight decay of the step that follows `done` steps.

    It is half of a cosine from `decay_first` to `decay_last` at the last step.
    """
    first, last = n.decay_first, n.decay_last
    return last + (first - last) * _half_cosine(done / n.decay_rest, jnp)


def _half_cosine(share: Any, xp: ModuleType) -> Any:
    """Returns 1 at the share 0, and 0 from the share 1 on."""
    return (1 + xp.cos(math.pi * xp.clip(share, 0, 1))) / 2
