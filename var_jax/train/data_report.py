"""The lines that a run logs about its data: classes with ids and counts, and dropped parts."""

import logging
from typing import Any

from var_jax.config.train import TrainConfig
from var_jax.objectives.base import Objective
from var_jax.sampling import labels
from var_jax.train.batches import Inputs

CLASSES_SHOWN = 20

log = logging.getLogger(__name__)


def log_data(objective: Objective[Any], data: Inputs):
    """Logs the lines of `described` at level INFO, and the objective's warnings."""
    for line in described(objective.config, data):
        log.info("%s", line)
    drops_color = objective.config.tokenizer.in_channels == 1 and data.has_color
    for line in objective.data_warnings(data.class_names, drops_color=drops_color):
        log.warning("%s", line)


def described(config: TrainConfig, data: Inputs) -> list[str]:
    """Returns lines about a run's data: images per split, and classes with their ids."""
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
        f"data: {' '.join(filter(None, (config.data.name, where)))}, {counts}, {color}",
        f"{_number(len(data.class_names))}{images}: {', '.join(_classes(data))}",
    ]


def _classes(data: Inputs) -> list[str]:
    counts = [f" ({count})" for count in data.class_counts] or [""] * len(data.class_names)
    shown = [
        f"{i}{count}" if name == str(i) else f"{i} {labels.written(name)}{count}"
        for i, (name, count) in enumerate(zip(data.class_names, counts, strict=True))
    ]
    more = len(shown) - CLASSES_SHOWN
    return shown[:CLASSES_SHOWN] + ([f"and {more} more, all in data.json"] if more > 0 else [])


def _number(classes: int) -> str:
    return f"{classes} {'class' if classes == 1 else 'classes'}"
