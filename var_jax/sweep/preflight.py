"""Checks, before a sweep starts, what each of its runs would check at its own start.

A sweep that starts on this machine is checked completely, except for images that take long to
prepare. Of runs on other machines, meshes and images that are not here are left to them; their
tokenizers, token caches and initial weights must be visible here, as run ids follow from them.
"""

import concurrent.futures
import dataclasses
import multiprocessing
from typing import Any

from etils import epath

from var_jax.config import idle_keys
from var_jax.errors import RunFailed, UserError
from var_jax.sweep.plan import Run
from var_jax.train import start_check
from var_jax.train.workdir import started_with

NO_TOKENIZER = "no run can start yet: both tokenizer_dir and data.tokens_dir are empty"


def without_tokenizer(runs: list[Run]) -> bool:
    """Returns whether no run names a tokenizer, as in a sweep that only estimates its cost."""
    return not any(run.config.tokenizer_dir or run.config.data.tokens_dir for run in runs)


def check_keys(runs: list[Run], workdir: str):
    """Checks the runs for keys without effect.

    Runs that were started in the sweep's workdir before keep their own keys.

    Raises:
      UserError: `train` would refuse a run, in the same words.
    """
    for run in runs:
        flags = idle_keys.flag_keys(run.flags)
        try:
            idle_keys.refuse(run.config)
            idle_keys.refuse_flags(run.config, flags)
        except UserError:  # only then is it checked whether the run was started with these keys
            started_keys = started_with(epath.Path(workdir) / run.id)
            if not started_keys:
                raise
            idle_keys.refuse(run.config, started_keys)
            idle_keys.refuse_flags(run.config, flags, started_keys)


def check_starts(
    runs: list[Run], workdir: str | None, *, on_this_machine: bool, devices_are_free: bool
) -> list[str]:
    """Checks tokenizers, token caches, images, meshes and initial weights of runs to be started.

    They are checked in a process that ends before the runs start: this one would hold accelerators
    that they need. Runs that differ in nothing that is checked are checked once.

    Args:
      workdir: the sweep's directory; None to take all runs for new ones.
      on_this_machine: whether the runs are processes of this machine.
      devices_are_free: whether no run is live, which would hold this machine's accelerators;
        otherwise meshes are left to the runs.
    Returns:
      a line for each data set that is left to the runs.
    Raises:
      UserError: `train` would refuse a run, in the same words.
    """
    starts: dict[Any, start_check.Start] = {}
    for run in runs:
        directory = "" if workdir is None else f"{workdir.rstrip('/')}/{run.id}"
        start = start_check.Start(run.config, directory, on_this_machine and not run.trunk)
        begun = bool(directory) and started_with(epath.Path(directory)) is not None
        starts.setdefault(run.id if begun else _checked(run), start)
    if not starts:
        return []
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as process:
        checked = process.submit(
            start_check.check_all,
            list(starts.values()),
            on_this_machine=on_this_machine,
            on_these_devices=on_this_machine and devices_are_free,
        )
        try:
            return checked.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise RunFailed(
                "the process that checks the runs ended without a word; it may have been killed "
                "for want of memory"
            ) from error


def _checked(run: Run) -> Any:
    """Returns the settings that the check of a run's start depends on, if it has not begun."""
    config = run.config
    of_schedule = ("seed", "steps", "optimizer", "keep_steps", "log_every", "eval_every")
    return tuple(
        getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in of_schedule
    )
