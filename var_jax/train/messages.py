"""A run's messages on the terminal: one line when it starts, and the lines at its end."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from var_jax.config.train import TrainConfig
from var_jax.objectives import registry
from var_jax.objectives.base import Objective


def opening(
    objective: Objective[Any],
    identity: Mapping[str, Any],
    params: Any,
    directory: epath.Path,
    first: int,
) -> str:
    """Returns the line that sums up a run before its first step; it follows those of `data_report`.

    Args:
      identity: the data's identity, as in `batches.Inputs`.
      params: the trained parameters or their shapes.
      first: number of steps done before.
    """
    config = objective.config
    height, width, channels = config.tokenizer.image_shape
    size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    model = (
        f"{size:,} parameters, images of {height}x{width}x{channels}, "
        f"{objective.image_parts()} each"
    )
    resumed = f" from step {first} on" if first else ""
    return "; ".join(
        [
            f"training the {config.stage} on {identity['name']}{resumed}",
            ", ".join(filter(None, (objective.summary(), model))),
            _devices(),
            f"{config.steps} steps of {config.batch_size} images{_passes(config, identity)}",
            f"in {directory}",
        ]
    )


def closing(
    config: TrainConfig,
    held_out: Mapping[str, Any],
    workdir: str,
    config_file: str,
    overrides: Sequence[str] = (),
) -> list[str]:
    """Returns the closing lines of a run: its result, its picture, and the next command.

    Args:
      config: the config as the config file gives it.
      held_out: the last evaluation's metrics.
      config_file: FILE.py[:ARG], as on the command line.
      overrides: each `--config.KEY=VALUE` of the command line; the next stage takes those of the
        data too.
    """
    objective = registry.find(config)
    picture = epath.Path(workdir) / "samples" / f"step_{config.steps:07d}.png"
    images = f" on {held_out['images']} images" if "images" in held_out else ""
    shown = f"; picture: {picture}" if picture.exists() else ""
    return [
        f"done: step {config.steps}, {objective.headline(held_out)}{images}{shown}",
        f"next: {objective.next_command(config, workdir, config_file, overrides)}",
    ]


def _devices() -> str:
    count, hosts = jax.device_count(), jax.process_count()
    kind = jax.devices()[0].device_kind
    return f"{count} device{'s' * (count > 1)} ({kind})" + (
        f" of {hosts} processes" if hosts > 1 else ""
    )


def _passes(config: TrainConfig, identity: Mapping[str, Any]) -> str:
    if not identity.get("train"):
        return ""
    passes = config.steps * config.batch_size / identity["train"]
    return f" ({passes:.3g} passes over the training images)"
