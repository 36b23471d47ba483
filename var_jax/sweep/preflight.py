"""Checks of all runs of a sweep, before it starts, of those that each run makes at its own start.

Runs on this machine are checked completely. What only another machine can find out is left to the
runs there: whether a mesh fits its devices, and its files where these are not visible here. A large
image folder that no run has copied yet is listed and not decoded; `check` says so.
"""

import concurrent.futures
import multiprocessing
from typing import Any

from etils import epath

from var_jax.config import idle_keys
from var_jax.config.strict import require, require_classes
from var_jax.config.train import DataConfig, TrainConfig
from var_jax.data import fingerprints, prepare, sources, token_cache
from var_jax.errors import UserError
from var_jax.io import model_directory
from var_jax.objectives import frozen_tokenizer
from var_jax.sweep.plan import Run
from var_jax.train import data_sizes, start_check
from var_jax.train.workdir import started_with

NO_TOKENIZER = "no run can start yet: both tokenizer_dir and data.tokens_dir are empty"


def without_tokenizer(runs: list[Run]) -> bool:
    """Returns whether no run names a tokenizer, as in a sweep that only estimates its cost."""
    return not any(run.config.tokenizer_dir or run.config.data.tokens_dir for run in runs)


def check(runs: list[Run], *, on_this_machine: bool, workdir: str) -> list[str]:
    """Checks keys without effect, tokenizers, token caches, images, meshes and initial weights.

    Whatever several runs share is checked once.

    Args:
      runs: the sweep's runs.
      on_this_machine: whether the runs are processes of this machine.
      workdir: the sweep's directory; runs that were started there before keep their own keys.

    Returns:
      a line for each part of the data that is left to the runs.

    Raises:
      UserError: `train` would refuse a run; the message begins as that of the run would.
    """
    for run in runs:
        _check_keys(run, epath.Path(workdir) / run.id)
    shared = {
        (run.config.data, run.config.tokenizer_dir, run.config.transformer.num_classes): run.config
        for run in runs
        if run.config.transformer is not None
    }
    notes = [_check_data(config, on_this_machine=on_this_machine) for config in shared.values()]
    _check_starts(runs, workdir, on_this_machine=on_this_machine)
    return list(dict.fromkeys(note for note in notes if note))


def _check_keys(run: Run, directory: epath.Path):
    flags = idle_keys.flag_keys(run.flags)
    try:
        idle_keys.refuse(run.config)
        idle_keys.refuse_flags(run.config, flags)
    except UserError:  # only then is it checked whether the run was started before with these keys
        started_keys = started_with(directory)
        if not started_keys:
            raise
        idle_keys.refuse(run.config, started_keys)
        idle_keys.refuse_flags(run.config, flags, started_keys)


def _check_data(config: TrainConfig, *, on_this_machine: bool) -> str:
    """Checks a run's tokenizer and data; returns a line if the data are left to the run, or ""."""
    data, directory = config.data, frozen_tokenizer.source(config)
    require(
        bool(directory),
        "tokenizer_dir",
        repr(directory),
        "the model directory of a trained tokenizer (--config.tokenizer_dir=DIR)",
    )
    model, params = model_directory.load(epath.Path(directory))
    if not data.tokens_dir:
        return _check_images(config, on_this_machine=on_this_machine)
    cache = token_cache.open_cache(data.tokens_dir)
    cache.check(
        data,
        model.tokenizer,
        fingerprints.tokenizer_fingerprint(model.tokenizer, params["tokenizer"]),
    )
    require_classes(config.transformer.num_classes, len(cache.class_names))
    return ""


def _check_images(config: TrainConfig, *, on_this_machine: bool) -> str:
    """Checks the images and classes of a run that decodes images; as `_check_data`."""
    data = config.data
    if not on_this_machine and not _visible(data):
        return f"the images of {data.source_dir or data.name} are left to the runs' machines"
    sources.require_raw_files(data)
    require_classes(config.transformer.num_classes, data_sizes.of_data(data)[1])
    if data.name == "image_folder" and not prepare.check_folder(data):
        return (
            f"the files of {data.source_dir} are listed, not decoded; the first run refuses those "
            "that do not decode, or leaves them out with data.skip_bad_images"
        )
    return ""


def _visible(data: DataConfig) -> bool:
    """Returns whether this machine has the data of a run that another machine makes."""
    if data.name == "digits":  # a part of scikit-learn
        return True
    return bool(data.source_dir) and epath.Path(data.source_dir).expanduser().exists()


def _check_starts(runs: list[Run], workdir: str, *, on_this_machine: bool):
    """Checks the models, meshes and initial weights of the runs that have not begun yet.

    It is done in a process that ends before they start: this one would hold accelerators that the
    runs need. Where some have begun, they may have these now, and meshes are left to the others'
    own starts.
    """
    starts: dict[Any, start_check.Start] = {}
    begun = False
    for run in runs:
        directory, config = f"{workdir.rstrip('/')}/{run.id}", run.config
        if started_with(epath.Path(directory)) is not None:
            begun = True
            continue
        key = (
            *(config.transformer, config.tokenizer, config.tokenizer_dir, config.data.tokens_dir),
            *(config.batch_size, config.microbatches, config.mesh, config.ema > 0),
            *(config.init_from, config.branch_from, config.branch_step),
        )
        starts.setdefault(key, start_check.Start(config, directory, bool(run.trunk)))
    if not starts:
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as process:
        here = on_this_machine and not begun
        process.submit(start_check.check_all, list(starts.values()), on_these_devices=here).result()
