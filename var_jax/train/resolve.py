"""Opens a run's objective once, with its frozen networks, tokenizer and sizes of the data."""

from typing import Any

from etils import epath

from var_jax.config.train import TrainConfig
from var_jax.objectives import registry
from var_jax.objectives.base import Objective
from var_jax.train import data_sizes


def open_objective(config: TrainConfig, workdir: epath.Path) -> Objective[Any]:
    """Returns the objective that a run in a workdir trains, with its final config.

    A resumed run takes the tokenizer and the sizes that it was started with.

    Raises:
      UserError: a file of frozen weights is missing or has those of another network, or the data
        are missing and their sizes are needed.
    """
    objective = registry.find(config)
    config, frozen = objective.load_frozen(config, workdir)
    return objective(data_sizes.from_data(config, workdir), frozen)
