"""Builds frozen dataclasses from mappings, and names every key or value that is wrong.

`build` is ours because neither ml_collections nor dataclasses checks both the names and the kinds
of nested keys; it turns `--config.transformer.dept=3` into one line that names the key.
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from var_jax.config.scales import Scales
from var_jax.errors import UserError, did_you_mean

# Key of a field's metadata: {value of an earlier version: the value that `build` takes for it}.
RENAMED = "renamed"
LARGEST_INTEGER = 2**63 - 1  # of 64 bits; arrays, checkpoints and JSON readers hold no more


def require(condition: object, name: str, value: Any, expected: str):
    """Raises UserError unless a condition holds.

    Args:
      condition: whether the value is right.
      name: name of the key or flag.
      expected: the right values, in words that follow "it must be".
    """
    if not condition:
        raise UserError(f"{name} is {value}; it must be {expected}")


def require_from_data(name: str, size: int):
    """Raises UserError for a size that is still left to the data (0) where it must be known."""
    require(
        size > 0,
        name,
        "0, which stands for the data's",
        "resolved by the data (`train.data_sizes`), or given",
    )


def require_classes(num_classes: int, num_data_classes: int):
    """Raises UserError unless a transformer has an id for every class of its data."""
    require(
        num_classes >= num_data_classes,
        "transformer.num_classes",
        num_classes,
        f"at least the {num_data_classes} classes of the data",
    )


class MissingKey(UserError):
    """A section without a key that has no default."""


def build(cls: type, mapping: Mapping[str, Any], path: str = "config"):
    """Returns a dataclass `cls` built from nested plain values; every key and kind is checked.

    Values that a field's metadata has as `RENAMED` are taken for those of today.

    Raises:
      UserError: an unknown key (with the closest known one), a value of the wrong kind or a number
        that is not finite; `MissingKey`, where a key without a default is not there.
    """
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in hints:
            raise UserError(f"unknown key {path}.{key}{did_you_mean(key, hints)}")
    for field in dataclasses.fields(cls):
        unset = dataclasses.MISSING
        needed = field.default is unset and field.default_factory is unset
        if needed and field.name not in mapping:
            raise MissingKey(f"{path}.{field.name} is missing; it must be given")
    renamed = {field.name: field.metadata.get(RENAMED, {}) for field in dataclasses.fields(cls)}
    values = {
        key: _convert(hints[key], _today(value, renamed[key]), f"{path}.{key}")
        for key, value in mapping.items()
    }
    instance = cls(**values)
    # Only now, because the class's own checks name the range that is right for a key.
    for key, value in values.items():
        if isinstance(value, int):
            right = f"at most {LARGEST_INTEGER}"
            require(abs(value) <= LARGEST_INTEGER, f"{path}.{key}", f"{value!r:.40}", right)
    return instance


def plain(value: Any) -> Any:
    """Returns a config dataclass as nested dicts, lists and numbers for JSON.

    `build` reads it back.
    """
    if isinstance(value, Scales):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def differences(here: Any, there: Any, path: str = "") -> list[str]:
    """Returns `"a.b: 1 here, 2 there"` for every leaf in which two plain configs differ."""
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        keys = sorted({*here, *there})
        return [
            d
            for key in keys
            for d in differences(here.get(key), there.get(key), f"{path}.{key}".strip("."))
        ]
    return [] if here == there else [f"{path}: {here} here, {there} there"]


def _today(value: Any, renamed: Mapping[str, str]) -> Any:
    """Returns the present form of a value that an earlier version wrote; any other as it is."""
    return renamed.get(value, value) if isinstance(value, str) else value


def _convert(kind: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, path)
    if origin is Literal:
        require(value in args, path, repr(value), " or ".join(map(repr, args)))
        return value
    if kind is Scales:
        require(
            isinstance(value, Scales | str | list | tuple), path, repr(value), "such as '1,2,4'"
        )
        return Scales.parse(value, path)
    if dataclasses.is_dataclass(kind):
        if isinstance(value, kind):
            return value
        require(isinstance(value, Mapping), path, value, "a section of keys")
        return build(kind, value, path)
    if origin is tuple:
        require(isinstance(value, list | tuple), path, value, "a list")
        return tuple(_convert(args[0], item, path) for item in value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        finite = (
            abs(value) <= sys.float_info.max
        )  # false of NaN, and of whole numbers beyond floats
        require(finite, path, f"{value!r:.40}", "a finite number")
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        finite = abs(value) <= sys.float_info.max  # the class's own checks may divide by it
        require(finite, path, f"{value!r:.40}", f"at most {LARGEST_INTEGER}")
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    require(
        right,
        path,
        repr(value),
        {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}.get(
            kind, str(kind)
        ),
    )
    return value
