"""The types of a training step: batches, states, gradients and variants."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct
import jax

from var_jax.config.sections import AdamWConfig

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
TRAINED = "params"  # the key of the trained model's optimizer


@flax.struct.dataclass
class TrainState:
    """The state that a training step updates and that a checkpoint holds.

    Attributes:
      step: number of steps done, int32.
      params: parameters of the trained model.
      ema: their running average, or None.
      opt_state: the state of the optax optimizer.
      spikes: the losses and gradient norms that steps are compared with (`train.spikes`); None in a
        run that skips no step.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    spikes: Any = flax.struct.field(default=None, kw_only=True)


class NoFrozen(NamedTuple):
    """The frozen weights of an objective that has none."""


class OptimizerSpec(NamedTuple):
    """How one network of an objective is optimized.

    Attributes:
      first_step: steps of the run before the network's first one, where its schedules begin.
      not_decayed: names of parameters that weight decay leaves alone, besides those that it always
        does.
    """

    config: AdamWConfig
    first_step: int = 0
    not_decayed: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class StepVariant:
    """The parts of a step that change during a run; by default nothing changes.

    It is a function of the step's number alone. Each variant is compiled on first use.
    """


class Gradients(NamedTuple):
    """Gradients of the parameters, and metrics, as means over a batch."""

    params: Any
    metrics: Metrics
