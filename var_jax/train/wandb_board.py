"""A run's metrics and pictures in Weights & Biases (`wandb_project`), beside TensorBoard.

The environment is that of the package wandb: WANDB_MODE, WANDB_ENTITY, WANDB_DIR, WANDB_API_KEY. It
is imported in no other module, and only where a run logs to it.
"""

import contextlib
import importlib.util
import json
import logging
import os
import secrets
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from etils import epath

from var_jax.errors import UserError
from var_jax.io import atomic, run_records
from var_jax.io.json import read_object_or_none

ID_FILE = "wandb.json"  # of a workdir
FINISH_SECONDS = 30.0  # of a preempted process, too, which has little time left
STEP = "step"  # the horizontal axis: W&B's own count of steps goes on only, and a resumed run's not

log = logging.getLogger(__name__)


class WandbBoard:
    """A run at W&B, which the starts of a workdir continue.

    It has the methods of TensorBoard's writer that a run calls. Steps that a kill makes the run
    repeat are there twice, with the same values.

    After an error of the package nothing more is logged there, with one warning: the run goes on,
    and its workdir has the same values.

    Args:
      project: the name of the W&B project.
      config: the run's plain config, which W&B shows.
    Raises:
      UserError: the package is missing, or W&B refuses the run.
    """

    def __init__(self, workdir: epath.Path, project: str, config: Mapping[str, Any]):
        id, directory, limit = _run_id(workdir), None, {}
        if not run_records.in_bucket(workdir) and "WANDB_DIR" not in os.environ:
            directory = str(workdir)
        if "WANDB_FINISH_TIMEOUT" not in os.environ:
            limit = {"finish_timeout": FINISH_SECONDS}
        try:
            self._wandb = _package()
            self._run = self._wandb.init(
                project=project,
                id=id,
                resume="allow",
                name=workdir.name,
                config=dict(config),
                dir=directory,
                # The terminal is the run's own.
                settings=self._wandb.Settings(console="off", **limit),
            )
            self._run.define_metric("*", step_metric=STEP)
        except Exception as error:  # the package's own, and those of its process and its server
            raise UserError(
                f"wandb_project is {project!r}, and Weights & Biases does not start: "
                f"{_line(error)}; log in by `wandb login`, set WANDB_MODE=offline, or leave the "
                "key out"
            ) from error
        self._values: dict[str, Any] = {}
        self._has_failed = False

    def add_scalar(self, tag: str, value: Any, step: int):
        self._at(step)[tag] = float(value)

    def add_image(self, tag: str, image: Any, step: int, dataformats: str = "HWC"):
        """Shows a picture, an array (height, width, channels)."""
        with self._guarded():
            self._at(step)[tag] = self._wandb.Image(np.asarray(image))

    def flush(self):
        """Hands over the values of one step, which wandb's own process uploads."""
        values, self._values = self._values, {}
        if values and not self._has_failed:
            with self._guarded():
                self._run.log(values)

    def close(self, *, failed: bool):
        """Returns when everything is uploaded or in the offline run's file, or time is over.

        That is `FINISH_SECONDS`, or WANDB_FINISH_TIMEOUT; the files in the directory `wandb` stay.
        """
        self.flush()
        with self._guarded():
            self._run.finish(exit_code=int(failed))

    def _at(self, step: int) -> dict[str, Any]:
        """Returns the values of a step, after those of another one are handed over."""
        if self._values.get(STEP, step) != step:
            self.flush()
        self._values[STEP] = step
        return self._values

    @contextlib.contextmanager
    def _guarded(self):
        """Turns any error of the package into the one warning: none of them may end the run."""
        try:
            yield
        except Exception as error:
            if not self._has_failed:
                log.warning(
                    "Weights & Biases has failed, and the run goes on without it; metrics.jsonl "
                    "and TensorBoard's files have every value: %s",
                    _line(error),
                )
            self._has_failed = True


def require_package(project: str):
    """Raises UserError if a run is to log to W&B and the package is missing; imports nothing."""
    spec = importlib.util.find_spec("wandb") if project else None
    # W&B's own folder `wandb` of an offline run is a package without a file.
    if project and (spec is None or spec.origin is None):
        raise UserError(
            f"wandb_project is {project!r}, and the package wandb is not installed; install it by "
            "pip install 'var-jax[wandb]', or leave the key out"
        )


def _package() -> ModuleType:
    import wandb

    return wandb


def _line(error: Exception) -> str:
    """Returns an error's text as one line; its type's name if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _run_id(workdir: epath.Path) -> str:
    """Returns the id of the workdir's run at W&B, which its first start chooses."""
    known = (read_object_or_none(workdir / ID_FILE) or {}).get("id")
    if isinstance(known, str) and known:
        return known
    chosen = secrets.token_hex(4)
    atomic.write(workdir / ID_FILE, json.dumps({"id": chosen}) + "\n")
    return chosen
