"""`--config FILE.py[:arg]` with `--config.key=value` overrides, as a checked training configuration."""

import argparse
import os
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from var_jax.errors import UserError
from var_jax.train.config import TrainConfig, from_config_dict


def add_config_argument(parser: argparse.ArgumentParser):
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="configuration; "
                        "--config.KEY=VALUE overrides one key, such as --config.optimizer.base_lr=3e-4")


def read_config(file: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """The run that a config file describes, with `--config.key=value` overrides.

    Raises:
      UserError: no such file, an unknown key, or a value of the wrong kind or out of range.
    """
    path = file.partition(":")[0]
    if not os.path.isfile(path):
        raise UserError(f"no config file {path}")
    values, argv = flags.FlagValues(), ["var-jax", f"--config={file}", *overrides]
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)
    except Exception as error:  # whatever the file or a value raises, wrapped in the flag library's own errors
        raise UserError(f"{file}: {_cause(error)}") from error
    if rest[1:]:
        raise UserError(f"unrecognized argument {rest[1]}")
    if not isinstance(values.config, ConfigDict):
        raise UserError(f"{file}: get_config returns {type(values.config).__name__}; it must return a ConfigDict, such "
                        "as var_jax.train.config.default_config() makes")
    return from_config_dict(values.config)


def _cause(error: BaseException) -> str:
    """What to tell of an error that the flag library may have wrapped, in one line."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    for one in chain:
        if isinstance(one, UserError):
            return str(one)
    inner = error
    while inner.args and isinstance(inner.args[0], BaseException):
        inner = inner.args[0]
    text = " ".join(str(inner.args[0] if inner.args else inner).split())
    if isinstance(inner, KeyError | AttributeError):
        return f"unknown key {text.replace(' Did you mean', '; did you mean')}"
    if isinstance(inner, flags.Error) and "whilst parsing config file" not in text:
        return text
    return f"{type(chain[-1]).__name__}: {chain[-1]}"
