"""Adapters of tiny models: random ones in files, and objectives that train them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict

from var_jax import Pipeline
from var_jax.adapters import adapter_file, parameters
from var_jax.config.adapter_config import AdapterConfig
from var_jax.config.train import TrainConfig
from var_jax.data.model_fingerprint import model_fingerprint
from var_jax.objectives import registry
from var_jax.objectives.base import Objective


def random_adapter(
    directory: Path, model: Pipeline, seed: int, starts: tuple[int | None, ...] = (), **settings
) -> Path:
    """Writes an adapter of a model with random numbers, and returns its directory."""
    config = AdapterConfig(rank=2, alpha=3.0, **settings)
    random = np.random.RandomState(seed)
    shapes = parameters.shapes(config, model.config.transformer)
    leaves = {
        name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    directory.mkdir(parents=True)
    adapter = adapter_file.Adapter(
        config,
        model_fingerprint(model.config, model.params),
        starts or (None,) * len(config.class_names),
        unflatten_dict(leaves, sep="/"),
    )
    adapter_file.save(epath.Path(directory), adapter)
    return directory


def write_bases(directory: Path, models: Mapping[str, ModuleType]) -> Path:
    """Writes tiny models by name, each the `pipeline()` of a helper, and returns the directory."""
    for name, module in models.items():
        module.pipeline().save(directory / name)
    return directory


def training(config: TrainConfig, base: Path, **settings) -> TrainConfig:
    """Returns the run of an adapter of the model in a directory, from the run of its kind."""
    adapter = AdapterConfig(base=str(base), **{"rank": 2, **settings})
    return dataclasses.replace(config, stage="adapter", tokenizer_dir="", adapter=adapter)


def objective(config: TrainConfig, workdir: Path) -> Objective:
    """Returns the objective of an adapter's run, with its frozen model read."""
    kind = registry.find(config)
    return kind(*kind.load_frozen(config, epath.Path(workdir)))


def fresh(objective: Objective):
    """Returns an adapter's parameters at their start."""
    from flax import linen as nn

    return nn.meta.unbox(objective.init(jax.random.key(1)))
