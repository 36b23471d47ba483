"""Checks of a run before its first step, apart from its data: model, mesh, weights, workdir."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import NamedTuple

import jax
from etils import epath

from var_jax.config import idle_keys
from var_jax.config.train import MeshConfig, TrainConfig
from var_jax.devices import platforms
from var_jax.io.checkpoint import Checkpoints
from var_jax.train import mesh_choice, resolve, resume, workdir
from var_jax.train.program import Program


class Start(NamedTuple):
    """A run that a launcher is about to start.

    Attributes:
      directory: its workdir.
      after_trunk: whether the run that it branches from is still to be trained.
    """

    config: TrainConfig
    directory: str
    after_trunk: bool = False


def check_all(starts: Sequence[Start], *, on_these_devices: bool):
    """Checks runs as `train` would at their start; nothing is compiled for them or written.

    It takes this process's accelerators. A launcher whose runs need these calls it in a process
    that ends before they start.

    Args:
      on_these_devices: whether the runs have the devices of this process. Otherwise none but a CPU
        is used, and their meshes are left to their own starts.
    Raises:
      UserError: `train` would refuse a run; the message is that of the run.
    """
    logging.disable(logging.WARNING)  # the runs say it themselves
    if on_these_devices:
        platforms.require_devices()
    else:
        jax.config.update("jax_platforms", "cpu")
    for start in starts:
        _check(start, on_these_devices=on_these_devices)


def _check(start: Start, *, on_these_devices: bool):
    config, directory = start.config, epath.Path(start.directory)
    idle_keys.refuse(config, workdir.started_with(directory))
    objective = resolve.open_objective(config, directory)
    devices = jax.devices()
    if not on_these_devices:
        devices = devices[:1]
        objective = objective.with_config(
            dataclasses.replace(objective.config, mesh=MeshConfig(), microbatches=1)
        )
    mesh = mesh_choice.choose(objective, devices).mesh
    with jax.set_mesh(mesh):
        program = Program(objective, mesh)
        workdir.refuse_another_run(directory, objective.config)
        if Checkpoints(directory / "checkpoints", keep=1).steps():
            return
        if config.branch_from and not start.after_trunk:
            resume.branched_state(objective, program)
        elif config.init_from and not config.branch_from:
            resume.initial_weights(objective, program)
