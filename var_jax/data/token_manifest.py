"""The manifest and the records of a token cache; `token_cache` describes the directory."""

import dataclasses
import json
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from var_jax.config.scales import Scales
from var_jax.config.strict import build, plain
from var_jax.errors import UserError

FORMAT = 1


SHORT_VOCABULARY = 2**16


LABEL = np.dtype("<i4")


ROLES = {
    "train": "train_split",
    "test": "eval_split",
}  # directory of the cache: the split's key in the config


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file: its name in the role's directory, how many images it holds, its size."""

    name: str
    images: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """One role of a cache.

    Attributes:
      split: its name in the data set.
      images: in one view.
      views: passes over the split, each with crops of its own.
      shards: by view, then in the split's order; empty until all of them are written.
    """

    split: str
    images: int
    views: int
    shards: tuple[Shard, ...] = ()


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a cache holds.

    Attributes:
      fingerprint: of the tokenizer.
      data, resize, image_shape: data set, transform, and (height, width, channels) in pixels.
      seed: of the crops and flips.
      flip: whether half of the training images are flipped.
      train, test: None where that role was not asked for.
      data_fingerprint: of the images (`sources.Split.fingerprint`); "" in caches that were written
        before they noted it, whose images may have changed since without being noticed.
    """

    fingerprint: str
    data: str
    resize: str
    image_shape: tuple[int, ...]
    scales: Scales
    vocab_size: int
    class_names: tuple[str, ...]
    seed: int
    train: SplitInfo | None = None
    test: SplitInfo | None = None
    format: int = FORMAT
    data_fingerprint: str = ""
    flip: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """All but the splits, plain: what every shard of one cache shares."""
        unset = [key for key in ("data_fingerprint", "flip") if not getattr(self, key)]
        return {key: value for key, value in plain(self).items() if key not in (*ROLES, *unset)}


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= SHORT_VOCABULARY else "<u4")


def record(label: int, tokens: Int[np.ndarray, " L"], vocab_size: int) -> bytes:
    return LABEL.type(label).tobytes() + tokens.astype(token_dtype(vocab_size)).tobytes()


def read_manifest(directory: epath.Path) -> Manifest:
    """The manifest of a cache.

    Raises:
      UserError: there is none, or another program or version wrote it.
    """
    path = directory / "manifest.json"
    if not path.exists():
        raise UserError(
            f"{directory} is no token cache: it has no manifest.json; give what `var-jax tokenize` "
            "wrote"
        )
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} does not read as JSON: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{path} is of no format that this version reads; write the cache again")
    try:
        return build(Manifest, values, "manifest")
    except TypeError as error:  # a key is missing
        raise UserError(f"{path} is incomplete; write the cache again") from error
