"""A compiled training step that runs share: the numbers in which they differ are its arguments.

JAX's persistent cache finds a program by its text, in which a learning rate or a seed would be a
constant. So the runs of a sweep, which differ in just these, compile one program instead of one
each.
"""

from __future__ import annotations

import functools
from typing import Any, Generic

import flax.struct
import jax
from jax.sharding import NamedSharding

from var_jax.devices import sharding
from var_jax.objectives.base import Frozen
from var_jax.objectives.step_types import Batch
from var_jax.train.schedules import ScheduleNumbers


@flax.struct.dataclass
class RunNumbers:
    """The numbers in which runs of one program differ.

    Attributes:
      seed: the run's seed.
      schedules: the numbers of the schedules, by the name of the network.
    """

    seed: Any
    schedules: dict[str, ScheduleNumbers]


class SharedStep(Generic[Frozen]):
    """A run's step (state, batch, frozen) -> (state, metrics) over a program that runs share.

    Args:
      jitted: the jitted function of state, batch, frozen weights and `RunNumbers`.
      numbers: those of the run.
      replicated: the sharding of numbers.
    """

    def __init__(self, jitted: Any, numbers: RunNumbers, replicated: NamedSharding):
        self._jitted, self._numbers, self._replicated = jitted, numbers, replicated

    def __call__(self, state: Any, batch: Batch, frozen: Frozen) -> Any:
        return self._jitted(state, batch, frozen, self.placed_numbers)

    def lower(self, state: Any, batch: Batch, frozen: Frozen) -> jax.stages.Lowered:
        """Returns the lowered program, for arguments or their shapes.

        Compiled, it takes `placed_numbers` as a fourth argument.
        """
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._replicated),
            self._numbers,
        )
        return self._jitted.lower(state, batch, frozen, shapes)

    @functools.cached_property
    def placed_numbers(self) -> RunNumbers:
        """The run's numbers on the devices, where they stay."""
        replicated = jax.tree.map(lambda _: self._replicated, self._numbers)
        return sharding.place(self._numbers, replicated)
