"""The manifest and the records of a token cache; see `token_cache` for its directory."""

import dataclasses
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from var_jax.config.scales import Scales
from var_jax.config.sections import RENAMED_RESIZE, oldest_resize_name
from var_jax.config.strict import RENAMED, MissingKey, build, plain
from var_jax.errors import UserError
from var_jax.io.json import read_object

MANIFEST_FORMAT = 1


SHORT_VOCABULARY = 2**16


LABEL = np.dtype("<i4")


# What a cache of generated images states in place of a data set and a split.
GENERATED = "generated"


# Directory of the cache: the split's key in the config.
ROLES = {"train": "train_split", "test": "eval_split"}


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a cache: its name in the role's directory, number of images, and size."""

    name: str
    images: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """One role of a cache, "train" or "test".

    Attributes:
      split: the split's name in the data set.
      images: number of images per view.
      views: number of passes over the split, each with its own random crops.
      shards: its files, ordered by view, then as the split; empty until all of them are written.
    """

    split: str
    images: int
    views: int
    shards: tuple[Shard, ...] = ()


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Describes the contents of a cache; saved as `manifest.json`.

    Attributes:
      fingerprint: fingerprint of the tokenizer.
      data, resize, image_shape: data set, resizing, and (height, width, channels) in pixels.
      seed: seed of the crops and flips.
      flip: whether half of the training images are flipped.
      train, test: the two roles; None where one was not requested.
      data_fingerprint: fingerprint of the images (`sources.Split.fingerprint`). It is "" in caches
        of earlier versions, whose images may have changed since without notice.
      generated: fingerprint of the sample set whose tokens are the training split; "" for real
        images. Data set, seed, flips and the images' fingerprint are then those of `test` alone.
    """

    fingerprint: str
    data: str
    resize: str = dataclasses.field(metadata={RENAMED: RENAMED_RESIZE})
    image_shape: tuple[int, ...]
    scales: Scales
    vocab_size: int
    class_names: tuple[str, ...]
    seed: int
    train: SplitInfo | None = None
    test: SplitInfo | None = None
    format: int = MANIFEST_FORMAT
    data_fingerprint: str = ""
    flip: bool = False
    generated: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """All fields except the splits, as plain JSON values; all shards of a cache share them."""
        later = ("data_fingerprint", "flip", "generated")
        unset = [key for key in later if not getattr(self, key)]
        return {key: value for key, value in plain(self).items() if key not in (*ROLES, *unset)}

    @property
    def digest_settings(self) -> dict[str, Any]:
        """The settings as the digests of finished shards have them, which keep first names."""
        return {**self.settings, "resize": oldest_resize_name(self.resize)}


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the dtype of stored tokens: 16 bits if they hold the vocabulary, else 32."""
    return np.dtype("<u2" if vocab_size <= SHORT_VOCABULARY else "<u4")


def record(label: int, tokens: Int[np.ndarray, " L"], vocab_size: int) -> bytes:
    """Returns the stored bytes of one image's label and tokens."""
    return LABEL.type(label).tobytes() + tokens.astype(token_dtype(vocab_size)).tobytes()


def read_manifest(directory: epath.Path) -> Manifest:
    """Reads the manifest of a cache.

    Raises:
      UserError: there is no manifest, or another program or version wrote it.
    """
    path = directory / "manifest.json"
    if not path.exists():
        raise UserError(
            f"{directory} is no token cache: it has no manifest.json; give what `var-jax tokenize` "
            "wrote"
        )
    values = read_object(path)
    if values.get("format") != MANIFEST_FORMAT:
        raise UserError(f"{path} is of no format that this version reads; write the cache again")
    try:
        return build(Manifest, values, "manifest")
    except MissingKey as error:
        raise UserError(f"{path} is incomplete; write the cache again") from error
