"""How far ahead batches are read, given the host's processors, memory and shared memory.

A batch is made of pieces, each with some of its rows. Threads and processes work on pieces rather
than whole batches: all of them work on the next batch, and a small multiple of a piece per worker
waits in memory instead of a batch.
"""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from var_jax.errors import UserError

AHEAD_BYTES = 2**31  # per host, whatever its number of processes and workers
STREAMS = 2  # streams of a process at once: training and held-out batches
AHEAD_BATCHES = 4  # batches that are read ahead if memory allows it
PIECE_BYTES = 2**22
MAX_THREADS = 16
SHARED_MEMORY = Path("/dev/shm")
SHARED_PART = (
    2  # at most 1/2 of the free memory: collectives between devices of a host pass through it too
)
# Pieces per worker, with Grain's buffers of one piece: one in the queue between the processes, one
# before it, one in the buffer of the thread that empties the queue, and one before that.
SHARED_PIECES = 4


class Plan(NamedTuple):
    """How one stream of batches is read.

    Attributes:
      workers: processes; 0 for threads of this process.
      threads: threads of each process that reads.
      buffer: pieces that each reading process has ready or in work.
      piece_rows: rows per piece; the last piece of a batch may have fewer.
    """

    workers: int
    threads: int
    buffer: int
    piece_rows: int

    @property
    def pieces(self) -> int:
        """Returns the most pieces that are in memory at once, unfinished ones included."""
        shared = SHARED_PIECES if self.workers else 0
        return max(1, self.workers) * (shared + self.buffer + self.threads)


def available_cpus() -> int:
    """Returns the number of processors that this process may use; the machine may have more."""
    count = getattr(os, "process_cpu_count", None)  # of Python 3.13
    if count is not None:
        return count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan(rows: int, example_bytes: int, workers: int, processes: int = 1) -> Plan:
    """Returns how to read batches so that this host's streams together stay within AHEAD_BYTES.

    If a single row per worker is too much, fewer workers are started, but at least one. Processes
    hand pieces over in shared memory, so pieces are small enough for its free part.

    Args:
      rows: rows of each batch that this process loads.
      example_bytes: size of one row.
      workers: number of processes requested; no more are started than there are processors.
      processes: number of processes of this run on this host, which share the memory.
    Raises:
      UserError: shared memory is too small for the workers, even with pieces of one row.
    """
    cpus = available_cpus()
    budget = AHEAD_BYTES // (STREAMS * processes)
    workers = min(workers, cpus, max(1, budget // ((SHARED_PIECES + 2) * example_bytes)))
    readers = max(1, workers)
    threads = max(1, min(MAX_THREADS, cpus // readers))
    if not workers:
        threads = max(1, min(threads, budget // (2 * example_bytes)))
    shared = SHARED_PIECES if workers else 0
    piece_bytes = min(PIECE_BYTES, budget // (readers * (shared + 2 * threads)))
    if workers:
        piece_bytes = min(
            piece_bytes,
            _shared_bytes(workers, example_bytes, processes) // (workers * SHARED_PIECES),
        )
    piece_rows = min(rows, max(1, piece_bytes // example_bytes))
    pieces_per_batch = -(-rows // piece_rows)
    piece_rows = -(-rows // pieces_per_batch)  # of nearly equal size
    room = budget // (readers * piece_rows * example_bytes) - shared - threads
    buffer = max(
        threads, min(room, max(threads + 1, -(-AHEAD_BATCHES * pieces_per_batch // readers)))
    )
    return Plan(workers, threads, buffer, piece_rows)


def _shared_bytes(workers: int, example_bytes: int, processes: int) -> int:
    """Returns how much shared memory one stream may fill.

    Raises:
      UserError: it is less than the workers need, which a bare SIGBUS would otherwise end.
    """
    if not SHARED_MEMORY.is_dir():  # not Linux: there is no such limit
        return AHEAD_BYTES
    streams = STREAMS * processes
    free = shutil.disk_usage(SHARED_MEMORY).free
    if (share := free // (SHARED_PART * streams)) >= workers * SHARED_PIECES * example_bytes:
        return share
    need = SHARED_PART * streams * workers * SHARED_PIECES * example_bytes
    raise UserError(
        f"data.workers: {workers} processes hand over what they read in {SHARED_MEMORY}, which has "
        f"{_megabytes(free)} MB free; they need at least {_megabytes(need)} MB: mount a larger one "
        "(`docker run --shm-size=8g`; in Kubernetes an emptyDir of medium Memory), or set "
        "data.workers to fewer, 0 for threads"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"
