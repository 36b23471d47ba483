"""Reading what the user gives: image files as model input, masks, label lists."""

import argparse
import difflib
import glob
import importlib.machinery
import importlib.util
import logging
import os
import re
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from var_jax.config.model import TokenizerConfig
from var_jax.config.train import TrainConfig, from_config_dict
from var_jax.data import image_file, mask_file, transforms
from var_jax.errors import UserError

log = logging.getLogger(__name__)


def read_image(
    path: str, config: TokenizerConfig, resize: transforms.Resize = "crop"
) -> np.ndarray:
    """Returns one image file as float32 (H, W, C) in [-1, 1] at the model's size, upright, and on
    white where it is transparent; one of that size already is taken as it is.

    Raises:
      UserError: the file is missing or does not decode.
    """
    samples = image_file.read(_read(path), path)
    pixels = image_file.pixels_of(samples, path)
    for line in image_file.remarks(samples):
        log.warning("%s %s", path, line)
    return (
        transforms.at_size(pixels, config.image_shape, resize, path).astype(np.float32) / 127.5 - 1
    )


def read_mask(
    path: str, image: str, config: TokenizerConfig, resize: transforms.Resize = "crop"
) -> np.ndarray:
    """Returns a mask file as bool (H, W) at the model's size, True where new content goes: where it
    is white.

    A mask as large as the image file is brought to the model's size as that is; one of any other
    size is taken as drawn over the whole of what the model sees, and stretched. What counts as
      white: `mask_file.levels`.

    Raises:
      UserError: a file is missing or does not decode, or the mask's meaning is not certain.
    """
    pixels = transforms.decode(_read(image), image)
    whiteness = mask_file.levels(_read(path), path, pixels)
    as_large = whiteness.shape == pixels.shape[:2]
    return mask_file.region(whiteness, config.image_shape[:2], resize if as_large else "whole")


def expand(patterns: str | Sequence[str]) -> list[str]:
    """The files of glob patterns, sorted, and of names.

    Raises:
      UserError: there are none.
    """
    found = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        files = sorted(glob.glob(pattern, recursive=True))
        if not files:
            raise UserError(f"no files match {pattern!r}")
        found += files
    return found


def require_apart(
    outputs: Mapping[str, str | None], inputs: Mapping[str, str | None] | None = None
):
    """Checks, before any work, that no output replaces a file that is read, or another output.

    Args:
      outputs: paths by option; None where an option is not given.
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


def _real(path: str) -> str:
    return path if "://" in path else os.path.realpath(path)


def parse_box(text: str) -> tuple[float, float, float, float]:
    """`"y0,x0,y1,x1"` in fractions of height and width."""
    try:
        y0, x0, y1, x1 = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--box {text!r} is not y0,x0,y1,x1, such as 0.25,0.25,0.75,0.75") from None
    if not (0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1):
        raise UserError(f"--box {text!r} is not within the image; 0 <= y0 < y1 <= 1, and so for x")
    return y0, x0, y1, x1


def box_mask(box: Sequence[float], grid: tuple[int, int]) -> np.ndarray:
    """bool (h, w) on the token grid, True inside the box; its edges are rounded to whole tokens."""
    y0, x0, y1, x1 = (round(f * n) for f, n in zip(box, (*grid, *grid), strict=True))
    mask = np.zeros(grid, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def _read(path: str) -> bytes:
    try:
        return epath.Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"no image file {path}") from None
    except OSError as error:  # a directory, a link that leads back to itself, a disk that fails
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


EXAMPLE = "var_jax.config.train.default_config()"
CHECKOUT = Path(__file__).parents[
    2
]  # of the sources; elsewhere, the folder of the installed packages


def add_config_argument(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE.py[:ARG]",
        help="config file, with its argument; "
        "--config.KEY=VALUE overrides one key, such as --config.optimizer.base_lr=3e-4; "
        "`var-jax config FILE.py[:ARG]` lists all keys with meanings and defaults",
    )


def read_config(file: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """The run that a config file describes, with `--config.key=value` overrides.

    Raises:
      UserError: no such file, one that does not run, an unknown key, or a value of the wrong kind
        or out of range.
    """
    return from_config_dict(read_config_dict(file, overrides))


def read_config_dict(file: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """As `read_config`, the values as they were given: those that follow from others are not filled
    in.

    Raises:
      UserError: no such file, one that does not run, an unknown key, or a value that is no value of
        its key's kind.
    """
    config = call(file, "get_config")
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{file}: get_config returns {type(config).__name__}; it must return a ConfigDict, such "
            f"as {EXAMPLE} makes"
        )
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
    """As `read_config`, with the sizes that the file leaves to the data, for commands that train
    nothing.

    Raises:
      UserError: as `read_config`, or the data that would tell are not at hand.
    """
    config = read_config(file, overrides)
    if not config.left_to_data:
        return config
    from var_jax.train import data_sizes  # it brings the libraries of all data sets

    return data_sizes.from_data(config)


def call(file: str, function: str) -> Any:
    """What `get_config` or `get_sweep` of FILE.py[:ARG] returns, given ARG where there is one.

    Raises:
      UserError: there is no such file or function, or the user's code in it raises; the line names
        the place.
    """
    path, colon, arg = file.partition(":")
    module = _run(path)
    found = getattr(module, function, None)
    if not callable(found):
        what = {
            "get_config": f"its ConfigDict from it, such as {EXAMPLE} makes",
            "get_sweep": "its list of override dicts from it",
        }[function]
        kind = "no" if found is None else f"{type(found).__name__} as its"
        raise UserError(f"{path} has {kind} {function}(); a config file returns {what}")
    try:
        return _guarded(
            path,
            lambda: found(arg) if colon else found(),
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
    """The config file as a module."""
    if not os.path.isfile(path):
        raise UserError(f"no config file {path!r}; {_where(path)}")
    loader = importlib.machinery.SourceFileLoader("var_jax_user_config", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    _guarded(path, lambda: loader.exec_module(module), "the file")
    return module


def _where(path: str) -> str:
    """Where a config file may be found that is not where it was looked for."""
    if os.path.lexists(path):
        kind = "a directory" if os.path.isdir(path) else "a link that leads to no file"
        return f"it is {kind}"
    beside = [str(file) for file in Path(path).parent.glob("*.py")]
    if close := difflib.get_close_matches(path, beside, n=1):
        return f"did you mean {close[0]!r}?"
    if (elsewhere := CHECKOUT / path).is_file() and not Path(path).is_absolute():
        return f"there is {elsewhere}"
    return (
        "a wheel has no configs: those of the README lie in the folder configs/ of var_jax's source checkout; "
        "run there, give a path into it, or write a file of your own"
    )


def _guarded(path: str, run: Callable[[], Any], what: str) -> Any:
    """Runs a user's code, and tells in one line what it raises."""
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
    """An error in a few words; a key that a ConfigDict does not have, without the list of all that
    it has."""
    text = " ".join(str(error).split())
    if unknown := re.search(
        r'Key "(\w+)" does not exist and cannot be added since the config is locked', text
    ):
        return f"unknown key {unknown[1]!r}{_suggested(text)}"
    return f"{type(error).__name__}{': ' if text else ''}{text[:300]}"


def _suggested(text: str) -> str:
    """The flag library's suggestion."""
    close = re.search(r'[Dd]id you mean "(\w+)"', text)
    return f'; did you mean "{close[1]}"?' if close else ""


def _override_error(error: BaseException) -> str:
    """What is wrong with an override, in one line: the flag library wraps what a key or value
    raises."""
    inner = error
    while inner.args and isinstance(inner.args[0], BaseException):
        inner = inner.args[0]
    text = " ".join(str(inner.args[0] if inner.args else inner).split())
    if isinstance(inner, KeyError | AttributeError):
        return f"unknown key {text.replace(' Did you mean', '; did you mean')}"
    return text if isinstance(inner, flags.Error) else f"{type(inner).__name__}: {text}"
