"""Streams of batches over any source of examples, read by Grain.

The batch of step s depends only on (seed, s), for any number of hosts, threads or processes.
`loader` builds these streams over images, and `token_cache` over tokens.
"""

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np
from absl import flags

from var_jax.data import readahead
from var_jax.errors import UserError

SIGBUS_EXIT = "exit code -7"  # in Grain's report of a worker that found shared memory full


class Source(Protocol):
    """A sequence of examples with random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Examples(NamedTuple):
    """The examples of an evaluation, with random access.

    Attributes:
      length: number of examples.
      load: takes an index and returns the example.
      blank: the example that pads the last batch.
      example_bytes: size of an example, which limits how much is read ahead.
    """

    length: int
    load: Callable[[int], dict[str, Any]]
    blank: dict[str, Any]
    example_bytes: int


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
    """Returns endless batches in random order, reshuffled every epoch; see `loader.train_batches`.

    Args:
      source: the examples.
      vary: takes the repeated data set and a seed, and returns the data set with its random
        augmentations, which differ from epoch to epoch; an example may depend only on its position
        and the seed.
      batch_size: as in `loader.train_batches`.
      seed: seeds the order and the augmentations.
      start_step: step whose batch comes first.
      rows: as in `loader.train_batches`.
      name: the source's name, for error messages.
      example_bytes: size of an example, which limits how much is read ahead.
      workers: number of processes that read; 0 for threads.
      processes: as in `loader.train_batches`.
    Raises:
      UserError: the source is smaller than a batch, or shared memory is too small for the workers.
    """
    if len(source) < batch_size:
        raise UserError(
            f"{name} has {len(source)} images, too few for a batch of {batch_size}; give "
            f"--config.batch_size={max(len(source), 1)} or less"
        )
    # Grain seeds epoch e with seed + e: without the seed sequence, runs of neighboring seeds would
    # share epochs.
    order_seed, vary_seed = np.random.SeedSequence(seed % 2**64).generate_state(2)
    examples = vary(
        grain.MapDataset.source(source).shuffle(int(order_seed)).repeat(), int(vary_seed)
    )
    rows = range(batch_size) if rows is None else rows
    plan = readahead.plan(len(rows), example_bytes, workers, processes)
    return read(examples, batch_size, rows, plan, start_step)


def in_order(
    examples: Examples,
    batch_size: int,
    limit: int = 0,
    *,
    rows: Sequence[int] | None = None,
    workers: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns one pass over examples in their order; see `loader.eval_batches`.

    Args:
      examples: the examples.
      batch_size: as in `loader.train_batches`.
      limit: number of examples at most; 0 for all.
      rows: as in `loader.train_batches`.
      workers: number of processes that read; 0 for threads.
    Raises:
      UserError: shared memory is too small for the workers.
    """
    padded = _pad(examples, batch_size, limit)
    rows = range(batch_size) if rows is None else rows
    plan = readahead.plan(len(rows), examples.example_bytes, workers)
    return read(padded, batch_size, rows, plan)


def passes(
    examples: Examples,
    batch_size: int,
    limit: int = 0,
    *,
    rows: Sequence[int] | None = None,
    workers: int,
    processes: int = 1,
) -> "Passes":
    """Returns repeatable passes, each like `in_order`, read by the same workers.

    Arguments are those of `in_order`, and `processes` as in `loader.train_batches`.

    Raises:
      UserError: shared memory is too small for the workers.
    """
    padded = _pad(examples, batch_size, limit)
    rows = range(batch_size) if rows is None else rows
    # Planned once, before any stream fills shared memory.
    plan = readahead.plan(len(rows), examples.example_bytes, workers, processes)

    def open_stream() -> Batches:
        return read(padded.repeat(), batch_size, rows, plan)

    return Passes(open_stream, len(padded) // batch_size)


def _pad(examples: Examples, batch_size: int, limit: int) -> grain.MapDataset:
    """Returns the examples padded to whole batches, as every host must have the same number."""
    count = min(limit, examples.length) if limit else examples.length
    padded_count = math.ceil(count / batch_size) * batch_size
    return grain.MapDataset.range(padded_count).map(_Padded(examples, count))


def read(
    examples: grain.MapDataset,
    batch_size: int,
    rows: Sequence[int],
    plan: readahead.Plan,
    start: int = 0,
) -> "Batches":
    """Returns the batches of a data set from batch `start` on, read ahead by threads or processes.

    Args:
      rows: as in `loader.train_batches`.
      plan: how many threads or processes read, and how far ahead.
    """
    pieces = _Pieces(examples, batch_size, rows, plan.piece_rows)
    remaining: Any = pieces[start * pieces.per_batch :]  # a slice of a data set is one too
    ahead: grain.IterDataset = remaining.to_iter_dataset(
        grain.ReadOptions(num_threads=plan.threads, prefetch_buffer_size=plan.buffer)
    )
    if plan.workers:
        # Grain reads an absl flag of its own, also in programs that do not use absl's flags.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        ahead = ahead.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=plan.workers, per_worker_buffer_size=1)
        )
    return Batches(iter(ahead), len(rows), pieces.per_batch)


class Batches(Iterator[dict[str, np.ndarray]]):
    """Iterator over batches, each joined from pieces that Grain reads.

    Grain's threads and processes end with the iterator; `close` ends them earlier.

    Args:
      pieces: Grain's iterator over the pieces.
      rows: number of rows per batch.
      per_batch: number of pieces per batch.
    """

    def __init__(self, pieces: grain.DatasetIterator, rows: int, per_batch: int):
        self._pieces, self._rows, self._per_batch = pieces, rows, per_batch
        # It runs at the interpreter's exit too, where Grain's own clean-up comes too late and
        # prints stack traces.
        self.close = weakref.finalize(self, pieces.close)

    def __next__(self) -> dict[str, np.ndarray]:
        piece = self._next_piece()
        if self._per_batch == 1:
            # Copied out of the workers' shared memory, which is freed at once even if the caller
            # keeps many batches.
            return {
                key: value if type(value) is np.ndarray else np.array(value)
                for key, value in piece.items()
            }
        batch = {
            key: np.empty((self._rows, *value.shape[1:]), value.dtype)
            for key, value in piece.items()
        }
        start = 0
        for number in range(self._per_batch):
            piece = piece if number == 0 else self._next_piece()
            stop = start + len(next(iter(piece.values())))
            for key, value in piece.items():
                batch[key][start:stop] = value
            start = stop
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
    """Consecutive passes over a data set, read by the same threads or processes.

    After a pass, the beginning of the next one is read ahead. When a pass is abandoned after its
    first batch, the next pass continues it, so that a look at one batch costs nothing; when it is
    abandoned later, the next pass starts anew.

    Args:
      open_stream: opens the endless sequence of all passes.
      length: number of batches per pass.
    """

    def __init__(self, open_stream: Callable[[], Batches], length: int):
        self._open_stream, self._length = open_stream, length
        self._stream: Batches | None = None
        self._place = 0  # number of batches of the current pass that were read
        self._first: dict[str, np.ndarray] = {}
        self._number = 0  # index of the current pass

    def __call__(self) -> Iterator[dict[str, np.ndarray]]:
        """Starts a pass; an earlier one cannot go on after that."""
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
        """Ends the reading threads or processes; the next pass starts new ones."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._place = None, 0

    def _next(self) -> dict[str, np.ndarray]:
        if self._stream is None:
            self._stream = self._open_stream()
        return next(self._stream)


class _Padded(grain.transforms.Map):
    """Adds "mask" to examples, and blank examples after the last one."""

    def __init__(self, examples: Examples, count: int):
        self._examples, self._count = examples, count

    def map(self, element: int) -> dict[str, Any]:
        inside = element < self._count
        example = self._examples.load(element) if inside else self._examples.blank
        return {**example, "mask": np.bool_(inside)}


class _Pieces(grain.MapDataset):
    """The pieces of all batches, each of a few rows; rows of other hosts are never read."""

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
