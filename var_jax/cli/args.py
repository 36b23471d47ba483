"""Config files with their overrides, and the paths that a command reads and writes."""

import argparse
import importlib.machinery
import importlib.util
import os
import re
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from var_jax.cli import config_file
from var_jax.config import idle_keys
from var_jax.config.strict import require
from var_jax.config.train import TrainConfig, from_config_dict
from var_jax.errors import UserError


def require_apart(
    outputs: Mapping[str, str | None], inputs: Mapping[str, str | None] | None = None
):
    """Checks, before any work, that no output replaces a file that is read, or another output.

    Args:
      outputs: paths by option; None if an option is not given.
      inputs: likewise.

    Raises:
      UserError: two of them are one file; the line names both options and the path.
    """
    taken = {_real(path): option for option, path in (inputs or {}).items() if path}
    for option, path in outputs.items():
        if not path:
            continue
        if other := taken.get(_real(path)):
            raise UserError(f"{option} {path} is the file of {other}; give another one")
        taken[_real(path)] = option


def require_existing_directory(option: str, path: str | None):
    """Checks, before any work, that a file can get the name that an option gives it.

    Raises:
      UserError: its directory does not exist on this machine.
    """
    from etils import epath  # not at import: benchmarks run where it is not installed

    directory = epath.Path(path or "").parent
    require(
        "://" in str(directory) or directory.is_dir(),
        option,
        path,
        "in a directory that exists",
    )


def _real(path: str) -> str:
    return path if "://" in path else os.path.realpath(path)


CONFIG_METAVAR = "FILE[:ARG]"
CONFIG_HELP = (
    "path of a config file, or the name of one that comes with var_jax, such as digits, with its "
    "argument"
)
EXAMPLE = "var_jax.config.train.default_config()"


def add_config_argument(parser: argparse.ArgumentParser):
    """Adds the option `--config FILE[:ARG]`."""
    parser.add_argument(
        "--config",
        required=True,
        metavar=CONFIG_METAVAR,
        help=f"{CONFIG_HELP}; "
        "--config.KEY=VALUE overrides one key, such as --config.optimizer.base_lr=3e-4; "
        "`var-jax config FILE[:ARG]` lists all keys with meanings and defaults",
    )


def read_config(file: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Returns the run that a config file describes, with `--config.key=value` overrides.

    Raises:
      UserError: there is no such file, it does not run, a key is unknown, or a value of the wrong
        kind or out of range.
    """
    return from_config_dict(read_config_dict(file, overrides))


def read_config_dict(file: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Returns the values of `read_config` as they were given, as a ConfigDict.

    Values that follow from others are not filled in.

    Raises:
      UserError: there is no such file, it does not run, a key is unknown, or a value that is no
        value of its key's kind.
    """
    config = call(file, "get_config")
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{file}: get_config returns {type(config).__name__}; it must return a ConfigDict, "
            f"such as {EXAMPLE} makes"
        )
    if isinstance(config, FrozenConfigDict):
        config = cast(ConfigDict, config.as_configdict())
    values, argv = flags.FlagValues(), ["var-jax", *overrides]
    try:
        config_flags.DEFINE_config_dict(
            "config", config, lock_config=True, flag_values=values, sys_argv=argv
        )
        rest = values(argv)
    except (
        Exception
    ) as error:  # whatever a key or value raises, wrapped in the flag library's own errors
        raise UserError(f"{file}: {_override_error(error)}") from error
    if rest[1:]:
        raise UserError(f"unrecognized argument {rest[1]}")
    return values.config


def read_sized_config(file: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Returns the run of `read_config` with the sizes of its tokenizer and of its data filled in.

    Use it for commands that train nothing.

    Raises:
      UserError: as in `read_config`, or the tokenizer or data are needed and not on this machine.
    """
    config = read_config(file, overrides)
    idle_keys.refuse_flags(config, idle_keys.flag_keys(overrides))
    from var_jax.objectives import registry

    config = registry.with_frozen_sizes(config, idle_keys.flag_keys(overrides))
    if not config.left_to_data:
        return config
    from var_jax.train import data_sizes  # it imports the libraries of all data sets

    return data_sizes.from_data(config)


def call(file: str, function: str) -> Any:
    """Returns what `get_config` or `get_sweep` in FILE returns, called with ARG if there is one.

    Raises:
      UserError: there is no such file or function, or the user's code in it raises; the line names
        the place.
    """
    name, colon, arg = file.partition(":")
    path = config_file.find(name)
    module = _run(path)
    getter = getattr(module, function, None)
    if not callable(getter):
        what = {
            "get_config": f"its ConfigDict from it, such as {EXAMPLE} makes",
            "get_sweep": "its list of override dicts from it",
        }[function]
        kind = "no" if getter is None else f"{type(getter).__name__} as its"
        raise UserError(f"{path} has {kind} {function}(); a config file returns {what}")
    try:
        return _guarded(
            path,
            lambda: getter(arg) if colon else getter(),
            f"{function}({repr(arg) if colon else ''})",
        )
    except UserError as error:
        key, equals, value = arg.partition("=")
        if not equals:
            raise
        raise UserError(
            f"{error}; a key is set by --config.{key}={value}, apart from the file"
        ) from error


def _run(path: str) -> types.ModuleType:
    """Returns the config file as a module."""
    loader = importlib.machinery.SourceFileLoader("var_jax_user_config", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    _guarded(path, lambda: loader.exec_module(module), "the file")
    return module


def _guarded(path: str, run: Callable[[], Any], what: str) -> Any:
    """Runs a user's code, and reports its error in one line."""
    try:
        return run()
    except UserError as error:  # a config refuses its argument, say
        raise UserError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == path
        ]
        at = f", line {lines[-1]}" if lines else ""
        raise UserError(f"{path}{at}: {what} ends in {_text(error)}") from error


def _text(error: BaseException) -> str:
    """Returns an error in a few words.

    For an unknown key of a ConfigDict, the list of its known keys is left out.
    """
    text = " ".join(str(error).split())
    if kinds := re.search(
        r"Could not override field '(\w+)' \(reference\)\. (.*) is of original type "
        r"<class '(.*)'> and cannot be casted to type <class '(.*)'>",
        text,
    ):
        key, value, kind, right = kinds.groups()
        right = right.rpartition(".")[2]
        # Python 3.13 has types of pathlib in a private module.
        kind = ".".join(part for part in kind.split(".") if not part.startswith("_"))
        return f"a value of type {kind} for {key} ({value:.40}); it must be of type {right}"
    if unknown := re.search(
        r'Key "(\w+)" does not exist and cannot be added since the config is locked', text
    ):
        return f"unknown key {unknown[1]!r}{_suggested(text)}"
    return f"{type(error).__name__}{': ' if text else ''}{text[:300]}"


def _suggested(text: str) -> str:
    """Returns the flag library's suggestion."""
    close = re.search(r'[Dd]id you mean "(\w+)"', text)
    return f'; did you mean "{close[1]}"?' if close else ""


def _override_error(error: BaseException) -> str:
    """Returns the fault of an override in one line, without the flag library's wrapping."""
    inner = error
    while inner.args and isinstance(inner.args[0], BaseException):
        inner = inner.args[0]
    text = " ".join(str(inner.args[0] if inner.args else inner).split())
    if isinstance(inner, KeyError | AttributeError):
        return f"unknown key {text.replace(' Did you mean', '; did you mean')}"
    return text if isinstance(inner, flags.Error) else f"{type(inner).__name__}: {text}"
