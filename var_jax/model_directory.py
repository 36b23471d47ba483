"""Model directories on disk: what `Pipeline.save`, `convert` and `train` leave, and how it is found again."""

import contextlib
import json

from etils import epath
from flax.traverse_util import flatten_dict

from var_jax import checkpoint, whole_file
from var_jax.config import ModelConfig, TokenizerConfig, TransformerConfig, build, differences, plain
from var_jax.errors import UserError
from var_jax.file_kinds import refuse_stand_in
from var_jax.finite import require_finite
from var_jax.published import abstract

FORMAT = 1


def save(directory: epath.Path, config: ModelConfig, params: dict):
    """Writes one `.safetensors` a part, and `model.json` last: a directory without it is not a model.

    A model that is there already stays until all of the new one is on the disk.

    Raises:
      UserError: the directory cannot be written.
    """
    new = {part: directory / f"{part}.safetensors.new" for part in params}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for part, tree in params.items():
            checkpoint.save_arrays(new[part], tree)
        (directory / "model.json").unlink(missing_ok=True)
        for part, path in new.items():
            path.replace(directory / f"{part}.safetensors")
        whole_file.write(directory / "model.json", json.dumps({"format": FORMAT, **plain(config)}, indent=1))
    except OSError as error:
        raise UserError(f"cannot write the model directory {directory}: {error.strerror or error}") from error
    finally:
        for path in new.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def load(directory: epath.Path) -> tuple[ModelConfig, dict]:
    """The configuration and parameters of a model directory or of a training workdir (its averaged weights).

    Raises:
      UserError: there is no such directory, no model in it, its files are damaged, or its weights are not finite.
    """
    if not directory.is_dir():
        raise UserError(f"no model directory {directory}; give a workdir of `train`, or what `convert` wrote")
    if (directory / "model.json").exists():
        config = read_config(directory)
        parts = ["tokenizer", "transformer"] if config.transformer else ["tokenizer"]
        return config, {part: _load_part(directory / f"{part}.safetensors", getattr(config, part)) for part in parts}
    if (directory / "checkpoints").is_dir() and (directory / "config.json").exists():
        return _load_workdir(directory)
    raise UserError(f"{directory} holds no model: neither model.json nor config.json with checkpoints/")


def read_config(directory: epath.Path) -> ModelConfig:
    """The configuration of a directory that `save` wrote.

    Raises:
      UserError: model.json does not read, or is of a later format.
    """
    values = read_json(directory / "model.json")
    if (theirs := values.pop("format", FORMAT)) not in range(1, FORMAT + 1):
        raise UserError(f"{directory / 'model.json'} is of format {theirs!r}, and this version reads 1 to {FORMAT}; "
                        "update var-jax, or save the model again")
    return build(ModelConfig, values, "model")


def read_json(path: epath.Path) -> dict:
    """The object in a JSON file.

    Raises:
      UserError: the file does not read, or holds something else.
    """
    refuse_stand_in(path, "JSON")
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} does not read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; it was not written by this program")
    return value


def _load_part(path: epath.Path, config: TokenizerConfig | TransformerConfig) -> dict:
    params = checkpoint.load_arrays(path)
    theirs = {name: list(array.shape) for name, array in flatten_dict(params, sep="/").items()}
    ours = {name: list(leaf.shape) for name, leaf in abstract(config).items()}
    if other := differences(ours, theirs):
        raise UserError(f"{path} does not fit its model.json: {'; '.join(other[:5])}")
    require_finite(flatten_dict(params, sep="/").items(), str(path))
    return params


def _load_workdir(directory: epath.Path) -> tuple[ModelConfig, dict]:
    run = read_json(directory / "config.json")
    if missing := [key for key in ("stage", "tokenizer", "transformer", "ema") if key not in run]:
        raise UserError(f"{directory / 'config.json'} has no {missing[0]!r}; it was not written by `train`")
    tokenizer, transformer = run["tokenizer"], run["transformer"] if run["stage"] == "transformer" else None
    config = build(ModelConfig, {"tokenizer": tokenizer, "transformer": transformer}, str(directory / "config.json"))
    checkpoints = checkpoint.Checkpoints(directory / "checkpoints", keep=1)
    trained = checkpoints.restore_part("ema" if run["ema"] else "params")
    require_finite(flatten_dict(trained, sep="/").items(), f"the newest checkpoint in {directory / 'checkpoints'}")
    if run["stage"] == "tokenizer":
        return config, {"tokenizer": trained}
    return config, {**load(directory / "tokenizer")[1], "transformer": trained}
