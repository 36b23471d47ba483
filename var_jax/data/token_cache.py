"""Token caches of `var-jax tokenize`, read in the order of `loader` without any image.

A cache is a directory:

  manifest.json          `Manifest`: data set, tokenizer, and every shard's name, images and bytes
  tokenizer/             model directory of the tokenizer, whose codes and phi make the
                         transformer's input
  train/*.array_record   each view of the training split, in the split's order, cut into shards;
                         or generated images (`var-jax generate --tokens-out`)
  test/*.array_record    the held-out split, center-cropped

A record is one image: its label as a little-endian int32, then its L tokens, coarse to fine, as
little-endian uint16 (uint32 where the vocabulary is larger than 65,536). Shards have one record per
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
from var_jax.data import streams, token_manifest
from var_jax.data.token_manifest import (
    LABEL,
    ROLES,
    Manifest,
    SplitInfo,
    read_manifest,
    token_dtype,
)
from var_jax.errors import UserError
from var_jax.io import model_directory
from var_jax.io.tokenizer_fingerprint import tokenizer_fingerprint

if TYPE_CHECKING:
    # Only for its type: data must not depend on training.
    from var_jax.config.train import DataConfig

UNKNOWN_IMAGES = (
    "token cache %s was written before caches noted which images they are of; "
    "whether these changed since cannot be told, and if they have transparency or an EXIF "
    "orientation, its tokens are of pixels without them"
)


class TokenSplit:
    """One role of a cache, with random access by image and view."""

    def __init__(self, directory: epath.Path, info: SplitInfo, manifest: Manifest):
        self._directory, self._info, self._manifest = directory, info, manifest
        self._length = manifest.scales.total
        self._dtype = token_dtype(manifest.vocab_size)
        # With the counts in the names, no file is opened before it is read.
        self._source = grain.sources.ArrayRecordDataSource(
            [f"{directory / s.name}[0:{s.images}]" for s in info.shards]
        )

    def __reduce__(self):
        # A worker process opens the files itself.
        return TokenSplit, (self._directory, self._info, self._manifest)

    def __len__(self) -> int:
        return self._info.images

    @property
    def views(self) -> int:
        """The number of views of every image."""
        return self._info.views

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns {"tokens": int32 (L,), "label": int32} of an image in the first view."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.read(index, 0)

    def read(self, index: int, view: int) -> dict[str, Any]:
        """Returns an image's example, as `__getitem__` does, for any view.

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
    """An opened token cache.

    Attributes:
      directory: the cache's directory.
      manifest: the cache's manifest.
      tokenizer_directory: model directory of its tokenizer.
    """

    def __init__(self, directory: epath.Path, manifest: Manifest):
        self.directory, self.manifest = directory, manifest
        self.tokenizer_directory = directory / "tokenizer"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by id."""
        return self.manifest.class_names

    @property
    def name(self) -> str:
        """The name of the training images: their data set, or "generated:FINGERPRINT"."""
        made = self.manifest.generated
        return f"{token_manifest.GENERATED}:{made}" if made else self.manifest.data

    @property
    def counts(self) -> dict[str, int]:
        """The number of images of each role that the cache has."""
        return {
            role: info.images
            for role in ROLES
            if (info := getattr(self.manifest, role)) is not None
        }

    def read_tokenizer(self) -> tuple[TokenizerConfig, dict]:
        """Returns the config and parameters of the tokenizer whose tokens these are.

        Call it to compare more of it than its fingerprint.

        Raises:
          UserError: the cache's copy cannot be read, or is of another tokenizer.
        """
        tokenizer, params = model_directory.load_tokenizer(self.tokenizer_directory)
        copied, noted = tokenizer_fingerprint(tokenizer, params), self.manifest.fingerprint
        if copied != noted:
            raise UserError(
                f"the tokenizer in {self.tokenizer_directory} has the fingerprint {copied}, and "
                f"the token cache is of {noted}; put that tokenizer back, or write the cache again"
            )
        return tokenizer, params

    @functools.cached_property
    def train(self) -> TokenSplit:
        """The training images.

        Raises:
          UserError: the cache has none.
        """
        return self._split("train")

    @functools.cached_property
    def test(self) -> TokenSplit:
        """The held-out images.

        Raises:
          UserError: the cache has none.
        """
        return self._split("test")

    def check(
        self,
        data: "DataConfig",
        tokenizer: TokenizerConfig | None = None,
        fingerprint: str | None = None,
        data_fingerprint: str | None = None,
    ):
        """Checks that the cache fits a run's data, and its tokenizer if it names one.

        Args:
          data: the run's data.
          tokenizer: the run's tokenizer; None to leave it out of the check.
          fingerprint: fingerprint of the run's tokenizer.
          data_fingerprint: fingerprint of the images, if they are on this machine; it is ignored
            for a cache that does not state its own.
        Raises:
          UserError: something differs; every difference is named.
        """
        manifest = self.manifest
        in_run: dict[str, Any] = {}
        in_cache: dict[str, Any] = {}
        if not manifest.generated or manifest.test is not None:
            in_run |= {"data.name": data.name, "data.resize": data.resize}
            in_cache |= {"data.name": manifest.data, "data.resize": manifest.resize}
        if not manifest.generated:
            in_run["data.flip"], in_cache["data.flip"] = data.flip, manifest.flip
        for role, key in ROLES.items():
            info = getattr(manifest, role)
            # Generated training images are of no split of the run's data.
            if info is not None and not (manifest.generated and role == "train"):
                in_run[f"data.{key}"] = getattr(data, key)
                in_cache[f"data.{key}"] = info.split
        if tokenizer is not None:
            in_run |= {
                "scales": str(tokenizer.scales),
                "vocab_size": tokenizer.vocab_size,
                "image shape": tuple(tokenizer.image_shape),
            }
            in_cache |= {
                "scales": str(manifest.scales),
                "vocab_size": manifest.vocab_size,
                "image shape": tuple(manifest.image_shape),
            }
        if fingerprint is not None:
            in_run["tokenizer fingerprint"] = fingerprint
            in_cache["tokenizer fingerprint"] = manifest.fingerprint
        if data_fingerprint and manifest.data_fingerprint:
            in_run["data fingerprint"] = data_fingerprint
            in_cache["data fingerprint"] = manifest.data_fingerprint
        if different := differences(in_run, in_cache):
            if in_run.get("data fingerprint") != in_cache.get("data fingerprint"):
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
    """Opens a token cache, and checks its manifest and the sizes of its shards.

    Raises:
      UserError: the directory is no token cache, or not finished; or a shard is missing or has
        another size than when it was written.
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
            size = sizes.get(shard.name)
            if size != shard.bytes:
                fault = (
                    "is missing" if size is None else f"has {size} bytes instead of {shard.bytes}"
                )
                raise UserError(
                    f"{directory / role / shard.name} {fault}; run the same `var-jax tokenize` "
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
    """Returns training batches as `loader.train_batches` does, with images in the same order.

    Image i is read in view (epoch + i) mod views.

    Yields:
      {"tokens": int32 (rows, L), "label": int32 (rows,)}.
    Raises:
      UserError: the cache has no training split, the split is smaller than a batch, or a shard is
        damaged (when its batch comes).
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
    """Returns batches as `loader.eval_batches` does, with "tokens" in place of "image"."""
    return streams.in_order(_held_out(cache), batch_size, limit, rows=rows, workers=workers)


def eval_passes(
    cache: Cache,
    batch_size: int,
    limit: int = 0,
    *,
    workers: int = 0,
    rows: Sequence[int] | None = None,
    processes: int = 1,
) -> streams.Passes:
    """Returns passes as `loader.eval_passes` does, with "tokens" in place of "image"."""
    return streams.passes(
        _held_out(cache), batch_size, limit, rows=rows, workers=workers, processes=processes
    )


def _held_out(cache: Cache) -> streams.Examples:
    """Returns the examples of the held-out split."""
    length = cache.manifest.scales.total
    blank = {"tokens": np.zeros(length, np.int32), "label": np.int32(0)}
    return streams.Examples(len(cache.test), cache.test.__getitem__, blank, 4 * length)


class _View(grain.transforms.MapWithIndex):
    """Reads an image's tokens, in another view in each epoch; every epoch mixes all views."""

    def __init__(self, split: TokenSplit):
        self._split = split

    def map_with_index(self, index: int, element: int) -> dict[str, Any]:
        return self._split.read(
            element, (index // len(self._split) + int(element)) % self._split.views
        )
