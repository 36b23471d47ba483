"""A run's objective, opened once: frozen networks found, the tokenizer read, sizes of the data
filled in."""

from typing import Any

from etils import epath

from var_jax.config.train import TrainConfig
from var_jax.objectives import registry
from var_jax.objectives.base import Objective
from var_jax.train import data_sizes


def open_objective(config: TrainConfig, workdir: epath.Path) -> Objective[Any]:
    """Returns what a run in a workdir trains, with the config as it is from here on.

    A run that goes on takes the tokenizer and the sizes that it was started with.

    Raises:
      UserError: a file of frozen weights is missing or of another network, or the data that would
        tell their sizes are not there.
    """
    objective = registry.find(config)
    config, frozen = objective.load_frozen(config, workdir)
    return objective(data_sizes.from_data(config, workdir), frozen)
