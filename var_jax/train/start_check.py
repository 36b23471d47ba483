"""Checks of runs before their first step: settings, frozen networks, mesh, data, first weights."""

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh

from var_jax.config.train import DataConfig, MeshConfig, TrainConfig
from var_jax.data import prepare
from var_jax.devices import platforms, sharding
from var_jax.errors import UserError
from var_jax.io.checkpoint import Checkpoints
from var_jax.objectives.base import Objective
from var_jax.train import mesh_choice, resolve, resume, wandb_board, workdir
from var_jax.train.batches import Inputs, read_kept
from var_jax.train.program import Program


class Start(NamedTuple):
    """A run that a launcher is about to start.

    Attributes:
      directory: its workdir; "" for a new run in any.
      restores: whether the state that it begins with is to be read, too: not that of a trunk
        which is still to be trained, nor on a machine that need not have the memory for it.
    """

    config: TrainConfig
    directory: str
    restores: bool = True


def check_all(
    starts: Sequence[Start], *, on_this_machine: bool, on_these_devices: bool
) -> list[str]:
    """Checks runs as `train` would at their start; no step is compiled, no workdir is written.

    It takes this process's accelerators. A launcher whose runs need these calls it in a process
    that ends before they start.

    Args:
      on_this_machine: whether the runs are processes of this machine. Otherwise images that this
        machine does not have are left to the runs, and so is the package of Weights & Biases.
      on_these_devices: whether the runs have the devices of this process. Otherwise none but a CPU
        is used, and their meshes are left to their own starts.
    Returns:
      a line for each data set that is left to the runs.
    Raises:
      UserError: `train` would refuse a run; the message is that of the run.
    """
    logging.disable(logging.WARNING)  # the runs say it themselves
    if on_these_devices:
        platforms.require_devices()
    else:
        jax.config.update("jax_platforms", "cpu")
    for start in starts if on_this_machine else ():
        wandb_board.require_package(start.config.wandb_project)
    notes = []
    with tempfile.TemporaryDirectory() as scratch:
        for start in starts:
            if not start.directory:
                start = start._replace(directory=f"{scratch}/new")
            objective, mesh = _opened(start, on_these_devices=on_these_devices)
            with jax.set_mesh(mesh):
                data, note = _data_for_check(
                    start.config.data, scratch, on_this_machine=on_this_machine
                )
                _check(start, objective, mesh, data)
            notes += [note] if note else []
    return list(dict.fromkeys(notes))


def _opened(start: Start, *, on_these_devices: bool) -> tuple[Objective[Any], Mesh]:
    """Returns a run's objective and its mesh; one device of this machine in place of another's."""
    directory = epath.Path(start.directory)
    objective = resolve.open_objective(start.config, directory)
    workdir.refuse_another_run(directory, objective.config)
    if on_these_devices:
        return objective, mesh_choice.choose(objective).mesh
    config = dataclasses.replace(objective.config, mesh=MeshConfig(), microbatches=1)
    objective = objective.with_config(config)
    return objective, mesh_choice.choose(objective, jax.devices()[:1]).mesh


def _check(start: Start, objective: Objective[Any], mesh: Mesh, data: DataConfig | None):
    """Checks a run whose objective and mesh are known; None for data that are left to the run."""
    directory, config = epath.Path(start.directory), objective.config
    program = Program(objective, mesh)
    if data is not None:
        rows = sharding.batch_sharding(mesh)
        opened = objective.with_config(dataclasses.replace(config, data=data))
        inputs = Inputs(opened, objective.step_frozen(), rows, read_kept(directory))
        inputs.require_same_on_hosts()
        objective.check_data(inputs.class_names)
        inputs.require_same(directory)
        inputs.train(start_step=0)  # is there a batch?
    if Checkpoints(directory / "checkpoints", keep=1).steps():
        return
    if config.branch_from and start.restores:
        resume.branched_state(objective, program)
    elif config.init_from and not config.branch_from:
        resume.initial_weights(objective, program)


def _data_for_check(
    data: DataConfig, scratch: str, *, on_this_machine: bool
) -> tuple[DataConfig | None, str]:
    """Returns the data config to open, or None and a line that says what is left to the runs."""
    data = dataclasses.replace(data, workers=0)
    if data.tokens_dir:
        return _with_images_at_hand(data, scratch), ""
    if not on_this_machine and not _visible(data):
        return None, f"the images of {data.source_dir or data.name} are left to the runs' machines"
    opened = prepare.for_check(data, scratch, on_this_machine=on_this_machine)
    if opened is not None:
        return opened, ""
    return None, (
        f"the images of {data.source_dir or data.name} are left to the first run, which prepares "
        "them and refuses those that it cannot read"
    )


def _with_images_at_hand(data: DataConfig, scratch: str) -> DataConfig:
    """Returns the config of a token cache, without a source of images that takes long to prepare.

    The images that it leaves are compared with those that were encoded.
    """
    if data.name not in prepare.OWN or (data.name == "image_folder" and not data.source_dir):
        return data
    try:
        images = prepare.for_check(dataclasses.replace(data, tokens_dir=""), scratch)
    except UserError:  # training from a cache needs no images
        images = None
    if images is None:
        return dataclasses.replace(data, source_dir="")
    return dataclasses.replace(data, data_dir=images.data_dir)


def _visible(data: DataConfig) -> bool:
    """Returns whether this machine has the images of a run that another machine makes."""
    if data.name == "digits":  # a part of scikit-learn
        return True
    return bool(data.source_dir) and epath.Path(data.source_dir).expanduser().exists()
