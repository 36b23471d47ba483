"""Refiners of the tiny model: random ones, and objectives that train them."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from etils import epath
from flax import linen as nn

from helpers import small
from var_jax.config.refiner_config import RefinerConfig
from var_jax.config.train import TrainConfig
from var_jax.data.model_fingerprint import fingerprints
from var_jax.io import refiner_file
from var_jax.models import refiner
from var_jax.objectives import registry
from var_jax.objectives.refiner_training import RefinerTraining

CONFIG = RefinerConfig(depth=2, width=8)


def random_params(config: RefinerConfig = CONFIG):
    """Returns parameters of which every one moves the logits."""
    random = np.random.RandomState(0)
    return jax.tree.map(
        lambda leaf: (0.5 * random.standard_normal(leaf.shape)).astype(np.float32),
        refiner.param_shapes(config, small.TRANSFORMER),
    )


def fresh_params(config: RefinerConfig = CONFIG):
    """Returns parameters at their start."""
    make = functools.partial(refiner.init_params, config, small.TRANSFORMER)
    return nn.meta.unbox(jax.jit(make)(jax.random.key(0)))


def write(directory: Path, params, config: RefinerConfig = CONFIG) -> Path:
    """Writes a refiner of the tiny model, and returns its directory."""
    model = small.pipeline()
    directory.mkdir(parents=True)
    fingerprint, sampling = fingerprints(model.config, model.params)
    written = refiner_file.RefinerFile(config, fingerprint, params, sampling)
    refiner_file.save(epath.Path(directory), written)
    return directory


def training(base: Path, **settings) -> TrainConfig:
    """Returns the run of a refiner of the model in a directory."""
    run = small.train_config("transformer", "")
    refined = dataclasses.replace(CONFIG, base=str(base), **settings)
    return dataclasses.replace(run, stage="refiner", refiner=refined)


def objective(config: TrainConfig, workdir: Path) -> RefinerTraining:
    """Returns the objective of a refiner's run, with its frozen model read."""
    kind = registry.find(config)
    return kind(*kind.load_frozen(config, epath.Path(workdir)))
