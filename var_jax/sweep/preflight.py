"""What a run of a sweep checks before its first step, checked once before any run is started."""

from etils import epath

from var_jax.config import idle_keys
from var_jax.config.strict import require
from var_jax.config.train import TrainConfig
from var_jax.data import fingerprints, sources, token_cache
from var_jax.errors import UserError
from var_jax.io import model_directory
from var_jax.sweep.plan import Run
from var_jax.train.workdir import started_with

NO_TOKENIZER = "no run can start yet: both tokenizer_dir and data.tokens_dir are empty"


def without_tokenizer(runs: list[Run]) -> bool:
    """Returns whether no run names the tokenizer whose tokens it learns, as when only its cost is
    asked for."""
    return not any(run.config.tokenizer_dir or run.config.data.tokens_dir for run in runs)


def check(runs: list[Run], images_are_here: bool, workdir: str = ""):
    """Checks keys without effect, tokenizers, token caches, class counts and images; runs that
    share them are checked once.

    Args:
      workdir: the sweep's directory, whose runs of before go on with what they were started with.
      images_are_here: whether the runs' images lie where this process looks, as on this machine.
    Raises:
      UserError: what `train` would refuse; the line begins as the run's own would.
    """
    for run in runs:
        _check_keys(run, epath.Path(workdir) / run.id if workdir else None)
    shared = {
        (run.config.data, run.config.tokenizer_dir, run.config.transformer.num_classes): run.config
        for run in runs
        if run.config.transformer is not None
    }
    for config in shared.values():
        _check(config, images_are_here)


def _check_keys(run: Run, directory: epath.Path | None):
    flags = idle_keys.flag_keys(run.flags)
    try:
        idle_keys.refuse(run.config)
        idle_keys.refuse_flags(run.config, flags)
    except UserError:  # runs of before are looked for only where something is wrong
        before = directory and started_with(directory)
        if not before:
            raise
        idle_keys.refuse(run.config, before)
        idle_keys.refuse_flags(run.config, flags, before)


def _check(config: TrainConfig, images_are_here: bool):
    data, given = config.data, config.tokenizer_dir
    if not given and data.tokens_dir:
        given = str(epath.Path(data.tokens_dir) / "tokenizer")
    require(
        bool(given),
        "tokenizer_dir",
        repr(given),
        "the model directory of a trained tokenizer (--config.tokenizer_dir=DIR)",
    )
    model, params = model_directory.load(epath.Path(given))
    if not data.tokens_dir:
        if images_are_here:
            sources.require_raw_files(data)
        return
    cache = token_cache.open_cache(data.tokens_dir)
    cache.check(
        data, model.tokenizer, fingerprints.tokenizer_fingerprint(model.tokenizer, params["tokenizer"])
    )
    classes, held = config.transformer.num_classes, len(cache.class_names)
    require(
        classes >= held,
        "transformer.num_classes",
        classes,
        f"at least the {held} classes of the data",
    )
