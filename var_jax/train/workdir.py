"""What a workdir holds beside checkpoints and metrics: the run's settings, and the tokenizer its tokens come from."""

import contextlib
import dataclasses
import json
import os
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from var_jax import model_directory, whole_file
from var_jax.config import ModelConfig, TokenizerConfig, build, differences, plain, require
from var_jax.errors import UserError
from var_jax.train import idle_keys
from var_jax.train.config import TrainConfig
from var_jax.train.meta import run_meta

# May differ between a run and its resumption: how long, how often, on what, in how many parts.
RESUMABLE = (
    "steps", "microbatches", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "keep_steps",
    "eval_images", "mesh", "sample_classes", "tokenizer_dir", "init_from", "branch_from", "data.workers",
    "data.data_dir", "data.tokens_dir", "transformer.attention", "transformer.remat", "tokenizer.remat",
    "transformer.gradient_dtype", "tokenizer.gradient_dtype",
    "loss.perceptual_weights", "loss.perceptual_heads", "adversarial.feature_weights")


# Environment variable of whoever starts a run more than once: the file that stands for this start, beside which a later
# start has one of a greater name.
FENCE = "VAR_JAX_FENCE"
REFUSED = ".refused"  # suffix of the file that tells why such a start ended with exit code 2


def require_newest_start():
    """Raises UserError when the run was started again since this process was ordered, or its order is gone: a job that
    waited for long in a queue must not write where its successor does."""
    if fence := os.environ.get(FENCE):
        own = epath.Path(fence)
        starts = [path.name for path in own.parent.glob(f"*{own.suffix}")] if own.parent.is_dir() else []
        if own.name not in starts:
            raise UserError(f"this start's file {own} is gone, so it ends and leaves the run alone; start it again")
        if (newest := max(starts)) != own.name:
            raise UserError(f"this start {own} was given up for {newest}, so it ends and leaves the run to that one")


def note_refusal(message: str):
    """Leaves beside this start's file why the run ends by the user's mistake, for whoever starts runs again."""
    if fence := os.environ.get(FENCE):
        with contextlib.suppress(OSError):  # the exit code still tells it
            whole_file.write(epath.Path(fence).with_suffix(REFUSED), message)


def frozen_tokenizer(config: TrainConfig, directory: epath.Path) -> tuple[TokenizerConfig, Any]:
    """(config, parameters) of the tokenizer whose tokens a transformer learns: the workdir's copy, else that of the
    token cache, else `tokenizer_dir`.

    Raises:
      UserError: none is given, `tokenizer_dir` holds another one than the run was started with, or the run was started
        again meanwhile.
    """
    require_newest_start()
    kept, given = directory / "tokenizer", config.tokenizer_dir
    if not given and config.data.tokens_dir:
        given = str(epath.Path(config.data.tokens_dir) / "tokenizer")
    if not (kept / "model.json").exists():
        require(bool(given), "tokenizer_dir", repr(given),
                "the model directory of a trained tokenizer (--config.tokenizer_dir=DIR)")
        return _load(epath.Path(given))
    tokenizer, params = _load(kept)
    claimed = directory / "config.json"
    started_with = model_directory.read_json(claimed).get("tokenizer_dir") if claimed.exists() else ""
    if config.tokenizer_dir not in ("", started_with):
        theirs, other = _load(epath.Path(config.tokenizer_dir))
        if theirs != tokenizer or not jax.tree.all(jax.tree.map(np.array_equal, params, other)):
            raise UserError(f"tokenizer_dir {config.tokenizer_dir} holds another tokenizer than the one this run was "
                            f"started with; its copy is in {kept}: leave tokenizer_dir out, or give another --workdir")
    return tokenizer, params


def started_with(directory: epath.Path) -> dict[str, Any] | None:
    """The plain config that the run in a workdir was started with; None where there is none."""
    path = directory / "config.json"
    return model_directory.read_json(path) if path.exists() else None


def refuse_another_run(directory: epath.Path, config: TrainConfig):
    """Raises UserError when the workdir holds a run of other settings, naming every one, or is a later start's."""
    require_newest_start()
    path = directory / "config.json"
    if path.exists():
        theirs = build(TrainConfig, model_directory.read_json(path), str(path))  # keys it does not have yet: defaults
        # Keys of the other stage, which runs could hold before they were refused, make no other run.
        runs = [plain(idle_keys.reset(_in_steps(_at_one_place(run)))) for run in (config, theirs)]
        resumable = RESUMABLE + ("data.source_dir",) * _keeps_content(directory)
        other = [d for d in differences(*runs) if not d.startswith(resumable)]
        if other:
            raise UserError(f"{directory} holds another run; {'; '.join(other)}; "
                            "give another --workdir, or the settings it was started with")


def _keeps_content(directory: epath.Path) -> bool:
    """Whether data.json tells images by their content: then a run's images are compared (`Inputs.require_same`), and
    not the place where they lie, which may be spelled in many ways, or be a staged copy's."""
    path = directory / "data.json"
    return path.exists() and "fingerprint" in model_directory.read_json(path)


def _at_one_place(config: TrainConfig) -> TrainConfig:
    """The run with one spelling of a local source_dir, without a trailing slash and absolute."""
    place = config.data.source_dir
    if place and "://" not in place:
        place = os.path.abspath(os.path.expanduser(place))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source_dir=place))


def _in_steps(config: TrainConfig) -> TrainConfig:
    """The run with times that are shares of its length as the steps they come to: a run that is made longer must not
    lose a discriminator, nor the size of its images, for that."""
    adversarial, progressive, transformer = (
        config.adversarial,
        config.progressive,
        config.transformer,
    )
    if config.adversarial_from is not None:
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


def claim(directory: epath.Path, config: TrainConfig, frozen: Any):
    """Makes the workdir this run's: config.json, meta.json, and the frozen tokenizer's copy.

    Raises:
      UserError: it cannot be written, or the run was started again meanwhile.
    """
    require_newest_start()
    if jax.process_count() > 1:  # nobody reads a copy that is being written
        multihost_utils.sync_global_devices("var_jax: settings read")
    if jax.process_index() != 0:
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if frozen is not None and not (directory / "tokenizer" / "model.json").exists():
            params = {"tokenizer": jax.tree.map(np.asarray, frozen)}
            model_directory.save(directory / "tokenizer", ModelConfig(config.tokenizer), params)
        whole_file.write(directory / "config.json", json.dumps(plain(config), indent=1))
        whole_file.write(directory / "meta.json", json.dumps(run_meta(config), indent=1))
    except OSError as error:
        raise UserError(f"cannot write the workdir {directory}: {error.strerror or error}") from error


def _load(directory: epath.Path) -> tuple[TokenizerConfig, Any]:
    model, params = model_directory.load(directory)
    return model.tokenizer, params["tokenizer"]
