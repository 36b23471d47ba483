"""The base class of objectives that train a small part on a whole frozen model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from var_jax.config.train import TrainConfig
from var_jax.devices import sharding
from var_jax.models import init
from var_jax.objectives import frozen_base
from var_jax.objectives.base import Objective
from var_jax.objectives.frozen_base import Base, FrozenBase
from var_jax.objectives.latent import LatentObjective
from var_jax.objectives.step_types import Batch


class OnFrozenBase(LatentObjective):
    """An objective whose frozen weights are a whole model, and whose workdir is none.

    Optimizer, average, checkpoints and meshes see nothing but the trained part; the run's own file
    (`write_model`) names the frozen model.
    """

    carries_model = False
    frozen: FrozenBase

    @classmethod
    def with_base(cls, config: TrainConfig, base: Base, started_with: Any = None) -> TrainConfig:
        """Returns a run with the sizes of its base.

        Args:
          started_with: as in `idle_keys.refuse`.
        Raises:
          UserError: the run does not fit the base.
        """
        raise NotImplementedError

    @classmethod
    def shapes(cls, config: TrainConfig, base: Base) -> FrozenBase:
        """Returns the shapes of the frozen weights of a run that has the sizes of its base."""
        return frozen_base.model_shapes(base)

    @classmethod
    def frozen_config(cls, config: TrainConfig) -> TrainConfig:
        return cls.with_base(config, frozen_base.read_base(config))

    @classmethod
    def frozen_shapes(cls, config: TrainConfig) -> tuple[TrainConfig, FrozenBase]:
        base = frozen_base.read_base(config)
        resolved = cls.with_base(config, base)
        return resolved, cls.shapes(resolved, base)

    @classmethod
    def random_frozen(cls, config: TrainConfig) -> tuple[TrainConfig, FrozenBase]:
        resolved, shapes = cls.frozen_shapes(config)
        return resolved, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    @property
    def base(self) -> Base:
        """The config and class names of the frozen model."""
        return Base(self.config.tokenizer, self.model, self.frozen.class_names)

    def initialize_from_data(
        self,
        state: Any,
        batches: Callable[[], Iterator[Batch]],
        shardings: Any,
        replicated: NamedSharding,
    ) -> Any:
        """Returns the state as it is: statistics of the data are the frozen model's."""
        return state

    def param_count(self) -> dict[str, int]:
        """Returns the number of trained parameters."""
        return Objective.param_count(self)

    def divided_shapes(self) -> Any:
        """Returns the shapes of the frozen model, as what is trained is small beside it."""
        return init.boxed_shapes(self.base.transformer)

    def parameter_copies(self) -> int:
        return 1

    def frozen_shardings(self, frozen: FrozenBase, mesh: Mesh) -> Any:
        """Returns shardings that divide the frozen transformer as training would divide it."""
        replicated = NamedSharding(mesh, PartitionSpec())
        everywhere = jax.tree.map(lambda _: replicated, frozen)
        return everywhere.replace(base=sharding.shardings(self.divided_shapes(), mesh))
