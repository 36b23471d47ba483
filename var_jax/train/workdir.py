"""A workdir's files besides checkpoints and metrics: settings, figures and the tokenizer."""

import contextlib
import dataclasses
import json
import os
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from var_jax.config import idle_keys
from var_jax.config.strict import build, differences, plain
from var_jax.config.train import TrainConfig
from var_jax.errors import UserError
from var_jax.io import atomic, model_directory
from var_jax.io.json import read_object
from var_jax.objectives.base import Objective
from var_jax.train.run_meta import run_meta

# Where a run's start and its frozen parts lie; what lies there is checked by other means.
LOCATIONS = (
    "init_from",
    "branch_from",
    "adapter.base",
    "refiner.base",
    "loss.perceptual_weights",
    "loss.perceptual_heads",
    "adversarial.feature_weights",
    "alignment.tokens",
    "alignment.feature_weights",
)
# May differ between a run and its resumption: lengths, intervals, devices and numbers of parts.
RESUMABLE = (
    "steps",
    "microbatches",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_steps",
    "eval_images",
    "mesh",
    "sample_classes",
    "wandb_project",
    "tokenizer_dir",
    "data.workers",
    "data.data_dir",
    "data.tokens_dir",
    "transformer.attention",
    "transformer.remat",
    "tokenizer.remat",
    "transformer.gradient_dtype",
    "tokenizer.gradient_dtype",
    *LOCATIONS,
)


# Environment variable set by a launcher that may start a run more than once: the path of this
# start's file. A later start has a file with a greater name next to it.
START_TOKEN_ENV = "VAR_JAX_FENCE"
REFUSED = ".refused"  # suffix of the file that says why such a start ended with exit code 2


def require_newest_start():
    """Raises UserError if the run was started again after this process, or this start was removed.

    A job that waited for long in a queue must not write where its successor does.
    """
    if fence := os.environ.get(START_TOKEN_ENV):
        own = epath.Path(fence)
        starts = (
            [path.name for path in own.parent.glob(f"*{own.suffix}")] if own.parent.is_dir() else []
        )
        if own.name not in starts:
            raise UserError(
                f"this start's file {own} is gone, so it ends and leaves the run alone; start it "
                "again"
            )
        if (newest := max(starts)) != own.name:
            raise UserError(
                f"this start {own} was given up for {newest}, so it ends and leaves the run to "
                "that one"
            )


def note_refusal(message: str):
    """Writes, next to this start's file, why the run ends by a user's mistake.

    The launcher that starts runs again reads it.
    """
    if fence := os.environ.get(START_TOKEN_ENV):
        with contextlib.suppress(OSError):  # the exit code still says it
            atomic.write(epath.Path(fence).with_suffix(REFUSED), message)


def started_with(directory: epath.Path) -> dict[str, Any] | None:
    """Returns the plain config that a workdir's run was started with; None without one."""
    path = directory / "config.json"
    return read_object(path) if path.exists() else None


def refuse_another_run(directory: epath.Path, config: TrainConfig):
    """Raises UserError if the workdir has a run of other settings, or a later start.

    It names every setting that differs.
    """
    require_newest_start()
    path = directory / "config.json"
    if path.exists():
        # Keys that the file does not have yet have their defaults.
        earlier = build(TrainConfig, read_object(path), str(path))
        # Keys of the other stage, which runs could have before they were refused, do not count.
        runs = [plain(idle_keys.reset(in_steps(_at_one_place(run)))) for run in (config, earlier)]
        resumable = RESUMABLE + ("data.source_dir",) * _keeps_content(directory)
        other = [d for d in differences(*runs) if not d.startswith(resumable)]
        if other:
            raise UserError(
                f"{directory} holds another run; {'; '.join(other)}; "
                "give another --workdir, or the settings it was started with"
            )


def _keeps_content(directory: epath.Path) -> bool:
    """Returns whether data.json identifies images by their content.

    Then a run's images are compared (`Inputs.require_same`), and not their path, which may be
    spelled in many ways, or be that of a staged copy.
    """
    path = directory / "data.json"
    return path.exists() and "fingerprint" in read_object(path)


def _at_one_place(config: TrainConfig) -> TrainConfig:
    """Returns the run with a local source_dir as an absolute path without a trailing slash."""
    place = config.data.source_dir
    if place and "://" not in place:
        place = os.path.abspath(os.path.expanduser(place))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source_dir=place))


def in_steps(config: TrainConfig) -> TrainConfig:
    """Returns the run with shares of its length turned into numbers of steps.

    A run that is made longer must not lose a discriminator, nor the size of its images, for that.
    """
    adversarial, progressive, transformer = (
        config.adversarial,
        config.progressive,
        config.transformer,
    )
    if adversarial.weight > 0:
        times = {
            name: config.steps_of(getattr(adversarial, name))
            for name in ("start", "warmup", "blur_fade")
        }
        adversarial = dataclasses.replace(adversarial, **times)
    if progressive.scales:
        progressive = dataclasses.replace(progressive, until=config.steps_of(progressive.until))
    if transformer is not None and transformer.progressive:
        times = {
            name: config.steps_of(getattr(transformer, name))
            for name in ("progressive", "progressive_warmup")
        }
        transformer = dataclasses.replace(transformer, **times)
    return dataclasses.replace(
        config, adversarial=adversarial, progressive=progressive, transformer=transformer
    )


def claim(directory: epath.Path, objective: Objective[Any], command: str | None = None):
    """Claims the workdir: writes config.json, meta.json, and a copy of the frozen tokenizer.

    Raises:
      UserError: it cannot be written, or the run was started again meanwhile.
    """
    require_newest_start()
    if jax.process_count() > 1:  # so that nobody reads a copy that is being written
        multihost_utils.sync_global_devices("var_jax: settings read")
    if jax.process_index() != 0:
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        carried = objective.carried_model() if objective.carries_model else None
        if carried is not None and not (directory / "tokenizer" / "model.json").exists():
            model, params = carried
            model_directory.save(directory / "tokenizer", model, jax.tree.map(np.asarray, params))
        config, meta = plain(objective.config), run_meta(objective, command)
        atomic.write(directory / "config.json", json.dumps(config, indent=1))
        atomic.write(directory / "meta.json", json.dumps(meta, indent=1))
    except OSError as error:
        raise UserError(
            f"cannot write the workdir {directory}: {error.strerror or error}"
        ) from error
