"""Reads and writes model directories: those of `Pipeline.save`, `convert` and `train`."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from etils import epath
from flax.traverse_util import flatten_dict

from var_jax.config.model import ModelConfig, TokenizerConfig
from var_jax.config.strict import build, differences, plain, require
from var_jax.errors import UserError
from var_jax.io import array_file, atomic, checkpoint
from var_jax.io.finite import require_finite
from var_jax.io.json import read_object
from var_jax.models import init, refiner

MODEL_FORMAT = 1
ADAPTER = "adapter.safetensors"  # the file of an adapter (`adapters.adapter_file`)
REFINER = "logit_refiner.safetensors"  # the file of a refiner (`io.refiner_file`)


def save(directory: epath.Path, config: ModelConfig, params: dict, class_names: Sequence[str] = ()):
    """Writes a model: a `.safetensors` file per part, and `model.json` last.

    A directory without `model.json` is not a model. An earlier model in the same directory stays
    until all of the new one is on the disk.

    Args:
      directory: where to write; it is created if it is missing.
      config: the model's configuration.
      params: {"tokenizer": parameters, "transformer": parameters, "refiner": parameters}; the last
        two are optional.
      class_names: the names of classes by id, written to `data.json` as in a workdir; may be
        empty.
    Raises:
      UserError: the directory cannot be written, or holds an adapter or a refiner.
    """
    if held := _held(directory):  # its data.json is of the images of that run
        raise UserError(f"{directory} holds {held}; save the model to another directory")
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
            directory / "model.json",
            json.dumps({"format": MODEL_FORMAT, **_sections(config)}, indent=1),
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
    """Returns the configuration and parameters of a model directory or of a training workdir.

    A workdir gives its averaged weights.

    Raises:
      UserError: there is no such directory or no model in it, its files are damaged, or its weights
        are not finite.
    """
    if _is_workdir(directory):
        return _load_workdir(directory)
    config = read_config(directory)
    return config, {
        part: _load_part(directory / f"{part}.safetensors", shapes)
        for part, shapes in _part_shapes(config).items()
    }


def load_tokenizer(directory: epath.Path) -> tuple[TokenizerConfig, dict]:
    """Returns the configuration and parameters of a model's tokenizer; reads no other weights.

    Raises:
      UserError: as `load`.
    """
    if not _is_workdir(directory):
        config = read_config(directory).tokenizer
        return config, _load_part(directory / "tokenizer.safetensors", init.param_shapes(config))
    if (directory / "tokenizer" / "model.json").exists():
        return load_tokenizer(directory / "tokenizer")
    config, params = _load_workdir(directory)
    return config.tokenizer, params["tokenizer"]


def load_config(directory: epath.Path) -> ModelConfig:
    """Returns the configuration that `load` would return, without reading weights.

    Raises:
      UserError: there is no such directory, or no model in it.
    """
    return _workdir_config(directory) if _is_workdir(directory) else read_config(directory)


def _is_workdir(directory: epath.Path) -> bool:
    """Returns whether a model's directory is the workdir of a training run.

    Raises:
      UserError: there is no such directory, or no model in it.
    """
    require_directory(directory)
    if (directory / "model.json").exists():
        return False
    if held := _held(directory):
        name = held.split()[-1]
        raise UserError(
            f"{directory} holds {held}, and no model; give the model that it was trained on, "
            f"and this directory as its {name} (--{name} {directory})"
        )
    if (directory / "checkpoints").is_dir() and (directory / "config.json").exists():
        return True
    raise UserError(
        f"{directory} holds no model: neither model.json nor config.json with checkpoints/"
    )


def require_directory(directory: epath.PathLike) -> epath.Path:
    """Returns the path of a model's directory, which has to exist.

    Raises:
      UserError: there is no such directory.
    """
    path = epath.Path(directory)
    if not path.is_dir():
        raise UserError(
            f"no model directory {path}; give a workdir of `train`, or what `convert` wrote"
        )
    return path


def class_names(directory: epath.Path) -> tuple[str, ...]:
    """Returns the class names in a model's `data.json`, by id; empty if it has none.

    Raises:
      UserError: the file cannot be read, or its class names are not a list of names.
    """
    path = directory / "data.json"
    names = read_object(path).get("class_names", []) if path.exists() else []
    right = isinstance(names, list) and all(isinstance(name, str) for name in names)
    require(right, f"class_names in {path}", f"{names!r:.40}", "a list of names")
    return tuple(names)


def read_config(directory: epath.Path) -> ModelConfig:
    """Returns the configuration in a directory that `save` wrote.

    Raises:
      UserError: model.json cannot be read, or is of a later format.
    """
    values = read_object(directory / "model.json")
    file_format = values.pop("format", MODEL_FORMAT)
    if type(file_format) is not int or not 1 <= file_format <= MODEL_FORMAT:
        raise UserError(
            f"{directory / 'model.json'} is of format {file_format!r}, and this version reads 1 to "
            f"{MODEL_FORMAT}; update var-jax, or save the model again"
        )
    return build(ModelConfig, values, "model")


def _held(directory: epath.Path) -> str:
    """Returns what the directory of a run on a frozen model holds, such as "an adapter"; or ""."""
    held = {ADAPTER: "an adapter", REFINER: "a refiner"}
    return next((words for name, words in held.items() if (directory / name).exists()), "")


def _sections(config: ModelConfig) -> dict[str, Any]:
    """Returns a model's plain config; earlier versions read that of a model without a refiner."""
    sections = plain(config)
    if config.refiner is None:
        del sections["refiner"]
    return sections


def _part_shapes(config: ModelConfig) -> dict[str, Any]:
    """Returns the shapes of the parameters of each part that a model has."""
    parts = {"tokenizer": init.param_shapes(config.tokenizer)}
    if config.transformer is not None:
        parts["transformer"] = init.param_shapes(config.transformer)
        if config.refiner is not None:
            parts["refiner"] = refiner.param_shapes(config.refiner, config.transformer)
    return parts


def _load_part(path: epath.Path, shapes: Any) -> dict:
    params = array_file.load_arrays(path)
    arrays = flatten_dict(params, sep="/")
    file_shapes = {name: list(array.shape) for name, array in arrays.items()}
    expected: Any = flatten_dict(shapes, sep="/")
    config_shapes = {name: list(leaf.shape) for name, leaf in expected.items()}
    if different := differences(config_shapes, file_shapes):
        raise UserError(f"{path} does not fit its model.json: {'; '.join(different[:5])}")
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(f"{path}: {name} holds {array.dtype}; weights are floats")
    require_finite(arrays.items(), str(path))
    return params


def _workdir_config(directory: epath.Path) -> ModelConfig:
    run = _run(directory)
    # The workdir of a model that learns a tokenizer's codes has a copy of that tokenizer.
    has_tokenizer = (directory / "tokenizer" / "model.json").exists()
    sections = {
        "tokenizer": run["tokenizer"],
        "transformer": run["transformer"] if has_tokenizer else None,
    }
    return build(ModelConfig, sections, str(directory / "config.json"))


def _run(directory: epath.Path) -> dict[str, Any]:
    """Returns the plain config of a workdir's run."""
    run = read_object(directory / "config.json")
    if missing := [key for key in ("stage", "tokenizer", "transformer", "ema") if key not in run]:
        raise UserError(
            f"{directory / 'config.json'} has no {missing[0]!r}; it was not written by `train`"
        )
    return run


def _load_workdir(directory: epath.Path) -> tuple[ModelConfig, dict]:
    run, config = _run(directory), _workdir_config(directory)
    checkpoints = checkpoint.Checkpoints(directory / "checkpoints", keep=1)
    trained = checkpoints.restore_part("ema" if run["ema"] else "params")
    require_finite(
        flatten_dict(trained, sep="/").items(),
        f"the newest checkpoint in {directory / 'checkpoints'}",
    )
    if config.transformer is None:
        return config, {"tokenizer": trained}
    return config, {**load(directory / "tokenizer")[1], "transformer": trained}
