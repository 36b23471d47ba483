"""Readers of `.npz` files: whole arrays, or one array's bytes in order."""

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np
from etils import epath

from var_jax.config.strict import require
from var_jax.errors import UserError

# The errors of numpy and zipfile for files that are damaged or of another kind.
DAMAGE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)
LISTED = 5  # arrays in one message


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
