"""A run's records and status, written to local files or to objects in a bucket.

Local files are appended to and replaced.

A bucket takes complete objects, about one per second and name, and answers in tens of milliseconds:
there a thread uploads the records of the steps, which never wait for it.
"""

import logging
import os
import threading
import time
from collections.abc import Sequence

from etils import epath

from var_jax.io import atomic, run_records

RECORDS_UPLOAD_SECONDS = 5.0
STATUS_SECONDS = 1.0  # between two writes of one object: the highest rate of Google's store
MERGED_PARTS = 32

log = logging.getLogger(__name__)


def open_files(
    workdir: epath.Path, resume_step: int
) -> tuple["LocalFiles | BucketFiles", set[tuple[int, str]]]:
    """Returns a run's files, and the step and split of every record that stays.

    Records after `resume_step` are dropped, because the run takes these steps again, and so is a
    line that a crash cut short.
    """
    lines_by_key = {}
    if (workdir / run_records.FILE).exists() or run_records.parts(workdir):
        before = run_records.read_lines(workdir)
        for line in before:
            name = run_records.key(line)
            if name is not None and isinstance(name[0], int) and name[0] <= resume_step:
                lines_by_key[name] = line
        _merge(workdir, list(lines_by_key.values()))
    if run_records.in_bucket(workdir):
        return BucketFiles(workdir, list(lines_by_key.values())), set(lines_by_key)
    return LocalFiles(workdir), set(lines_by_key)


class LocalFiles:
    """One file of records, which grows by a line per record, and one status."""

    def __init__(self, workdir: epath.Path):
        self._records, self._status = workdir / run_records.FILE, workdir / "status.json"

    def record(self, line: str):
        with self._records.open("a") as file:
            file.write(line + "\n")

    def status(self, text: str, *, at_once: bool = False):
        atomic.write(self._status, text)

    def flush(self):
        """Waits until the records are on the disk, where they survive a loss of power."""
        if self._records.exists():
            with self._records.open("a") as file:
                os.fsync(file.fileno())

    def close(self, *, merge: bool):
        self.flush()


class BucketFiles:
    """Records in parts and a status, uploaded by a thread.

    Args:
      merged: lines of the records in `metrics.jsonl`.
    """

    def __init__(self, workdir: epath.Path, merged: Sequence[str]):
        self._workdir, self._merged = workdir, list(merged)
        self._lines: list[str] = []  # records of this start
        self._uploaded = 0  # number of these that are uploaded
        self._levels: list[list[tuple[int, int]]] = [[]]  # parts, by how often they were merged
        self._status = self._status_uploaded = ""
        self._status_at = -STATUS_SECONDS
        self._uploading = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._upload_often, name="var_jax uploads metrics", daemon=True
        )
        self._thread.start()

    def record(self, line: str):
        self._lines.append(line)

    def status(self, text: str, *, at_once: bool = False):
        self._status = text
        if at_once:
            with self._uploading:
                self._upload_status()

    def flush(self):
        """Returns when all records are in the bucket."""
        with self._uploading:
            self._upload_records()

    def close(self, *, merge: bool):
        """Ends the thread, after everything is in the bucket.

        Args:
          merge: whether all parts are merged into `metrics.jsonl`.
        """
        self._ended.set()
        self._thread.join()
        self.flush()
        self.status(self._status, at_once=True)
        if merge:
            _merge(self._workdir, [*self._merged, *self._lines])

    def _upload_often(self):
        failed = False
        while not self._ended.wait(RECORDS_UPLOAD_SECONDS):
            try:
                with self._uploading:
                    self._upload_records()
                    self._upload_status()
                failed = False
            # From the bucket's library; the next upload may succeed, else `flush` raises it
            except Exception as error:
                if not failed:
                    log.warning(
                        "cannot write in %s, which is tried again: %s",
                        self._workdir,
                        " ".join(str(error).split()),
                    )
                failed = True

    def _upload_records(self):
        end = len(self._lines)
        if end == self._uploaded:
            return
        self._put(self._uploaded, end)
        self._levels[0].append((self._uploaded, end))
        self._uploaded = end
        for level, parts in enumerate(self._levels):
            if len(parts) < MERGED_PARTS:
                break
            self._put(parts[0][0], parts[-1][1])
            if level + 1 == len(self._levels):
                self._levels.append([])
            self._levels[level + 1].append((parts[0][0], parts[-1][1]))
            self._levels[level] = []
            for start, stop in parts:
                run_records.part_path(self._workdir, start, stop).unlink(missing_ok=True)

    def _upload_status(self):
        if (text := self._status) == self._status_uploaded:
            return
        time.sleep(max(0.0, self._status_at + STATUS_SECONDS - time.monotonic()))
        (self._workdir / "status.json").write_text(text)
        self._status_uploaded, self._status_at = text, time.monotonic()

    def _put(self, start: int, stop: int):
        # An object appears complete or not at all, so it needs no temporary name.
        path = run_records.part_path(self._workdir, start, stop)
        path.write_text(_text(self._lines[start:stop]))


def _merge(workdir: epath.Path, lines: Sequence[str]):
    """Writes these lines as the only records, in one file."""
    file, text = workdir / run_records.FILE, _text(lines)
    if not file.exists() or file.read_text() != text:
        atomic.write(file, text)
    for part in run_records.parts(workdir):
        part.unlink(missing_ok=True)
    # A local directory of parts comes with a copy of a bucket.
    if not run_records.in_bucket(workdir) and (workdir / run_records.PARTS).is_dir():
        (workdir / run_records.PARTS).rmdir()


def _text(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
