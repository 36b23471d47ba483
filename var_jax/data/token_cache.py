"""Token caches: what `var-jax tokenize` wrote, read in the order and on the hosts of `loader`,
without any image.

A cache is a directory:

  manifest.json            `Manifest`: what was encoded with what, and every shard's name, images
    and bytes
  tokenizer/               model directory of the tokenizer; its codes and phi make the
  transformer's input train/*.array_record     each view of the training split in the split's order,
  cut into shards test/*.array_record      the held-out split, centre crops

A record is one image: its label as a little-endian int32, then its L tokens, coarse to fine, as
little-endian uint16 (uint32 where the vocabulary is larger than 65,536). Shards have one record a
group, as Grain reads them.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import grain
import numpy as np
from etils import epath

from var_jax.config.model import TokenizerConfig
from var_jax.config.strict import differences
from var_jax.data import streams
from var_jax.data.token_manifest import (
    LABEL,
    ROLES,
    Manifest,
    SplitInfo,
    read_manifest,
    token_dtype,
)
from var_jax.errors import UserError

if TYPE_CHECKING:
    from var_jax.config.train import (
        DataConfig,
    )  # for its type alone: data must not depend on training

UNKNOWN_IMAGES = (
    "token cache %s was written before caches noted which images they are of; "
    "whether these changed since cannot be told, and if they have transparency or an EXIF "
    "orientation, its tokens are of pixels without them"
)


class TokenSplit:
    """One role of a cache at random access, by image and view."""

    def __init__(self, directory: epath.Path, info: SplitInfo, manifest: Manifest):
        self._directory, self._info, self._manifest = directory, info, manifest
        self._length = manifest.scales.total
        self._dtype = token_dtype(manifest.vocab_size)
        # With the counts given, no file is opened before it is read.
        self._source = grain.sources.ArrayRecordDataSource(
            [f"{directory / s.name}[0:{s.images}]" for s in info.shards]
        )

    def __reduce__(self):
        return TokenSplit, (
            self._directory,
            self._info,
            self._manifest,
        )  # a worker process opens the files itself

    def __len__(self) -> int:
        return self._info.images

    @property
    def views(self) -> int:
        return self._info.views

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"tokens": int32 (L,), "label": int32} of an image in the first view."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.read(index, 0)

    def read(self, index: int, view: int) -> dict[str, Any]:
        """As `__getitem__`, in any view.

        Raises:
          UserError: the file is damaged.
        """
        try:
            content = self._source[view * len(self) + int(index)]
        except Exception as error:  # array_record raises several kinds
            raise UserError(
                f"{self._directory} has a damaged shard ({' '.join(str(error).split())}); remove "
                "it and run the same `var-jax tokenize` again"
            ) from error
        if len(content) != LABEL.itemsize + self._length * self._dtype.itemsize:
            raise UserError(
                f"{self._directory} has a record of {len(content)} bytes, which is not "
                f"{self._length} tokens; write the cache again"
            )
        tokens = np.frombuffer(content, self._dtype, offset=LABEL.itemsize).astype(np.int32)
        return {"tokens": tokens, "label": np.frombuffer(content, LABEL, 1)[0].astype(np.int32)}


class Cache:
    """An opened cache.

    Attributes:
      directory, manifest: where and what it is.
      tokenizer_directory: model directory of its tokenizer.
    """

    def __init__(self, directory: epath.Path, manifest: Manifest):
        self.directory, self.manifest = directory, manifest
        self.tokenizer_directory = directory / "tokenizer"

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.manifest.class_names

    @property
    def counts(self) -> dict[str, int]:
        """Images of each role that is there."""
        return {
            role: info.images
            for role in ROLES
            if (info := getattr(self.manifest, role)) is not None
        }

    @functools.cached_property
    def train(self) -> TokenSplit:
        return self._split("train")

    @functools.cached_property
    def test(self) -> TokenSplit:
        return self._split("test")

    def check(
        self,
        data: "DataConfig",
        tokenizer: TokenizerConfig | None = None,
        fingerprint: str | None = None,
        data_fingerprint: str | None = None,
    ):
        """Compares with what a run says of its data, and of its tokenizer where it names one.

        Args:
          fingerprint: of the tokenizer.
          data_fingerprint: of the images, where they are at hand; it is not compared with a cache
            that does not note its own.
        Raises:
          UserError: something differs; every difference is named.
        """
        ours, theirs = (
            {"data.name": data.name, "data.resize": data.resize, "data.flip": data.flip},
            self.manifest,
        )
        held = {"data.name": theirs.data, "data.resize": theirs.resize, "data.flip": theirs.flip}
        for role, key in ROLES.items():
            if (info := getattr(theirs, role)) is not None:
                ours[f"data.{key}"], held[f"data.{key}"] = getattr(data, key), info.split
        if tokenizer is not None:
            ours |= {
                "scales": str(tokenizer.scales),
                "vocab_size": tokenizer.vocab_size,
                "image shape": tuple(tokenizer.image_shape),
            }
            held |= {
                "scales": str(theirs.scales),
                "vocab_size": theirs.vocab_size,
                "image shape": tuple(theirs.image_shape),
            }
        if fingerprint is not None:
            ours["tokenizer fingerprint"], held["tokenizer fingerprint"] = (
                fingerprint,
                theirs.fingerprint,
            )
        if data_fingerprint and theirs.data_fingerprint:
            ours["data fingerprint"], held["data fingerprint"] = (
                data_fingerprint,
                theirs.data_fingerprint,
            )
        if different := differences(ours, held):
            if ours.get("data fingerprint") != held.get("data fingerprint"):
                different = [*different, "its images changed since it was written"]
            raise UserError(
                f"token cache {self.directory} is not this run's: {'; '.join(different)}; "
                "give another data.tokens_dir, or the data and settings it was written with"
            )

    def _split(self, role: str) -> TokenSplit:
        info = getattr(self.manifest, role)
        if info is None:
            raise UserError(
                f"token cache {self.directory} has no {role} split; add it by `var-jax tokenize` "
                f"with --splits {role}"
            )
        return TokenSplit(self.directory / role, info, self.manifest)


def open_cache(directory) -> Cache:
    """A cache, its manifest and the sizes of its shards checked.

    Raises:
      UserError: it is none, not finished, or a shard is missing or of another size than when it was
        written.
    """
    directory = epath.Path(directory)
    manifest = read_manifest(directory)
    for role in ROLES:
        if (info := getattr(manifest, role)) is None:
            continue
        if not info.shards:
            raise UserError(
                f"token cache {directory} is not finished; run the same `var-jax tokenize` again"
            )
        sizes = {
            path.name: path.stat().length for path in (directory / role).glob("*.array_record")
        }
        for shard in info.shards:
            if (size := sizes.get(shard.name)) != shard.bytes:
                found = (
                    "is missing" if size is None else f"has {size} bytes instead of {shard.bytes}"
                )
                raise UserError(
                    f"{directory / role / shard.name} {found}; run the same `var-jax tokenize` "
                    "again"
                )
    return Cache(directory, manifest)


def train_batches(
    cache: Cache,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    *,
    workers: int = 0,
    rows: Sequence[int] | None = None,
    processes: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """As `loader.train_batches`, in the same order of images; image i is read in view (epoch + i)
    mod views.

    Yields:
      {"tokens": int32 (rows, L), "label": int32 (rows,)}.
    Raises:
      UserError: no training split, a batch that the split does not fill, or a damaged shard
        (when its batch comes).
    """
    split = cache.train
    return streams.shuffled(
        range(len(split)),
        lambda images, _: images.map_with_index(_View(split)),
        batch_size,
        seed,
        start_step,
        rows,
        name=f"the training split of {cache.directory}",
        example_bytes=4 * cache.manifest.scales.total,
        workers=workers,
        processes=processes,
    )


def eval_batches(
    cache: Cache,
    batch_size: int,
    limit: int = 0,
    *,
    workers: int = 0,
    rows: Sequence[int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """As `loader.eval_batches`, with "tokens" for "image"."""
    split, blank = cache.test, _blank(cache)
    return streams.in_order(
        len(split),
        split.__getitem__,
        blank,
        batch_size,
        limit,
        rows,
        example_bytes=4 * cache.manifest.scales.total,
        workers=workers,
    )


def eval_passes(
    cache: Cache,
    batch_size: int,
    limit: int = 0,
    *,
    workers: int = 0,
    rows: Sequence[int] | None = None,
    processes: int = 1,
) -> streams.Passes:
    """As `loader.eval_passes`, with "tokens" for "image"."""
    split, blank = cache.test, _blank(cache)
    return streams.passes(
        len(split),
        split.__getitem__,
        blank,
        batch_size,
        limit,
        rows,
        example_bytes=4 * cache.manifest.scales.total,
        workers=workers,
        processes=processes,
    )


def _blank(cache: Cache) -> dict[str, Any]:
    """Returns what fills the last batch."""
    return {"tokens": np.zeros(cache.manifest.scales.total, np.int32), "label": np.int32(0)}


class _View(grain.transforms.MapWithIndex):
    """An image's tokens, each view once in as many epochs as there are views, and all views in
    every epoch."""

    def __init__(self, split: TokenSplit):
        self._split = split

    def map_with_index(self, index: int, element: int) -> dict[str, Any]:
        return self._split.read(
            element, (index // len(self._split) + int(element)) % self._split.views
        )
