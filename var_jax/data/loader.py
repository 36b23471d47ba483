"""Batches by Grain: what step s sees is a function of (seed, s) alone, on any number of hosts, threads or processes."""

import math
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import grain
import numpy as np
from absl import flags

from var_jax.data import transforms
from var_jax.data.sources import Split, open_split
from var_jax.errors import UserError

if TYPE_CHECKING:
    from var_jax.train.config import DataConfig  # for its type alone: data must not depend on training

CACHE_BYTES = 2**28
MAX_THREADS = 16
AHEAD_BYTES = 2**31


class Source(Protocol):
    """Examples at random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class FittedSplit:
    """A split with the transform's fixed part applied; as many results as fit CACHE_BYTES are kept."""

    def __init__(self, split: Split, image_shape: tuple[int, int, int], resize: transforms.Resize):
        self._split = split
        self._image_shape = image_shape
        self._resize: transforms.Resize = resize
        self._kept: dict[int, dict[str, Any]] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        if index in self._kept:
            return self._kept[index]
        example = self._split[index]
        image = transforms.fit(example["image"], self._image_shape, self._resize, f"image {index}")
        fitted = {"image": image, "label": np.int32(example["label"])}
        if self._kept_bytes + image.nbytes <= CACHE_BYTES:
            self._kept[index] = fitted
            self._kept_bytes += image.nbytes
        return fitted

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_kept_bytes": 0}


def train_batches(data: "DataConfig", image_shape: tuple[int, int, int], batch_size: int, seed: int,
                  start_step: int = 0, *, split: Split | None = None,
                  rows: Sequence[int] | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches in random order, reshuffled every epoch, from step `start_step` on.

    Args:
      image_shape: (height, width, channels) that the model takes.
      batch_size: over all hosts; each yields its part.
      split: opened; by default `data.train_split`.
      rows: positions in the batch, ascending, that this host loads; by default all. The batch is the same whoever
        loads which of them.
    Yields:
      {"image": uint8 (rows, height, width, channels), "label": int32 (rows,)}.
    Raises:
      UserError: as `open_split`, a batch that the split does not fill, or an image that does not decode (when its
        batch comes).
    """
    transforms.check(image_shape, data.resize)
    split = open_split(data, data.train_split) if split is None else split

    def cropped(images: grain.MapDataset, seed: int) -> grain.MapDataset:
        return images.random_map(_Crop(image_shape), seed=seed) if data.resize == "crop" else images

    return shuffled(FittedSplit(split, image_shape, data.resize), cropped, batch_size, seed, start_step, rows,
                    name=f"split {data.train_split!r} of {data.name!r}", example_bytes=math.prod(image_shape),
                    workers=data.workers)


def eval_batches(data: "DataConfig", image_shape: tuple[int, int, int], batch_size: int, limit: int = 0,
                 split: "Split | FittedSplit | str | None" = None, *,
                 rows: Sequence[int] | None = None) -> Iterator[dict[str, np.ndarray]]:
    """One pass over a split in its order, centre crops; the last batch is padded.

    Args:
      limit: images at most; 0 for all.
      split: opened, fitted (of several passes, which then share what it keeps) or by name; by default
        `data.eval_split`.
      The others as `train_batches`.
    Yields:
      as `train_batches`, and "mask": bool (rows,), False on padding.
    Raises:
      UserError: as `train_batches`; a split smaller than a batch is none.
    """
    transforms.check(image_shape, data.resize)
    opened = open_split(data, split or data.eval_split) if split is None or isinstance(split, str) else split
    fitted = opened if isinstance(opened, FittedSplit) else FittedSplit(opened, image_shape, data.resize)
    blank = {"image": np.zeros(image_shape, np.uint8), "label": np.int32(0)}
    return in_order(len(opened), _Centred(fitted, image_shape), blank, batch_size, limit, rows,
                    example_bytes=math.prod(image_shape), workers=data.workers)


def shuffled(source: Source | Sequence[Any], vary: Callable[[grain.MapDataset, int], grain.MapDataset],
             batch_size: int, seed: int, start_step: int, rows: Sequence[int] | None, *, name: str, example_bytes: int,
             workers: int) -> Iterator[dict[str, np.ndarray]]:
    """The endless batches of `train_batches` over any source.

    Args:
      vary: what differs from epoch to epoch, of the repeated data set and a seed; what it makes of a place must be a
        function of that place alone.
      rows: as `train_batches`.
      name: of the source, for the message.
      example_bytes: size of an example, which limits how many batches are read ahead.
      workers: processes that read; 0 for threads.
    Raises:
      UserError: the source is smaller than a batch.
    """
    if len(source) < batch_size:
        raise UserError(f"{name} has {len(source)} images, too few for a batch of {batch_size}; lower batch_size")
    # Grain seeds epoch e with seed + e: without the sequence, the epochs of neighbouring seeds would be the same.
    order, varied = np.random.SeedSequence(seed % 2**64).generate_state(2)
    examples = vary(grain.MapDataset.source(source).shuffle(int(order)).repeat(), int(varied))
    batches = _batched(examples, batch_size, rows)
    return read(batches[start_step:], batch_size * example_bytes, workers)


def in_order(length: int, load: Callable[[int], dict[str, Any]], blank: dict[str, Any], batch_size: int, limit: int,
             rows: Sequence[int] | None, *, example_bytes: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
    """The one pass of `eval_batches` over `length` examples; `blank` fills the last batch. The rest as `shuffled`."""
    examples = min(limit, length) if limit else length
    places = grain.MapDataset.range(-(-examples // batch_size) * batch_size)  # every host has as many batches
    batches = _batched(places.map(_Padded(load, examples, blank)), batch_size, rows)
    return read(batches, batch_size * example_bytes, workers)


class Batches(Iterator[dict[str, np.ndarray]]):
    """Grain's iterator, whose threads and processes end with it; `close` ends them earlier."""

    def __init__(self, batches: grain.DatasetIterator):
        self._batches = batches
        # Also at the interpreter's exit, where Grain's own clean-up comes too late and prints tracebacks.
        self.close = weakref.finalize(self, batches.close)

    def __next__(self) -> dict[str, np.ndarray]:
        # Copied out of the shared memory that worker processes hand over: it is freed at once, whoever keeps batches.
        return {key: value if type(value) is np.ndarray else np.array(value) for key, value in
                next(self._batches).items()}


class _Crop(grain.transforms.RandomMap):
    def __init__(self, image_shape: tuple[int, int, int]):
        self._image_shape = image_shape

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**element, "image": transforms.crop(element["image"], self._image_shape, rng)}


class _Centred:
    def __init__(self, source: FittedSplit, image_shape: tuple[int, int, int]):
        self._source = source
        self._image_shape = image_shape

    def __call__(self, index: int) -> dict[str, Any]:
        fitted = self._source[index]
        return {**fitted, "image": transforms.crop(fitted["image"], self._image_shape)}


class _Padded(grain.transforms.Map):
    def __init__(self, load: Callable[[int], dict[str, Any]], length: int, blank: dict[str, Any]):
        self._load = load
        self._length = length
        self._blank = blank

    def map(self, element: int) -> dict[str, Any]:
        inside = element < self._length
        return {**(self._load(element) if inside else self._blank), "mask": np.bool_(inside)}


def _batched(examples: grain.MapDataset, batch_size: int, rows: Sequence[int] | None) -> grain.MapDataset:
    rows = range(batch_size) if rows is None else rows
    return _Rows(examples, batch_size, rows).batch(len(rows), drop_remainder=True)


class _Rows(grain.MapDataset):
    """Of every batch of examples, those at some positions; the others are never read."""

    def __init__(self, examples: grain.MapDataset, batch_size: int, rows: Sequence[int]):
        super().__init__(examples)
        self._batch_size = batch_size
        self._rows = [int(row) for row in rows]

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, len(self._rows))
        return self._parent[batch * self._batch_size + self._rows[place]]


def read(batches: grain.MapDataset, batch_bytes: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches made ahead by threads, or by `workers` processes; in their order."""
    # A thread works on a whole batch; batches come in order whoever is first.
    threads = max(1, min(MAX_THREADS, (os.cpu_count() or 1) // max(1, workers)))
    buffer = max(2, min(threads + 1, AHEAD_BYTES // batch_bytes))
    ahead = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer))
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain asks for a flag of its own, also in programs without absl's
            flags.FLAGS.mark_as_parsed()
        ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return Batches(iter(ahead))
