"""`--config FILE.py[:arg]` with `--config.key=value` overrides, as a checked training configuration."""

import argparse
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

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
    values, argv = flags.FlagValues(), ["var-jax", f"--config={file}", *overrides]
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)
    except FileNotFoundError as error:
        raise UserError(f"no config file {file.partition(':')[0]}") from error
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        text = str(error.args[0] if error.args else error)
        raise UserError(text.splitlines()[0]) from error
    if rest[1:]:
        raise UserError(f"unrecognized argument {rest[1]}")
    return from_config_dict(values.config)
