"""The compiled training step of a run on a mesh, with its shardings.

Training and compilation ahead of time use it.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from var_jax.config.strict import require
from var_jax.devices import compiler_check, cpu_compiler, gathering, sharding
from var_jax.objectives.base import Objective
from var_jax.objectives.step_types import StepVariant, TrainState
from var_jax.train import memory_rule, step
from var_jax.train.optimizer import make_optimizers, numbers_of
from var_jax.train.shared_step import RunNumbers, SharedStep
from var_jax.train.state import StateFactory


class Program:
    """A run's training steps and the state that they update.

    Attributes:
      objective: the run's objective, with the settings of `memory_rule` in place of "auto".
      abstract: the state's shapes and dtypes.
      shardings: the state's shardings.
      rows: the sharding of a batch.
      replicated: the sharding of arrays that every device holds completely.
    Raises:
      UserError: the batch size is not a multiple of mesh.data times microbatches, the mesh does not
        divide the model, `param_dtype` is not float32, or the compiler does not know an option of
        the config.
    """

    def __init__(self, objective: Objective[Any], mesh: Mesh):
        config, section, model = objective.config, objective.section, objective.model
        parts = sharding.batch_parts(mesh.shape)
        require(
            config.batch_size % (parts * config.microbatches) == 0,
            "batch_size",
            config.batch_size,
            f"a multiple of mesh.data {parts} times microbatches {config.microbatches}",
        )
        # In bfloat16, small late updates and the increments of a 0.9999 moving average are rounded
        # away, so weights, average and moments stay float32.
        require(
            model.param_dtype == "float32",
            f"{section}.param_dtype",
            repr(model.param_dtype),
            f"'float32' in training; {section}.dtype=bfloat16 computes in bfloat16",
        )
        compiler_check.require_known(config.mesh.options_of_compiler, mesh)
        objective = memory_rule.resolve(objective, mesh)
        self.objective = objective
        self._numbers = RunNumbers(np.uint32(config.seed), numbers_of(objective))
        self._saved: SharedStep | None = None
        self._factory = StateFactory(objective, make_optimizers(objective), mesh)
        self.abstract, self.shardings = self._factory.abstract, self._factory.shardings
        self.rows = sharding.batch_sharding(mesh)
        self.replicated = NamedSharding(mesh, PartitionSpec())

    def first_state(self, start: Any = None) -> TrainState:
        """Returns a state at step 0, from fresh parameters or from `start`."""
        return self._factory.first_state(start)

    def step(self, done: int | None = None) -> SharedStep:
        """Returns the jitted step (state, batch, frozen) -> (state, metrics) after `done` steps.

        Without `done`, it is the variant with all parts of the run active. The state is donated.
        Each variant is compiled on first use.
        """
        last = self.objective.last_variant()
        variant = last if done is None else self.objective.variant(done)
        if self._saved is not None and variant == last:
            return self._saved
        return self._compiled(variant)

    def use(self, compiled: jax.stages.Compiled):
        """Makes a compiled step that of the last variant, which is not compiled again then."""
        names = tuple(self.objective.batch_shapes())

        def run(state, batch, frozen, numbers: RunNumbers):
            # Unlike a function to be traced, it takes no array that it has no use for.
            return compiled(state, {name: batch[name] for name in names}, frozen, numbers)

        self._saved = SharedStep(run, self._numbers, self.replicated)

    def arguments(self, frozen: object) -> tuple[Any, ...]:
        """Returns the compiled step's arguments, as shapes or numbers, with `frozen` among them."""
        return self.abstract_state(), self.abstract_batch(), frozen, self._numbers

    def abstract_state(self) -> TrainState:
        """Returns shapes, dtypes and shardings of the state.

        Checkpoints and compilation ahead of time take them.
        """
        return jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
            self.abstract,
            self.shardings,
        )

    def abstract_batch(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Returns shapes, dtypes and shardings of a batch."""
        size = self.objective.config.batch_size
        return {
            name: jax.ShapeDtypeStruct((size, *image.shape), image.dtype, sharding=self.rows)
            for name, image in self.objective.batch_shapes().items()
        }

    def _compiler_options(self) -> cpu_compiler.Options | None:
        of_device = cpu_compiler.options_of_step(self.replicated.mesh)
        of_config = self.objective.config.mesh.options_of_compiler
        return {**(of_device or {}), **of_config} or None

    @functools.cache  # noqa: B019 - a program lives as long as its run
    def _compiled(self, variant: StepVariant) -> SharedStep:
        def train_step(state, batch, frozen, numbers: RunNumbers):
            optimizers = make_optimizers(self.objective, numbers.schedules)
            of_run = step.make_train_step(self.objective, optimizers, variant, numbers.seed)
            with gathering.under(self.objective.config.mesh.policy):
                return of_run(state, batch, frozen)

        jitted = jax.jit(
            train_step,
            donate_argnums=0,
            compiler_options=self._compiler_options(),
            # Frozen weights keep their own.
            in_shardings=(self.shardings, self.rows, None, self.replicated),
            out_shardings=(self.shardings, self.replicated),
        )
        return SharedStep(jitted, self._numbers, self.replicated)
