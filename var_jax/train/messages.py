"""What a run says of itself on the terminal: one line when it starts, and the lines at its end."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from var_jax.config.train import TrainConfig
from var_jax.io import model_directory

COLUMNS = 10  # of the picture that the closing lines propose


def opening(
    config: TrainConfig, identity: Mapping[str, Any], params: Any, directory: epath.Path, first: int
) -> str:
    """Returns the line of a run that is about to take its first step; `data_report` tells of its
    images and classes.

    Args:
      config: as resolved, with the tokenizer's sizes.
      identity: of the data, as `batches.Inputs` has it.
      params: the trained parameters or their shapes.
      first: steps that are done.
    """
    height, width, channels = config.tokenizer.image_shape
    size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    model = f"{size:,} parameters, images of {height}x{width}x{channels}, {config.tokenizer.scales.total} tokens each"
    if config.transformer is not None and config.stage == "transformer":
        model = f"depth {config.transformer.depth}, width {config.transformer.width}, {model}"
    return "; ".join(
        [
            f"training the {config.stage} on {identity['name']}{f' from step {first} on' if first else ''}",
            model,
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
    """Returns the lines of a run that is done: what it reached, its picture, and the command that
    comes next.

    Args:
      config: as the config file gives it.
      held_out: the last evaluation's metrics.
      config_file: FILE.py[:ARG], as the command line has it.
      overrides: each `--config.KEY=VALUE` of the command line; the next stage takes those of the
        data too.
    """
    directory, file = shlex.quote(workdir), shlex.quote(config_file.partition(":")[0])
    picture = epath.Path(workdir) / "samples" / f"step_{config.steps:07d}.png"
    if config.stage == "tokenizer":
        reached = f"held-out PSNR {held_out['psnr']:.2f} dB" if "psnr" in held_out else ""
        data = "".join(
            f" {shlex.quote(flag)}" for flag in overrides if flag.startswith("--config.data.")
        )
        following = (
            f"var-jax train --config {file} --config.tokenizer_dir={directory}{data} "
            f"--workdir {shlex.quote(f'{workdir.rstrip(chr(47))}-transformer')}"
        )
    else:
        last = min(COLUMNS, _classes(workdir, config)) - 1
        labels = f"0-{last}" if last else "0"
        following = f"var-jax sample --model {directory} --labels {labels} --num {4 * (last + 1)} --out samples.png"
        reached = ""
    reached = reached or f"held-out loss {held_out['loss']:.4g}"
    images = f" on {held_out['images']} images" if "images" in held_out else ""
    shown = f"; picture: {picture}" if picture.exists() else ""
    return [f"done: step {config.steps}, {reached}{images}{shown}", f"next: {following}"]


def _classes(workdir: str, config: TrainConfig) -> int:
    """Classes of the run's data, which may be fewer than the model's."""
    noted = epath.Path(workdir) / "data.json"
    names = model_directory.read_json(noted).get("class_names") if noted.exists() else None
    return len(names) if names else config.transformer.num_classes


def _devices() -> str:
    count, hosts = jax.device_count(), jax.process_count()
    kind = jax.devices()[0].device_kind
    return f"{count} device{'s' * (count > 1)} ({kind})" + (
        f" of {hosts} processes" if hosts > 1 else ""
    )


def _passes(config: TrainConfig, identity: Mapping[str, Any]) -> str:
    if not identity.get("train"):
        return ""
    return f" ({config.steps * config.batch_size / identity['train']:.3g} passes over the training images)"
