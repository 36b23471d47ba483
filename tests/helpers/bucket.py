"""An object store in memory that counts requests and bytes, for tests of what lies in a bucket."""

import io
import threading
import time
from collections import Counter
from typing import NamedTuple

import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem


class Request(NamedTuple):
    """A request: "put", "get", "list", "copy" or "delete", its object, and the thread that waits
    for it."""

    kind: str
    name: str
    size: int
    thread: str
    at: float


class Bucket(MemoryFileSystem):
    """A bucket, which takes whole objects only: they appear when they are closed, and none is
    appended to.

    Attributes:
      requests: so far, in their order.
      broken: raised by every "put" while it is set.
    """

    store, pseudo_dirs = {}, [""]
    requests: list[Request] = []
    broken: Exception | None = None

    @classmethod
    def reset(cls):
        cls.store.clear()
        cls.requests.clear()
        cls.broken = None

    @classmethod
    def count(cls, kind: str, name: str = "") -> int:
        return Counter(r.kind for r in cls.requests if name in r.name)[kind]

    @classmethod
    def put_bytes(cls, name: str = "") -> int:
        return sum(r.size for r in cls.requests if r.kind == "put" and name in r.name)

    @classmethod
    def note(cls, kind: str, name: str, size: int = 0):
        cls.requests.append(
            Request(kind, name, size, threading.current_thread().name, time.monotonic())
        )

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("gs://", "/"))

    def _open(self, path, mode="rb", **keywords):
        path = self._strip_protocol(path)
        if mode == "rb":
            self.note("get", path)
            return super()._open(path, mode, **keywords)
        assert mode == "wb", f"a bucket knows no mode {mode!r}"
        if Bucket.broken is not None:
            raise Bucket.broken
        return _Upload(self, path)

    def ls(self, path, detail=True, **keywords):
        self.note("list", path)
        return super().ls(path, detail, **keywords)

    def cp_file(self, path1, path2, **keywords):
        self.note("copy", path2)
        return super().cp_file(path1, path2, **keywords)

    def _rm(self, path):
        self.note("delete", path)
        return super()._rm(path)

    rm_file = _rm

    def rmdir(self, path):
        raise AssertionError("a bucket has no directories to remove")


class _Upload(io.BytesIO):
    def __init__(self, bucket: Bucket, path: str):
        super().__init__()
        self._bucket, self._path = bucket, path

    def close(self):
        if not self.closed:
            content = self.getvalue()
            self._bucket.note("put", self._path, len(content))
            self._bucket.store[self._path] = MemoryFile(self._bucket, self._path, content)
        super().close()


@pytest.fixture
def bucket(monkeypatch) -> epath.Path:
    """A run's directory in an empty bucket."""
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: Bucket(), raising=False)
    Bucket.reset()
    return epath.Path("gs://bucket/run")
