"""Batches by Grain: what step s sees is a function of (seed, s) alone, on any number of hosts,
threads or processes."""

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import grain
import numpy as np
from absl import flags

from var_jax.data import readahead, transforms
from var_jax.data.sources import Split, open_split
from var_jax.errors import UserError

if TYPE_CHECKING:
    from var_jax.config.train import (
        DataConfig,
    )  # for its type alone: data must not depend on training

CACHE_BYTES = 2**28  # per split, over all processes that read it
SIGBUS_EXIT = "exit code -7"  # as Grain reports a worker that found no room in shared memory


class Source(Protocol):
    """Examples at random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class FittedSplit:
    """A split with the transform's fixed part applied.

    The results are kept where CACHE_BYTES hold those of the whole split, in every process that
      reads it: of a larger
    split, what one epoch leaves is rarely what the next one asks for first.

    Args:
      processes: that read the split, each with a copy of its own.
    """

    def __init__(
        self,
        split: Split,
        image_shape: tuple[int, int, int],
        resize: transforms.Resize,
        processes: int = 1,
    ):
        self._split = split
        self._image_shape = image_shape
        self._resize: transforms.Resize = resize
        self._room = CACHE_BYTES // processes
        least = math.prod(image_shape) * (transforms.SHORT_SIDE**2 if resize == "crop" else 1)
        self._keeps = len(split) * least <= self._room
        self._kept: dict[int, dict[str, Any]] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        if (kept := self._kept.get(index)) is not None:
            return kept
        example = self._split[index]
        image = transforms.fit(example["image"], self._image_shape, self._resize, f"image {index}")
        fitted = {"image": image, "label": np.int32(example["label"])}
        if self._keeps:
            self._kept[index] = fitted
            self._kept_bytes += image.nbytes
            if (
                self._kept_bytes > self._room
            ):  # long images, which are cropped later, took more than was expected
                self._keeps, self._kept = False, {}
        return fitted

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_kept_bytes": 0}


def train_batches(
    data: "DataConfig",
    image_shape: tuple[int, int, int],
    batch_size: int,
    seed: int,
    start_step: int = 0,
    *,
    split: Split | None = None,
    rows: Sequence[int] | None = None,
    processes: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches in random order, reshuffled every epoch, from step `start_step` on.

    Args:
      image_shape: (height, width, channels) that the model takes.
      batch_size: over all hosts; each yields its part.
      split: opened; by default `data.train_split`.
      rows: positions in the batch, ascending, that this host loads; by default all. The batch is
        the same whoever loads which of them.
      processes: of this run on this host, which share its memory.
    Yields:
      {"image": uint8 (rows, height, width, channels), "label": int32 (rows,)}.
    Raises:
      UserError: as `open_split`, a batch that the split does not fill, too little shared memory for
        `data.workers`, or an image that does not decode (when its batch comes).
    """
    transforms.check(image_shape, data.resize)
    split = open_split(data, data.train_split) if split is None else split

    def varied(images: grain.MapDataset, seed: int) -> grain.MapDataset:
        images = (
            images.random_map(_Crop(image_shape), seed=seed) if data.resize == "crop" else images
        )
        return images.random_map(_Flip(), seed=seed + 1) if data.flip else images

    return shuffled(
        FittedSplit(split, image_shape, data.resize, max(1, data.workers)),
        varied,
        batch_size,
        seed,
        start_step,
        rows,
        name=f"split {data.train_split!r} of {data.name!r}",
        example_bytes=math.prod(image_shape),
        workers=data.workers,
        processes=processes,
    )


def eval_batches(
    data: "DataConfig",
    image_shape: tuple[int, int, int],
    batch_size: int,
    limit: int = 0,
    split: "Split | FittedSplit | str | None" = None,
    *,
    rows: Sequence[int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """One pass over a split in its order, centre crops; the last batch is padded.

    Args:
      limit: images at most; 0 for all.
      split: opened, fitted (of several passes, which then share what it keeps) or by name; by
        default `data.eval_split`.
      The others as `train_batches`.
    Yields:
      as `train_batches`, and "mask": bool (rows,), False on padding.
    Raises:
      UserError: as `train_batches`; a split smaller than a batch is none.
    """
    length, load, blank = _held_out(data, image_shape, split)
    return in_order(
        length,
        load,
        blank,
        batch_size,
        limit,
        rows,
        example_bytes=math.prod(image_shape),
        workers=data.workers,
    )


def eval_passes(
    data: "DataConfig",
    image_shape: tuple[int, int, int],
    batch_size: int,
    limit: int = 0,
    split: "Split | FittedSplit | str | None" = None,
    *,
    rows: Sequence[int] | None = None,
    processes: int = 1,
) -> "Passes":
    """Passes over a split, as many as are asked for, each as `eval_batches`; the same workers read
    all of them."""
    length, load, blank = _held_out(data, image_shape, split)
    return passes(
        length,
        load,
        blank,
        batch_size,
        limit,
        rows,
        example_bytes=math.prod(image_shape),
        workers=data.workers,
        processes=processes,
    )


def _held_out(
    data: "DataConfig", image_shape: tuple[int, int, int], split: "Split | FittedSplit | str | None"
) -> tuple[int, Callable[[int], dict[str, Any]], dict[str, Any]]:
    """Returns the length of a split, what loads an image of it, and the padding."""
    transforms.check(image_shape, data.resize)
    opened = (
        open_split(data, split or data.eval_split)
        if split is None or isinstance(split, str)
        else split
    )
    fitted = (
        opened
        if isinstance(opened, FittedSplit)
        else FittedSplit(opened, image_shape, data.resize, max(1, data.workers))
    )
    blank = {"image": np.zeros(image_shape, np.uint8), "label": np.int32(0)}
    return len(opened), _Centred(fitted, image_shape), blank


def shuffled(
    source: Source | Sequence[Any],
    vary: Callable[[grain.MapDataset, int], grain.MapDataset],
    batch_size: int,
    seed: int,
    start_step: int,
    rows: Sequence[int] | None,
    *,
    name: str,
    example_bytes: int,
    workers: int,
    processes: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """The endless batches of `train_batches` over any source.

    Args:
      vary: what differs from epoch to epoch, of the repeated data set and a seed; what it makes of
        a place must be a function of that place alone.
      rows: as `train_batches`.
      name: of the source, for the message.
      example_bytes: size of an example, which limits how much is read ahead.
      workers: processes that read; 0 for threads.
      processes: as `train_batches`.
    Raises:
      UserError: the source is smaller than a batch, or shared memory too small for the workers.
    """
    if len(source) < batch_size:
        raise UserError(
            f"{name} has {len(source)} images, too few for a batch of {batch_size}; lower "
            "batch_size"
        )
    # Grain seeds epoch e with seed + e: without the sequence, the epochs of neighbouring seeds
    # would be the same.
    order, varied = np.random.SeedSequence(seed % 2**64).generate_state(2)
    examples = vary(grain.MapDataset.source(source).shuffle(int(order)).repeat(), int(varied))
    rows = range(batch_size) if rows is None else rows
    plan = readahead.plan(len(rows), example_bytes, workers, processes)
    return read(examples, batch_size, rows, plan, start_step)


def in_order(
    length: int,
    load: Callable[[int], dict[str, Any]],
    blank: dict[str, Any],
    batch_size: int,
    limit: int,
    rows: Sequence[int] | None,
    *,
    example_bytes: int,
    workers: int,
) -> Iterator[dict[str, np.ndarray]]:
    """The one pass of `eval_batches` over `length` examples; `blank` fills the last batch. The rest
    as `shuffled`."""
    examples = _padded(length, load, blank, batch_size, limit)
    rows = range(batch_size) if rows is None else rows
    return read(examples, batch_size, rows, readahead.plan(len(rows), example_bytes, workers))


def passes(
    length: int,
    load: Callable[[int], dict[str, Any]],
    blank: dict[str, Any],
    batch_size: int,
    limit: int,
    rows: Sequence[int] | None,
    *,
    example_bytes: int,
    workers: int,
    processes: int = 1,
) -> "Passes":
    """Passes over `length` examples, each as `in_order`.

    Raises:
      UserError: shared memory is too small for the workers.
    """
    examples = _padded(length, load, blank, batch_size, limit)
    rows = range(batch_size) if rows is None else rows
    plan = readahead.plan(
        len(rows), example_bytes, workers, processes
    )  # before any stream fills shared memory
    return Passes(
        lambda: read(examples.repeat(), batch_size, rows, plan), len(examples) // batch_size
    )


def _padded(
    length: int,
    load: Callable[[int], dict[str, Any]],
    blank: dict[str, Any],
    batch_size: int,
    limit: int,
) -> grain.MapDataset:
    examples = min(limit, length) if limit else length
    places = grain.MapDataset.range(
        -(-examples // batch_size) * batch_size
    )  # every host has as many batches
    return places.map(_Padded(load, examples, blank))


def read(
    examples: grain.MapDataset,
    batch_size: int,
    rows: Sequence[int],
    plan: readahead.Plan,
    start: int = 0,
) -> "Batches":
    """Batches of examples in their order from batch `start` on, made ahead by the plan's threads or
    processes.

    Args:
      rows: as `train_batches`.
    """
    pieces = _Pieces(examples, batch_size, rows, plan.piece_rows)
    ahead = pieces[start * pieces.per_batch :].to_iter_dataset(
        grain.ReadOptions(num_threads=plan.threads, prefetch_buffer_size=plan.buffer)
    )
    if plan.workers:
        if (
            not flags.FLAGS.is_parsed()
        ):  # Grain asks for a flag of its own, also in programs without absl's
            flags.FLAGS.mark_as_parsed()
        ahead = ahead.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=plan.workers, per_worker_buffer_size=1)
        )
    return Batches(iter(ahead), len(rows), pieces.per_batch)


class Batches(Iterator[dict[str, np.ndarray]]):
    """Batches put together from Grain's iterator over their pieces, whose threads and processes end
    with it; `close` ends them earlier.

    Args:
      rows: of each batch.
      per_batch: pieces that each batch is made of.
    """

    def __init__(self, pieces: grain.DatasetIterator, rows: int, per_batch: int):
        self._pieces, self._rows, self._per_batch = pieces, rows, per_batch
        # Also at the interpreter's exit, where Grain's own clean-up comes too late and prints
        # tracebacks.
        self.close = weakref.finalize(self, pieces.close)

    def __next__(self) -> dict[str, np.ndarray]:
        piece = self._next_piece()
        if self._per_batch == 1:
            # Copied out of the shared memory that workers hand over: it is freed at once, whoever
            # keeps batches.
            return {
                key: value if type(value) is np.ndarray else np.array(value)
                for key, value in piece.items()
            }
        batch = {
            key: np.empty((self._rows, *value.shape[1:]), value.dtype)
            for key, value in piece.items()
        }
        begin = 0
        for number in range(self._per_batch):
            piece = piece if number == 0 else self._next_piece()
            end = begin + len(next(iter(piece.values())))
            for key, value in piece.items():
                batch[key][begin:end] = value
            begin = end
        return batch

    def _next_piece(self) -> dict[str, np.ndarray]:
        try:
            return next(self._pieces)
        except RuntimeError as error:
            if SIGBUS_EXIT not in str(error):
                raise
            raise UserError(
                f"{readahead.SHARED_MEMORY} is full, and processes of data.workers hand over "
                "images there: mount a larger one, or set data.workers to fewer, 0 for threads"
            ) from error


class Passes:
    """Passes over a set, one after the other, whose threads or processes live from the first to the
    last.

    After a pass, the beginning of the next is read ahead. A pass that was left after its first
    batch is taken up again by the next one, so that looking at one batch costs nothing; one that
    was left later is read anew.

    Args:
      open_stream: opens the endless sequence of all passes.
      length: batches per pass.
    """

    def __init__(self, open_stream: Callable[[], Batches], length: int):
        self._open_stream, self._length = open_stream, length
        self._stream: Batches | None = None
        self._place = 0  # batches of the current pass that were read
        self._first: dict[str, np.ndarray] = {}
        self._number = 0  # of passes begun

    def __call__(self) -> Iterator[dict[str, np.ndarray]]:
        """One pass; it ends those begun before it."""
        self._number += 1
        number = self._number
        if self._place == self._length and self._length > 1:
            self._place = 0
        elif self._place > 1:
            self.close()
        for place in range(self._length):
            if number != self._number:
                raise RuntimeError("a pass cannot go on once another one was begun")
            if place == 0 and self._place == 1:
                yield self._first
                continue
            batch = self._next()
            if place == 0:
                self._first = batch
            self._place = place + 1
            yield batch

    def close(self):
        """Ends the threads or processes; the next pass starts them anew."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._place = None, 0

    def _next(self) -> dict[str, np.ndarray]:
        if self._stream is None:
            self._stream = self._open_stream()
        return next(self._stream)


class _Crop(grain.transforms.RandomMap):
    def __init__(self, image_shape: tuple[int, int, int]):
        self._image_shape = image_shape

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**element, "image": transforms.crop(element["image"], self._image_shape, rng)}


class _Flip(grain.transforms.RandomMap):
    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**element, "image": transforms.flip(element["image"], rng)}


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


class _Pieces(grain.MapDataset):
    """Batches of examples in pieces of some rows each; rows that are not asked for are never
    read."""

    def __init__(
        self, examples: grain.MapDataset, batch_size: int, rows: Sequence[int], piece_rows: int
    ):
        super().__init__(examples)
        self._batch_size = batch_size
        rows = [int(row) for row in rows]
        self._rows = [rows[i : i + piece_rows] for i in range(0, len(rows), piece_rows)]

    @property
    def per_batch(self) -> int:
        return len(self._rows)

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, len(self._rows))
        examples = [self._parent[batch * self._batch_size + row] for row in self._rows[place]]
        return {key: np.stack([example[key] for example in examples]) for key in examples[0]}
