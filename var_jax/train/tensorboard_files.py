"""The TensorBoard files of a run."""

import logging
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter

from var_jax.io import run_records

EVENTS_UPLOAD_SECONDS = 300.0  # each upload adds a file

log = logging.getLogger(__name__)


def open_board(workdir: epath.Path, purge_step: int) -> "SummaryWriter | BucketBoard":
    """Returns a writer of TensorBoard files, which hides earlier starts from `purge_step` on."""
    directory = workdir / "tensorboard"
    if run_records.in_bucket(workdir):
        return BucketBoard(directory, purge_step)
    return SummaryWriter(str(directory), purge_step=purge_step)


class BucketBoard:
    """TensorBoard files in a bucket; each upload adds a file, and TensorBoard joins them.

    tensorboardX, which writes into buckets too, uploads all events of a run again whenever it
    flushes them.
    """

    def __init__(self, directory: epath.Path, purge_step: int):
        self._directory, self._purge_step = directory, purge_step
        self._local = tempfile.TemporaryDirectory(prefix="var_jax_tensorboard_")
        self._writer: SummaryWriter | None = None
        self._files = 0
        self._uploaded_at = time.monotonic()
        self._adding, self._uploading = threading.Lock(), threading.Lock()

    def add_scalar(self, tag: str, value: Any, step: int):
        with self._adding:
            self._current().add_scalar(tag, value, step)

    def add_image(self, tag: str, image: Any, step: int, dataformats: str):
        with self._adding:
            self._current().add_image(tag, image, step, dataformats=dataformats)

    def flush(self):
        """Starts an upload in a thread if the last one was long ago."""
        if time.monotonic() - self._uploaded_at >= EVENTS_UPLOAD_SECONDS:
            self._uploaded_at = time.monotonic()
            threading.Thread(
                target=self._try_upload, name="var_jax uploads TensorBoard's files", daemon=True
            ).start()

    def upload(self):
        """Uploads the events since the last upload; if it fails, the next one includes them."""
        self._uploaded_at = time.monotonic()
        with self._uploading:
            with self._adding:
                writer, self._writer = self._writer, None
            if writer is not None:
                writer.close()
            for file in sorted(Path(self._local.name).iterdir()):
                (self._directory / file.name).write_bytes(file.read_bytes())
                file.unlink()

    def close(self):
        self.upload()
        self._local.cleanup()

    def _try_upload(self):
        try:
            self.upload()
        except Exception as error:  # from the bucket's library
            log.warning(
                "cannot write in %s, which is tried again: %s",
                self._directory,
                " ".join(str(error).split()),
            )

    def _current(self) -> SummaryWriter:
        if self._writer is None:
            purge_step = self._purge_step if self._files == 0 else None
            # The suffix distinguishes files of the same second, and orders them.
            self._writer = SummaryWriter(
                self._local.name, purge_step=purge_step, filename_suffix=f".{self._files:06d}"
            )
            self._files += 1
        return self._writer
