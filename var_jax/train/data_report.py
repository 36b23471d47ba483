"""What a run says of its data when it starts: classes with their ids, counts, and what its settings
give away."""

import logging

from var_jax.config.train import TrainConfig
from var_jax.train.batches import Inputs

CLASSES_SHOWN = 20

log = logging.getLogger(__name__)


def tell(config: TrainConfig, data: Inputs):
    """Logs `described` as notes and `doubts` as warnings."""
    for line in described(config, data):
        log.info("%s", line)
    for line in doubts(config, data):
        log.warning("%s", line)


def described(config: TrainConfig, data: Inputs) -> list[str]:
    """What a run learns from, a line each: its images in each split, and its classes with their
    ids."""
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


def doubts(config: TrainConfig, data: Inputs) -> list[str]:
    """What a run drops or never learns by its settings, a line each."""
    found, transformer = [], config.transformer
    if config.stage == "transformer" and transformer is not None:
        first, last = len(data.class_names), transformer.num_classes - 1
        if first <= last:
            labels = f"label {first} is" if first == last else f"labels {first} to {last} are"
            found.append(
                f"transformer.num_classes is {last + 1} and the data have {_number(first)}: {labels} never "
                "trained"
            )
    if config.tokenizer.in_channels == 1 and data.has_color:
        why = (
            "tokenizer.in_channels is 1"
            if config.stage == "tokenizer"
            else "the tokenizer has one channel"
        )
        found.append(f"the images have color, and the run sees them in gray: {why}")
    return found


def _classes(data: Inputs) -> list[str]:
    counts = [f" ({count})" for count in data.class_counts] or [""] * len(data.class_names)
    shown = [
        f"{i}{count}" if name == str(i) else f"{i} {name}{count}"
        for i, (name, count) in enumerate(zip(data.class_names, counts, strict=True))
    ]
    more = len(shown) - CLASSES_SHOWN
    return shown[:CLASSES_SHOWN] + ([f"and {more} more, all in data.json"] if more > 0 else [])


def _number(classes: int) -> str:
    return f"{classes} {'class' if classes == 1 else 'classes'}"
