"""The objectives by the names that `stage` and `transformer.objective` may have."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

from var_jax.config import idle_keys
from var_jax.config.objective_keys import entry_of
from var_jax.config.train import STAGES, TrainConfig
from var_jax.config.transformer_config import TransformerConfig
from var_jax.objectives import frozen_base, frozen_tokenizer
from var_jax.objectives.adapter_training import AdapterTraining
from var_jax.objectives.autoencoder import Autoencoder
from var_jax.objectives.base import Objective
from var_jax.objectives.diffusion import Diffusion
from var_jax.objectives.guidance_distillation import GuidanceDistillation
from var_jax.objectives.latent import LatentObjective
from var_jax.objectives.masked import Masked
from var_jax.objectives.next_scale import NextScale
from var_jax.objectives.next_token import NextToken
from var_jax.objectives.refiner_training import RefinerTraining

# By `config.stage`; the config's own check knows the names, too.
OBJECTIVES: dict[str, type[Objective[Any]]] = {
    "tokenizer": Autoencoder,
    "refiner": RefinerTraining,
}
# By `transformer.objective`, in the transformer's stage.
TRANSFORMER_OBJECTIVES: dict[str, type[LatentObjective]] = {
    "next_scale": NextScale,
    "next_token": NextToken,
    "masked": Masked,
    "diffusion": Diffusion,
}


def register(stage: str, objective: type[Objective[Any]]):
    """Registers an objective under a new value of `config.stage`; extensions call it."""
    OBJECTIVES[stage] = objective
    STAGES.append(stage)


def find(config: TrainConfig) -> type[Objective[Any]]:
    """Returns the kind of objective that a run trains.

    Raises:
      UserError: this version has no such objective, or there is no model to adapt.
    """
    if config.stage in OBJECTIVES:
        return OBJECTIVES[config.stage]
    if config.stage == "adapter":
        kind = GuidanceDistillation if config.adapter.cfg else AdapterTraining
        return _adapted(_entry(frozen_base.read_base(config).transformer), kind)
    assert config.transformer is not None  # the config's own validation asks for it
    return _entry(config.transformer)


def leaves_generator(config: TrainConfig) -> bool:
    """Returns whether a run leaves a model that generates images: no tokenizer, adapter or refiner.

    Raises:
      UserError: as in `find`.
    """
    objective = find(config)
    return objective.generates and objective.carries_model


def with_frozen_sizes(config: TrainConfig, keys: Collection[str] = ()) -> TrainConfig:
    """Returns a config with the sizes of the tokenizer or base that its run reads, if any.

    No weights are read.

    Args:
      keys: dotted, of flags: they must not give the model that is read other values.
    Raises:
      UserError: a flag does, or there is no such model.
    """
    resolved = find(config).frozen_config(config)
    base = frozen_base.base_directory(config)
    directory = base or frozen_tokenizer.source(config)
    idle_keys.refuse_replaced(config, resolved.tokenizer, keys, directory)
    if base and resolved.transformer is not None:
        idle_keys.refuse_replaced(config, resolved.transformer, keys, directory)
    return resolved


def with_frozen_shapes(config: TrainConfig) -> Objective[Any]:
    """Returns a run's objective with the shapes of its frozen weights in place of their values.

    Programs can be compiled with it, and cannot be run.

    Raises:
      UserError: the config names a file that is missing or of another network.
    """
    objective = find(config)
    return objective(*objective.frozen_shapes(config))


def with_random_frozen(config: TrainConfig) -> Objective[Any]:
    """Returns a run's objective with arbitrary frozen weights, for measurements of time.

    Raises:
      UserError: as `with_frozen_shapes`.
    """
    objective = find(config)
    return objective(*objective.random_frozen(config))


def _entry(transformer: TransformerConfig) -> type[LatentObjective]:
    return entry_of(TRANSFORMER_OBJECTIVES, transformer.objective)


@functools.cache
def _adapted(
    objective: type[LatentObjective], kind: type[AdapterTraining]
) -> type[LatentObjective]:
    """Returns the class that trains adapters of models of an objective."""
    return type(f"{objective.__name__}{kind.__name__}", (kind, objective), {})
