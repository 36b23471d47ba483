"""Readers and writers of `.npz` files: whole arrays, or one array's bytes in order."""

import contextlib
import io
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

import numpy as np
from etils import epath

from var_jax.config.strict import require
from var_jax.errors import UserError
from var_jax.io import atomic

# The errors of numpy and zipfile for files that are damaged or of another kind.
DAMAGE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)
# The earliest time that a zip file can hold: the bytes do not depend on when they are written.
EPOCH = (1980, 1, 1, 0, 0, 0)


class Member(NamedTuple):
    """An open array of an `.npz` file.

    Attributes:
      file: the open file, at the first byte of the values, which are in C's order.
      shape: the array's shape.
      dtype: the array's dtype.
    """

    file: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype


def read_arrays(path: epath.PathLike, *names: str) -> dict[str, np.ndarray]:
    """Returns arrays of an `.npz` file by name. Pickled objects are not read.

    Raises:
      UserError: the file is missing or damaged, or has no such array.
    """
    path = epath.Path(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (*DAMAGE, AttributeError) as error:  # AttributeError: a file of one array, an .npy
        raise UserError(f"{path} does not read as .npz with {', '.join(names)}: {error}") from error


def member_names(path: epath.PathLike) -> list[str]:
    """Returns the names of the arrays in an `.npz` file; none if it does not read."""
    try:
        with epath.Path(path).open("rb") as raw, zipfile.ZipFile(raw) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return []


@contextlib.contextmanager
def open_member(path: epath.PathLike, name: str, hint: str) -> Iterator[Member]:
    """Opens an array of an `.npz` file to read its bytes in order.

    Use it for arrays that may be larger than the memory.

    Args:
      path: the file.
      name: the array's name, without ".npy".
      hint: the expected content of the file, for messages.
    Raises:
      UserError: the file is damaged, has no such array, or holds fewer bytes of it than the array's
        header promises.
    """
    path, member = epath.Path(path), f"{name}.npy"
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
            if member not in archive.namelist():
                others = ", ".join(other.removesuffix(".npy") for other in archive.namelist())
                raise UserError(f"{path} has no {name}, but {others}; {hint}")
            with archive.open(member) as file:
                shape, fortran, dtype = _read_header(file)
                require(not fortran, f"{member} of {path}", "in Fortran's order", "in C's")
                # Checked before anything of that size is allocated. The header of pickled objects
                # does not state their size.
                promised = math.prod(shape) * dtype.itemsize
                size = archive.getinfo(member).file_size - file.tell()
                if size < promised and not dtype.hasobject:
                    raise UserError(
                        f"{path} is cut off: {name} holds {size} bytes of the {promised} that its "
                        "header promises"
                    )
                yield Member(file, shape, dtype)
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{path} does not read as .npz: {error}; {hint}") from error


def _read_header(file: IO[bytes]):
    """Reads (shape, Fortran's order, dtype), and leaves the file at the values."""
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


@contextlib.contextmanager
def new_archive(path: epath.Path, what: str) -> Iterator[zipfile.ZipFile]:
    """Opens an `.npz` file to write it array by array; it appears when it is complete.

    Use it with `write_member` for arrays that may be larger than the memory.

    Args:
      path: the file; its directory is made if it is missing.
      what: the name of the file's content, for messages.
    Raises:
      UserError: the file cannot be written.
    """
    temporary = atomic.temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            temporary.open("wb") as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        ):
            yield archive
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {what} {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_member(archive: zipfile.ZipFile, name: str, parts: Iterable[bytes]):
    """Writes one array from the bytes of its `.npy` file, which may come in parts."""
    with archive.open(zipfile.ZipInfo(f"{name}.npy", EPOCH), "w", force_zip64=True) as member:
        for part in parts:
            member.write(part)


def header_bytes(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Returns the header of an `.npy` file of a C-ordered array, whose bytes follow it."""
    buffer = io.BytesIO()
    fields = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def array_bytes(array: np.ndarray) -> bytes:
    """Returns an array as the content of an `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
