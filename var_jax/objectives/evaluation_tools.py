"""The methods of an evaluation that objectives use for their pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
from jax.sharding import NamedSharding

from var_jax.objectives.step_types import Batch


class EvaluationTools(Protocol):
    """The methods of an evaluation that `Objective.picture` uses.

    Attributes:
      replicated: the sharding of an array that every host can read.
    """

    replicated: NamedSharding

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the data's classes, by label."""
        ...

    def first_batch(self) -> Batch:
        """Returns the first held-out batch, sharded over the devices."""
        ...

    def compiled(self, name: str, lower: Callable[[], jax.stages.Lowered]) -> jax.stages.Compiled:
        """Returns the compiled program kept under `name`, which is made from `lower` on first use.

        Later calls with the same name ignore `lower`.
        """
        ...

    def gather(self, tree: Any) -> Any:
        """Returns a tree of device arrays as numpy arrays, complete on every host."""
        ...
