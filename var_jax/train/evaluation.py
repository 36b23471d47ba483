"""Held-out metrics and sample pictures during training."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Generic

import jax
import numpy as np
from jax.sharding import NamedSharding
from PIL import Image

from var_jax.devices import cpu_compiler
from var_jax.devices.preemption import Preemption
from var_jax.objectives.base import Frozen, Objective
from var_jax.objectives.step_types import Batch
from var_jax.train import step
from var_jax.train.batches import Inputs


class Evaluator(Generic[Frozen]):
    """Evaluates a run on its held-out split: metrics, and a picture.

    It is also the `EvaluationTools` that `Objective.picture` is given.

    Args:
      objective: the run's objective.
      frozen: the frozen weights that the steps use, on the devices.
      data: the run's data.
      replicated: the sharding of results, which every host can read.
      preemption: ends every method with `StopRequested` when a host is asked to stop: between
        batches, and while a program is compiled. None if the process cannot be asked to stop.
    """

    def __init__(
        self,
        objective: Objective[Frozen],
        frozen: Frozen,
        data: Inputs,
        replicated: NamedSharding,
        preemption: Preemption | None = None,
    ):
        self.replicated = replicated
        self._objective, self._frozen, self._data = objective, frozen, data
        self._preemption = preemption
        self._programs: dict[str, jax.stages.Compiled] = {}
        self._step = jax.jit(step.make_eval_step(objective), out_shardings=replicated)
        self._gather = jax.jit(lambda x: x, out_shardings=replicated)

    def metrics(self, params: Any) -> dict[str, Any]:
        """Returns the objective's metrics over the held-out images."""
        sums: dict[str, Any] | None = None
        for batch in self._data.held_out():
            arguments = params, self._data.on_devices(batch), self._frozen
            lower = functools.partial(self._step.lower, *arguments)
            parts = jax.tree.map(np.asarray, self.compiled("step", lower)(*arguments))
            if self._preemption is not None:
                self._preemption.check()
            sums = parts if sums is None else jax.tree.map(np.add, sums, parts)
        assert sums is not None
        images = int(sums.pop("images"))
        return {**self._objective.summarize(sums, images), "images": images}

    def picture(self, params: Any) -> Image.Image | None:
        """Returns the objective's picture of the model; None if it has none."""
        return self._objective.picture(params, self._frozen, self)

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the data's classes, by label."""
        return self._data.class_names

    def first_batch(self) -> Batch:
        """Returns the first held-out batch, sharded over the devices."""
        return self._data.on_devices(next(self._data.held_out()))

    def gather(self, tree: Any) -> Any:
        """Returns arrays on the devices as numpy arrays, complete on every host."""
        return jax.tree.map(np.asarray, self._gather(tree))

    def compiled(self, name: str, lower: Callable[[], jax.stages.Lowered]) -> jax.stages.Compiled:
        """Returns the compiled program kept under `name`, which is made from `lower` on first use.

        Later calls with the same name ignore `lower`.
        """
        if name not in self._programs:
            run = self._preemption.compile if self._preemption else jax.stages.Lowered.compile
            options = cpu_compiler.options_of_collectives(self.replicated.mesh)
            self._programs[name] = run(lower(), options)
        return self._programs[name]
