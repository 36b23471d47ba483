"""A run's metrics and pictures in Weights & Biases (`wandb_project`), beside TensorBoard.

The environment is that of the package wandb: WANDB_MODE, WANDB_ENTITY, WANDB_DIR, WANDB_API_KEY. It
is imported in no other module, and only where a run logs to it.
"""

import importlib.util
import json
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
STEP = "step"  # the horizontal axis: W&B's own count of steps goes on only, and a resumed run's not


class WandbBoard:
    """A run at W&B, which the starts of a workdir continue.

    It has the methods of TensorBoard's writer that a run calls. Steps that a kill makes the run
    repeat are there twice, with the same values.

    Args:
      project: the name of the W&B project.
      config: the run's plain config, which W&B shows.
    Raises:
      UserError: the package is missing, or W&B refuses the run.
    """

    def __init__(self, workdir: epath.Path, project: str, config: Mapping[str, Any]):
        self._wandb = _package()
        directory = None
        if not run_records.in_bucket(workdir) and "WANDB_DIR" not in os.environ:
            directory = str(workdir)
        try:
            self._run = self._wandb.init(
                project=project,
                id=_run_id(workdir),
                resume="allow",
                name=workdir.name,
                config=dict(config),
                dir=directory,
                settings=self._wandb.Settings(console="off"),  # the terminal is the run's own
            )
        except self._wandb.Error as error:
            raise UserError(
                f"wandb_project is {project!r}, and Weights & Biases does not start: "
                f"{' '.join(str(error).split())}; log in by `wandb login`, set WANDB_MODE=offline, "
                "or leave the key out"
            ) from error
        self._run.define_metric("*", step_metric=STEP)
        self._values: dict[str, Any] = {}

    def add_scalar(self, tag: str, value: Any, step: int):
        self._at(step)[tag] = float(value)

    def add_image(self, tag: str, image: Any, step: int, dataformats: str = "HWC"):
        """Shows a picture, an array (height, width, channels)."""
        self._at(step)[tag] = self._wandb.Image(np.asarray(image))

    def flush(self):
        """Hands over the values of one step, which wandb's own process uploads."""
        values, self._values = self._values, {}
        if values:
            self._run.log(values)

    def close(self, *, failed: bool):
        """Returns when everything is uploaded, or in the offline run's file."""
        self.flush()
        self._run.finish(exit_code=int(failed))

    def _at(self, step: int) -> dict[str, Any]:
        """Returns the values of a step, after those of another one are handed over."""
        if self._values.get(STEP, step) != step:
            self.flush()
        self._values[STEP] = step
        return self._values


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


def _run_id(workdir: epath.Path) -> str:
    """Returns the id of the workdir's run at W&B, which its first start chooses."""
    known = (read_object_or_none(workdir / ID_FILE) or {}).get("id")
    if isinstance(known, str) and known:
        return known
    chosen = secrets.token_hex(4)
    atomic.write(workdir / ID_FILE, json.dumps({"id": chosen}) + "\n")
    return chosen
