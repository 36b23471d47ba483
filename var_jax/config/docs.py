"""Meanings of config keys, read from the docstrings of the config's dataclasses, their only source.

`var-jax config` prints them. The parser is our own because it is short: `Attributes:` holds `NAME,
NAME: meaning`, and lines that are indented further go on.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from var_jax.config.model import TransformerConfig
from var_jax.config.scales import Scales
from var_jax.config.train import STAGES, TrainConfig
from var_jax.config.transformer_config import OF_TOKENIZER

ENTRY = re.compile(r"(\w+(?:, \w+)*): (.*)")


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the training config.

    Attributes:
      path: with its section, such as "optimizer.base_lr".
      meaning: the docstring's, on one line.
      choices: the values it may have, where these are few; else empty.
    """

    path: str
    meaning: str
    choices: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of the config: its name ("" for the top level), its subject and its keys."""

    name: str
    about: str
    keys: tuple[Key, ...]


def sections() -> list[Section]:
    """Returns all keys of the training config in the dataclasses' order, the top level first."""
    top, below = [], []
    hints = typing.get_type_hints(TrainConfig)
    meanings = attribute_docs(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        if (section := _dataclass_of(hints[field.name])) is None:
            top.append(_key(field.name, hints[field.name], meanings[field.name]))
        else:
            below.append(_section(field.name, section))
    return [Section("", _first_line(TrainConfig), tuple(top)), *below]


def attribute_docs(cls: type) -> Mapping[str, str]:
    """Returns the meanings of a dataclass's fields and of its bases' fields, by name.

    Names of one entry share its text.
    """
    meanings: dict[str, str] = {}
    for base in reversed(inspect.getmro(cls)):
        lines = inspect.cleandoc(base.__doc__ or "").splitlines()
        start = lines.index("Attributes:") + 1 if "Attributes:" in lines else len(lines)
        names: list[str] = []
        for line in lines[start:]:
            if not line.startswith("  "):
                break
            entry = ENTRY.fullmatch(line.strip())
            if entry and not line.startswith("    "):
                names = entry[1].split(", ")
                meanings |= dict.fromkeys(names, entry[2])
            else:
                meanings |= {name: f"{meanings[name]} {line.strip()}" for name in names}
    return meanings


def _section(name: str, cls: type) -> Section:
    hints, meanings = typing.get_type_hints(cls), attribute_docs(cls)
    # Settings that the transformer takes from the tokenizer are no keys of its own.
    follows = OF_TOKENIZER if cls is TransformerConfig else ()
    keys = (
        _key(f"{name}.{field.name}", hints[field.name], meanings[field.name])
        for field in dataclasses.fields(cls)
        if field.name not in follows
    )
    return Section(name, _first_line(cls), tuple(keys))


def _key(path: str, hint: Any, meaning: str) -> Key:
    choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    if path == "stage":  # objectives that are added have a stage, too
        choices = tuple(STAGES)
    return Key(path, meaning.rstrip("."), choices)


def _dataclass_of(hint: Any) -> type | None:
    """Returns the dataclass that a field holds, also where it may be None."""
    kinds = (
        typing.get_args(hint)
        if typing.get_origin(hint) in (types.UnionType, typing.Union)
        else (hint,)
    )
    sections = (kind for kind in kinds if dataclasses.is_dataclass(kind) and kind is not Scales)
    return next(sections, None)


def _first_line(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")
