"""A run's messages on the terminal: its data and a summary at the start, its result at the end."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from var_jax.config.train import TrainConfig
from var_jax.objectives.base import Objective
from var_jax.sampling import labels
from var_jax.train.batches import Inputs

CLASSES_LOGGED = 20

log = logging.getLogger(__name__)


def log_data(objective: Objective[Any], data: Inputs):
    """Logs the lines of `data_lines` at level INFO, and the objective's warnings."""
    ids = objective.model_labels(data.class_names)
    for line in data_lines(objective.config, data, ids.tolist()):
        log.info("%s", line)
    drops_color = objective.config.tokenizer.in_channels == 1 and data.has_color
    for line in objective.data_warnings(data.class_names, drops_color=drops_color):
        log.warning("%s", line)


def log_chosen_settings(objective: Objective[Any], compiled: Objective[Any]):
    """Logs, at level INFO, the settings that a run's step has in place of "auto".

    Args:
      objective: the run's.
      compiled: the one whose step is compiled (`program.Program.objective`).
    """
    if compiled is not objective:
        log.info(
            "chosen by the memory of the devices: mesh.policy=%s, %s.remat=%s",
            compiled.config.mesh.policy,
            compiled.section,
            compiled.model.remat,
        )


def data_lines(config: TrainConfig, data: Inputs, ids: Sequence[int]) -> list[str]:
    """Returns lines about a run's data: images per split, and classes with their ids.

    Args:
      ids: the model's id of each class of the data.
    """
    where = config.data.tokens_dir or (
        config.data.source_dir if config.data.name == "image_folder" else ""
    )
    splits = (
        ("train", "training images", config.data.train_split),
        ("held_out", "held out", config.data.eval_split),
    )
    counts = ", ".join(
        f"{data.identity[role]} {what} ({split})"
        for role, what, split in splits
        if role in data.identity
    )
    color = "color" if config.tokenizer.in_channels == 3 else "gray"
    images = " (training images)" if data.class_counts else ""
    return [
        f"data: {' '.join(filter(None, (data.identity['name'], where)))}, {counts}, {color}",
        f"{_number(len(data.class_names))}{images}: {', '.join(_classes(data, ids))}",
    ]


def opening_line(
    objective: Objective[Any],
    identity: Mapping[str, Any],
    params: Any,
    directory: epath.Path,
    first: int,
) -> str:
    """Returns the line that sums up a run before its first step; it follows `data_lines`.

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


def closing_lines(
    objective: type[Objective[Any]],
    config: TrainConfig,
    held_out: Mapping[str, Any],
    workdir: str,
    config_file: str,
    overrides: Sequence[str] = (),
) -> list[str]:
    """Returns the closing lines of a run: its result, its picture, and the next command.

    Nothing of the run's inputs is read, so that a run which is done says so wherever they are.

    Args:
      objective: the run's kind of objective.
      config: the config as the config file gives it.
      held_out: the last evaluation's metrics.
      config_file: FILE[:ARG] of the next stage.
      overrides: each `--config.KEY=VALUE` that the next stage takes, too.
    """
    picture = epath.Path(workdir) / "samples" / f"step_{config.steps:07d}.png"
    images = f" on {held_out['images']} images" if "images" in held_out else ""
    shown = f"; picture: {picture}" if picture.exists() else ""
    return [
        f"done: step {config.steps}, {objective.headline(held_out)}{images}{shown}",
        f"next: {objective.next_command(config, workdir, config_file, overrides)}",
    ]


def _classes(data: Inputs, ids: Sequence[int]) -> list[str]:
    counts = [f" ({count})" for count in data.class_counts] or [""] * len(data.class_names)
    shown = [
        f"{i}{count}" if name == str(i) else f"{i} {labels.written(name)}{count}"
        for i, name, count in zip(ids, data.class_names, counts, strict=True)
    ]
    more = len(shown) - CLASSES_LOGGED
    return shown[:CLASSES_LOGGED] + ([f"and {more} more, all in data.json"] if more > 0 else [])


def _number(classes: int) -> str:
    return f"{classes} {'class' if classes == 1 else 'classes'}"


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
