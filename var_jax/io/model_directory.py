"""Model directories on disk: what `Pipeline.save`, `convert` and `train` leave, and how it is found
again."""

import contextlib
import json
from collections.abc import Sequence

import jax.numpy as jnp
from etils import epath
from flax.traverse_util import flatten_dict

from var_jax.config.model import ModelConfig, TokenizerConfig, TransformerConfig
from var_jax.config.strict import build, differences, plain, require
from var_jax.errors import UserError
from var_jax.io import array_file, atomic, checkpoint
from var_jax.io.file_kinds import refuse_stand_in
from var_jax.io.finite import require_finite
from var_jax.io.torch_keys import abstract

FORMAT = 1


def save(directory: epath.Path, config: ModelConfig, params: dict, class_names: Sequence[str] = ()):
    """Writes one `.safetensors` a part, and `model.json` last: a directory without it is not a
    model.

    Class names, where there are any, go into `data.json`, where a workdir has them.

    A model that is there already stays until all of the new one is on the disk.

    Raises:
      UserError: the directory cannot be written.
    """
    new = {part: directory / f"{part}.safetensors.new" for part in params}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for part, tree in params.items():
            array_file.save_arrays(new[part], tree)
        (directory / "model.json").unlink(missing_ok=True)
        if not (directory / "checkpoints").exists():  # a workdir's data.json is its run's
            (directory / "data.json").unlink(missing_ok=True)
            if class_names:
                names = {"class_names": list(class_names)}
                atomic.write(directory / "data.json", json.dumps(names, indent=1))
        for part, path in new.items():
            path.replace(directory / f"{part}.safetensors")
        atomic.write(
            directory / "model.json", json.dumps({"format": FORMAT, **plain(config)}, indent=1)
        )
    except OSError as error:
        raise UserError(
            f"cannot write the model directory {directory}: {error.strerror or error}"
        ) from error
    finally:
        for path in new.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def load(directory: epath.Path) -> tuple[ModelConfig, dict]:
    """The configuration and parameters of a model directory or of a training workdir (its averaged
    weights).

    Raises:
      UserError: there is no such directory, no model in it, its files are damaged, or its weights
        are not finite.
    """
    existing(directory)
    if (directory / "model.json").exists():
        config = read_config(directory)
        parts = ["tokenizer", "transformer"] if config.transformer else ["tokenizer"]
        return config, {
            part: _load_part(directory / f"{part}.safetensors", getattr(config, part))
            for part in parts
        }
    if (directory / "checkpoints").is_dir() and (directory / "config.json").exists():
        return _load_workdir(directory)
    raise UserError(
        f"{directory} holds no model: neither model.json nor config.json with checkpoints/"
    )


def existing(directory: epath.PathLike) -> epath.Path:
    """The directory of a model.

    Raises:
      UserError: there is none.
    """
    path = epath.Path(directory)
    if not path.is_dir():
        raise UserError(
            f"no model directory {path}; give a workdir of `train`, or what `convert` wrote"
        )
    return path


def class_names(directory: epath.Path) -> tuple[str, ...]:
    """The names of a model's classes, by id, of its `data.json`; empty where it has none.

    Raises:
      UserError: the file does not read, or holds something else than names.
    """
    path = directory / "data.json"
    names = read_json(path).get("class_names", []) if path.exists() else []
    right = isinstance(names, list) and all(isinstance(name, str) for name in names)
    require(right, f"class_names in {path}", f"{names!r:.40}", "a list of names")
    return tuple(names)


def read_config(directory: epath.Path) -> ModelConfig:
    """The configuration of a directory that `save` wrote.

    Raises:
      UserError: model.json does not read, or is of a later format.
    """
    values = read_json(directory / "model.json")
    theirs = values.pop("format", FORMAT)
    if type(theirs) is not int or not 1 <= theirs <= FORMAT:
        raise UserError(
            f"{directory / 'model.json'} is of format {theirs!r}, and this version reads 1 to "
            f"{FORMAT}; update var-jax, or save the model again"
        )
    return build(ModelConfig, values, "model")


def read_json(path: epath.Path) -> dict:
    """The object in a JSON file.

    Raises:
      UserError: the file does not read, or holds something else.
    """
    refuse_stand_in(path, "JSON")
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} does not read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; it was not written by this program")
    return value


def _load_part(path: epath.Path, config: TokenizerConfig | TransformerConfig) -> dict:
    params = array_file.load_arrays(path)
    theirs = {name: list(array.shape) for name, array in flatten_dict(params, sep="/").items()}
    ours = {name: list(leaf.shape) for name, leaf in abstract(config).items()}
    if other := differences(ours, theirs):
        raise UserError(f"{path} does not fit its model.json: {'; '.join(other[:5])}")
    arrays = flatten_dict(params, sep="/")
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(f"{path}: {name} holds {array.dtype}; weights are floats")
    require_finite(arrays.items(), str(path))
    return params


def _load_workdir(directory: epath.Path) -> tuple[ModelConfig, dict]:
    run = read_json(directory / "config.json")
    if missing := [key for key in ("stage", "tokenizer", "transformer", "ema") if key not in run]:
        raise UserError(
            f"{directory / 'config.json'} has no {missing[0]!r}; it was not written by `train`"
        )
    # The workdir of a model that learns a tokenizer's codes carries that tokenizer.
    carried = directory / "tokenizer"
    has_tokenizer = (carried / "model.json").exists()
    sections = {
        "tokenizer": run["tokenizer"],
        "transformer": run["transformer"] if has_tokenizer else None,
    }
    config = build(ModelConfig, sections, str(directory / "config.json"))
    checkpoints = checkpoint.Checkpoints(directory / "checkpoints", keep=1)
    trained = checkpoints.restore_part("ema" if run["ema"] else "params")
    require_finite(
        flatten_dict(trained, sep="/").items(),
        f"the newest checkpoint in {directory / 'checkpoints'}",
    )
    if not has_tokenizer:
        return config, {"tokenizer": trained}
    return config, {**load(carried)[1], "transformer": trained}
