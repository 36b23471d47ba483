"""The idx format of MNIST-like sets: big-endian sizes, then raw bytes; gzipped or not."""

import gzip
import math
import zlib

import numpy as np
from etils import epath

from var_jax.errors import UserError
from var_jax.io.failed_downloads import HEAD_BYTES, failed_download

UNSIGNED_BYTE = 0x08
GZIP = b"\x1f\x8b"


def find(directory: epath.Path, stem: str) -> epath.Path:
    """Returns the path of `stem` or `stem.gz` in the directory.

    Raises:
      UserError: neither exists.
    """
    for path in (directory / stem, directory / f"{stem}.gz"):
        if path.exists():
            return path
    raise UserError(
        f"{directory} holds neither {stem} nor {stem}.gz; data.source_dir must be the idx files' "
        "folder"
    )


def read(path: epath.Path, dimensions: int) -> np.ndarray:
    """Reads the uint8 array in an idx file.

    Raises:
      UserError: the file cannot be read, is damaged, or is not an idx file of unsigned bytes
        with `dimensions` axes.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    # Elsewhere a gzip archive is refused as a stand-in for the file inside; here it is read.
    if content[:2] != GZIP and (kind := failed_download(content[:HEAD_BYTES])):
        raise UserError(f"{path} does not read as an idx file: it is {kind}")
    if content[:2] == GZIP:  # not by name: some mirrors unpack a file and keep its name
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is a damaged gzip file: {error}") from error
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, UNSIGNED_BYTE, dimensions]):
        raise UserError(f"{path} is no idx file of unsigned bytes with {dimensions} dimensions")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, 4))
    if len(content) - start != math.prod(shape):
        raise UserError(
            f"{path} holds {len(content) - start} bytes for the shape {shape}; copy it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
