"""The compiled training step of a run on a mesh: one place for its shardings, for whoever runs or
only compiles it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from var_jax.config.strict import require
from var_jax.config.train import TrainConfig
from var_jax.objectives import step
from var_jax.objectives.frozen_networks import Networks
from var_jax.objectives.phase import Phase, last_phase, phase_of
from var_jax.train.optimizer import make_optimizers
from var_jax.train.state import Creation, TrainState


class Program:
    """The steps of a run and the state they turn over.

    Attributes:
      abstract, shardings: of the state.
      rows, replicated: shardings of a batch, and of what lies whole on every device.
    Raises:
      UserError: the mesh does not divide the batch or the model, or weights would be trained in
        bfloat16.
    """

    def __init__(self, config: TrainConfig, mesh: Mesh, networks: Networks | None = None):
        require(
            config.batch_size % (mesh.shape["data"] * config.microbatches) == 0,
            "batch_size",
            config.batch_size,
            f"a multiple of mesh.data {mesh.shape['data']} times microbatches {config.microbatches}",
        )
        trained = config.tokenizer if config.stage == "tokenizer" else config.transformer
        # Updates of a late learning rate are lost between neighboring bfloat16 numbers, and so is
        # what an average of 0.9999 adds: weights, average and moments are float32.
        require(
            trained.param_dtype == "float32",
            f"{config.stage}.param_dtype",
            repr(trained.param_dtype),
            f"'float32' in training; {config.stage}.dtype=bfloat16 computes in bfloat16",
        )
        self._config, self._networks = config, networks or Networks()
        self._optimizers = make_optimizers(config)
        self._creation = Creation(config, self._optimizers, self._networks, mesh)
        self.abstract, self.shardings = self._creation.abstract, self._creation.shardings
        self.rows, self.replicated = (
            NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ())
        )

    def first_state(self, start: Any = None) -> TrainState:
        """A state at step 0, from fresh parameters or from `start`."""
        return self._creation.first_state(start)

    def step(self, done: int | None = None) -> Callable:
        """The jitted (state, batch, frozen) -> (state, metrics) that comes after `done` steps; by
        default the one with every part of the run in it. The state is donated; a program is
        compiled when a run first comes to it."""
        return self._compiled(
            last_phase(self._config) if done is None else phase_of(self._config, done)
        )

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, as checkpoints and compilation ahead of time
        take them."""
        return jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
            self.abstract,
            self.shardings,
        )

    def abstract_batch(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """A batch's: images in the tokenizer's stage, tokens and labels in the transformer's."""
        tokenizer = self._config.tokenizer
        shapes = (
            {"image": (tokenizer.image_shape, jnp.uint8)}
            if self._config.stage == "tokenizer"
            else {"tokens": ((tokenizer.scales.total,), jnp.int32), "label": ((), jnp.int32)}
        )
        return {
            name: jax.ShapeDtypeStruct((self._config.batch_size, *shape), dtype, sharding=self.rows)
            for name, (shape, dtype) in shapes.items()
        }

    @functools.cache  # noqa: B019 - a program lives as long as its run
    def _compiled(self, phase: Phase) -> Callable:
        made = step.make_train_step(self._config, self._optimizers, self._networks, phase)
        return jax.jit(
            made,
            donate_argnums=0,
            in_shardings=(self.shardings, self.rows, None),
            out_shardings=(self.shardings, self.replicated),
        )
