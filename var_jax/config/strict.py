"""TODO config.strict."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from var_jax.config.scales import Scales
from var_jax.errors import UserError, did_you_mean


def require(holds: bool, name: str, value: Any, wanted: str):
    if not holds:
        raise UserError(f"{name} is {value}; it must be {wanted}")


def require_from_data(name: str, size: int):
    """Raises UserError of a size that is still left to the data (0) where it must be known."""
    require(
        size > 0,
        name,
        "0, which stands for the data's",
        "resolved by the data (`train.data_sizes`), or given",
    )


def build(cls: type, mapping: Mapping[str, Any], path: str = "config"):
    """An instance of the dataclass `cls` from nested plain values, every key and kind checked.

    Raises:
      UserError: an unknown key (with the closest known one) or a value of the wrong kind.
    """
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in hints:
            raise UserError(f"unknown key {path}.{key}{did_you_mean(key, hints)}")
    return cls(
        **{key: _convert(hints[key], value, f"{path}.{key}") for key, value in mapping.items()}
    )


def plain(value: Any) -> Any:
    """The nested dicts, lists and numbers of a config dataclass, as JSON takes them; `build` reads
    it back."""
    if isinstance(value, Scales):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """`"a.b: 1 here, 2 there"` for every leaf in which two plain configs differ."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        keys = sorted({*ours, *theirs})
        return [
            d
            for key in keys
            for d in differences(ours.get(key), theirs.get(key), f"{path}.{key}".strip("."))
        ]
    return [] if ours == theirs else [f"{path}: {ours} here, {theirs} there"]


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
        return Scales.parse(value)
    if dataclasses.is_dataclass(kind):
        if isinstance(value, kind):
            return value
        require(isinstance(value, Mapping), path, value, "a section of keys")
        return build(kind, value, path)
    if origin is tuple:
        require(isinstance(value, list | tuple), path, value, "a list")
        return tuple(_convert(args[0], item, path) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
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
