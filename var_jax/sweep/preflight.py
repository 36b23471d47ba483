"""Checks of all runs of a sweep, before it starts, of those that each run makes at its own start.

Keys, tokenizers, token caches, class counts and the images' place are checked. Each run alone finds
out whether its mesh fits its devices, `init_from` fits its model, and its image files decode.
"""

from etils import epath

from var_jax.config import idle_keys
from var_jax.config.strict import require, require_classes
from var_jax.config.train import TrainConfig
from var_jax.data import fingerprints, prepare, sources, token_cache
from var_jax.errors import UserError
from var_jax.io import model_directory
from var_jax.sweep.plan import Run
from var_jax.train import data_sizes
from var_jax.train.workdir import started_with

NO_TOKENIZER = "no run can start yet: both tokenizer_dir and data.tokens_dir are empty"


def without_tokenizer(runs: list[Run]) -> bool:
    """Returns whether no run names a tokenizer, as in a sweep that only estimates its cost."""
    return not any(run.config.tokenizer_dir or run.config.data.tokens_dir for run in runs)


def not_decoded(runs: list[Run]) -> list[str]:
    """Returns a line for each image folder whose files are decoded by runs and not by `check`."""
    folders = {
        run.config.data.source_dir: None
        for run in runs
        if run.config.data.name == "image_folder" and not run.config.data.tokens_dir
    }
    return [
        f"the files of {folder} are listed, not decoded; the first run refuses those that do not "
        "decode, or leaves them out with data.skip_bad_images"
        for folder in folders
    ]


def check(runs: list[Run], *, images_are_here: bool, workdir: str = ""):
    """Checks keys without effect, tokenizers, token caches, class counts and images.

    Data and tokenizers that several runs share are checked once.

    Args:
      runs: the sweep's runs.
      images_are_here: whether this process can see the runs' images, as on this machine.
      workdir: the sweep's directory; runs that were started there before keep their own keys.

    Raises:
      UserError: `train` would refuse a run; the message begins as that of the run would.
    """
    for run in runs:
        _check_keys(run, epath.Path(workdir) / run.id if workdir else None)
    shared = {
        (run.config.data, run.config.tokenizer_dir, run.config.transformer.num_classes): run.config
        for run in runs
        if run.config.transformer is not None
    }
    for config in shared.values():
        _check_data(config, images_are_here=images_are_here)


def _check_keys(run: Run, directory: epath.Path | None):
    flags = idle_keys.flag_keys(run.flags)
    try:
        idle_keys.refuse(run.config)
        idle_keys.refuse_flags(run.config, flags)
    except UserError:  # only then is it checked whether the run was started before with these keys
        started_keys = directory and started_with(directory)
        if not started_keys:
            raise
        idle_keys.refuse(run.config, started_keys)
        idle_keys.refuse_flags(run.config, flags, started_keys)


def _check_data(config: TrainConfig, *, images_are_here: bool):
    data, directory = config.data, config.tokenizer_dir
    if not directory and data.tokens_dir:
        directory = str(epath.Path(data.tokens_dir) / "tokenizer")
    require(
        bool(directory),
        "tokenizer_dir",
        repr(directory),
        "the model directory of a trained tokenizer (--config.tokenizer_dir=DIR)",
    )
    model, params = model_directory.load(epath.Path(directory))
    if not data.tokens_dir:
        if images_are_here:
            sources.require_raw_files(data)
            if data.name in prepare.OWN:  # others may ask a server for their description
                require_classes(config.transformer.num_classes, data_sizes.of_data(data)[1])
        return
    cache = token_cache.open_cache(data.tokens_dir)
    cache.check(
        data,
        model.tokenizer,
        fingerprints.tokenizer_fingerprint(model.tokenizer, params["tokenizer"]),
    )
    require_classes(config.transformer.num_classes, len(cache.class_names))
