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

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grain
import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from jaxtyping import Int

from var_jax.config.model import ModelConfig, TokenizerConfig, TransformerConfig
from var_jax.config.scales import Scales
from var_jax.config.strict import build, differences, plain
from var_jax.data import loader
from var_jax.errors import UserError

if TYPE_CHECKING:
    from var_jax.config.train import (
        DataConfig,
    )  # for its type alone: data must not depend on training

FORMAT = 1
SHORT_VOCABULARY = 2**16
LABEL = np.dtype("<i4")
ROLES = {
    "train": "train_split",
    "test": "eval_split",
}  # directory of the cache: the split's key in the config
UNKNOWN_IMAGES = (
    "token cache %s was written before caches noted which images they are of; "
    "whether these changed since cannot be told, and if they have transparency or an EXIF "
    "orientation, its tokens are of pixels without them"
)
# Of the tokenizer's settings; they change no token.
TRAINING_ONLY = (
    "vq_beta",
    "init_codes",
    "init_gain",
    "dropout",
    "quantizer_dropout",
    "quantizer_dropout_from",
    "remat",
)


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


def fingerprint(config: TokenizerConfig, params: Mapping[str, Any]) -> str:
    """Changes with every weight and setting that a token depends on; not with settings that are at
    their default, so that a later version's new ones leave it as it is."""
    defaults = {field.name: plain(field.default) for field in dataclasses.fields(TokenizerConfig)}
    settings = {
        key: value
        for key, value in plain(config).items()
        if key not in TRAINING_ONLY and value != defaults[key]
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, leaf in sorted(flatten_dict(params, sep="/").items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def model_fingerprint(config: ModelConfig, params: dict) -> str:
    """Changes with every weight and size of a model; what only training knows of its tokenizer is
    left out."""
    own = [
        fingerprint(config.tokenizer, params["tokenizer"]),
        _without_training(config.transformer),
    ]
    own += [
        hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()
        for leaf in jax.tree.leaves(params.get("transformer"))
    ]
    return hashlib.sha256("\n".join(own).encode()).hexdigest()[:16]


def _without_training(config: TransformerConfig | None) -> str:
    """A transformer's config as it printed itself before it had the keys of progressive training,
    so that sample sets that were begun then go on."""
    if config is None:
        return repr(None)
    names = [field.name for field in dataclasses.fields(config)]
    kept = [name for name in names if not name.startswith("progressive")]
    return f"TransformerConfig({', '.join(f'{name}={getattr(config, name)!r}' for name in kept)})"


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
    return loader.shuffled(
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
    return loader.in_order(
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
) -> loader.Passes:
    """As `loader.eval_passes`, with "tokens" for "image"."""
    split, blank = cache.test, _blank(cache)
    return loader.passes(
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
