"""Model directories on disk: what `Pipeline.save`, `convert` and `train` leave, and how it is found again."""

import json

from etils import epath

from var_jax import checkpoint
from var_jax.config import ModelConfig, build, plain
from var_jax.errors import UserError

FORMAT = 1


def save(directory: epath.Path, config: ModelConfig, params: dict):
    """Writes one `.safetensors` a part, and `model.json` last: a directory without it is not a model.

    Raises:
      UserError: the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "model.json").unlink(missing_ok=True)
        for part, tree in params.items():
            checkpoint.save_arrays(directory / f"{part}.safetensors", tree)
        text = json.dumps({"format": FORMAT, **plain(config)}, indent=1)
        (directory / "model.json").write_text(text)
    except OSError as error:
        raise UserError(f"cannot write the model directory {directory}: {error.strerror or error}") from error


def load(directory: epath.Path) -> tuple[ModelConfig, dict]:
    """The configuration and parameters of a model directory or of a training workdir (its averaged weights).

    Raises:
      UserError: there is no such directory, no model in it, or its files are damaged.
    """
    if not directory.is_dir():
        raise UserError(f"no model directory {directory}; give a workdir of `train`, or what `convert` wrote")
    if (directory / "model.json").exists():
        config = read_config(directory)
        parts = ["tokenizer", "transformer"] if config.transformer else ["tokenizer"]
        return config, {part: checkpoint.load_arrays(directory / f"{part}.safetensors") for part in parts}
    if (directory / "checkpoints").is_dir() and (directory / "config.json").exists():
        return _load_workdir(directory)
    raise UserError(f"{directory} holds no model: neither model.json nor config.json with checkpoints/")


def read_config(directory: epath.Path) -> ModelConfig:
    """The configuration of a directory that `save` wrote."""
    return build(ModelConfig, {k: v for k, v in read_json(directory / "model.json").items() if k != "format"}, "model")


def read_json(path: epath.Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} does not read as JSON: {error}") from error


def _load_workdir(directory: epath.Path) -> tuple[ModelConfig, dict]:
    run = read_json(directory / "config.json")
    tokenizer, transformer = run["tokenizer"], run["transformer"] if run["stage"] == "transformer" else None
    config = build(ModelConfig, {"tokenizer": tokenizer, "transformer": transformer}, str(directory / "config.json"))
    checkpoints = checkpoint.Checkpoints(directory / "checkpoints", keep=1)
    trained = checkpoints.restore_part("ema" if run["ema"] else "params")
    if run["stage"] == "tokenizer":
        return config, {"tokenizer": trained}
    return config, {**load(directory / "tokenizer")[1], "transformer": trained}
