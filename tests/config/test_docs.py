"""The docstrings of the config's dataclasses are the one source of what `var-jax config` says of a
key."""

import dataclasses
from typing import Literal

from ml_collections import ConfigDict

from var_jax.config import docs
from var_jax.config.train import default_config


def leaves(config: ConfigDict, above: str = "") -> list[str]:
    return [
        path
        for key, value in config.items()
        for path in (
            leaves(value, f"{above}{key}.") if isinstance(value, ConfigDict) else [f"{above}{key}"]
        )
    ]


def test_sections_cover_every_key():
    """A key without a meaning would raise, one that a config file cannot set would be in the list
    alone."""
    keys = [key for section in docs.sections() for key in section.keys]
    assert sorted(key.path for key in keys) == sorted(leaves(default_config()))
    assert all(len(key.meaning) > 5 and "\n" not in key.meaning for key in keys)
    assert all(section.about and "\n" not in section.about for section in docs.sections())


def test_sections_meanings_are_the_docstrings():
    """Choices, meanings and those of a base class come from annotations and docstrings."""
    keys = {key.path: key for section in docs.sections() for key in section.keys}
    assert keys["data.resize"].choices == ("crop", "stretch", "pad")
    assert keys["optimizer.base_lr"].meaning.startswith("learning rate at batch 256")
    assert (
        keys["discriminator_optimizer.base_lr"].meaning == keys["optimizer.base_lr"].meaning
    )  # of the base class
    assert keys["transformer.depth"].choices == ()


def test_attribute_docs_entries():
    """An entry may name several fields and go on for several lines, a colon in it is no new entry,
    and text after the section is none."""

    @dataclasses.dataclass
    class Some:
        """What it is.

        Attributes:
          a, b: one of both,
            such as c: this.
          kind: "x" or
            "y".

        More words: none of them a key.
        """

        a: int = 0
        b: int = 0
        kind: Literal["x", "y"] = "x"

    assert docs.attribute_docs(Some) == {
        "a": "one of both, such as c: this.",
        "b": "one of both, such as c: this.",
        "kind": '"x" or "y".',
    }
