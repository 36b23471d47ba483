"""Readers of JSON files that hold one object, and of the numbers in them."""

import json
import sys
from typing import Any, TypeGuard

from etils import epath

from var_jax.errors import UserError
from var_jax.io.failed_downloads import refuse_failed_download


def read_object(path: epath.PathLike) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
      UserError: the file is missing, cannot be read, or does not hold a JSON object.
    """
    path = epath.Path(path)
    refuse_failed_download(path, "JSON")
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} does not read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; it was not written by this program")
    return value


def read_object_if_exists(path: epath.PathLike) -> dict[str, Any] | None:
    """Returns the object in a JSON file, or None if there is no such file.

    The file may be replaced meanwhile, as by an active run.

    Raises:
      UserError: the file cannot be read, or does not hold a JSON object.
    """
    try:
        return read_object(path)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def read_object_or_none(path: epath.PathLike) -> dict[str, Any] | None:
    """Returns the object in a JSON file, or None if the file is missing or damaged.

    Use it for files whose loss costs nothing, such as caches and progress reports.
    """
    try:
        return read_object(path)
    except UserError:
        return None


def is_number(value: Any) -> TypeGuard[int | float]:
    """Returns whether a value from JSON is a number; booleans are not numbers here."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite_number(value: Any) -> TypeGuard[int | float]:
    """Returns whether a value from JSON is a number that a float can hold."""
    return is_number(value) and abs(value) < sys.float_info.max
