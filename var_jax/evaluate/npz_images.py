"""Images and labels in an `.npz` file, read row by row: samples may be larger than the memory."""

import contextlib
import json
import math
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from var_jax.config.strict import require
from var_jax.errors import UserError

STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")  # arrays in the published reference files


MAX_LABEL = 999_999  # every class up to the largest label has a name


HINT = "it must hold arr_0, uint8 of (images, height, width, 1 or 3 channels)"


def refuse_statistics(path: epath.Path):
    """Raises UserError for a reference file of a published protocol, which holds moments.

    The `arr_0` of such a file is only a part of the images that its `mu` and `sigma` were computed
    from. A distance to that part would differ from the published one, under the same name.
    """
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
            members = [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return  # `open_member` reports what is wrong with it
    if statistics := [name for name in members if name in STATISTICS]:
        raise UserError(
            f"{path} holds the statistics {', '.join(statistics)} of a published protocol, which "
            "this version does not read; its arr_0, if it has one, is a part of the images that "
            "they are of. Give the real images themselves: a directory, DATASET:SPLIT, or an .npz "
            "of arr_0 alone"
        )


@contextlib.contextmanager
def open_member(path: epath.Path, name: str) -> Iterator[tuple[Any, tuple[int, ...], np.dtype]]:
    """Opens an array of an `.npz` file, to read its bytes in order: (file, shape, dtype).

    Raises:
      UserError: the file is damaged, has no such array, or fewer bytes of it than the array's
        header promises.
    """
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
            if name not in archive.namelist():
                others = ", ".join(other.removesuffix(".npy") for other in archive.namelist()[:5])
                raise UserError(f"{path} has no {name.removesuffix('.npy')}, but {others}; {HINT}")
            with archive.open(name) as file:
                version = np.lib.format.read_magic(file)
                header = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, fortran, dtype = header(file)
                require(not fortran, f"{name} of {path}", "in Fortran's order", "in C's")
                # Checked before anything of that size is allocated. The header of pickled objects
                # does not state their size.
                promised = math.prod(shape) * dtype.itemsize
                size = archive.getinfo(name).file_size - file.tell()
                if size < promised and not dtype.hasobject:
                    raise UserError(
                        f"{path} is cut off: {name.removesuffix('.npy')} holds {size} bytes of the "
                        f"{promised} that its header promises"
                    )
                yield file, shape, dtype
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} does not read as .npz: {error}; {HINT}") from error


def read_class_names(path: epath.Path, count: int) -> tuple[str, ...]:
    """Returns the class names in the settings that `var-jax generate` wrote, else the ids."""
    ids = tuple(map(str, range(count)))
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as arrays:
            names = (
                json.loads(str(arrays["settings"])).get("class_names", ())
                if "settings" in arrays.files
                else ()
            )
    except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile):
        return ids
    is_list_of_names = (
        isinstance(names, list)
        and len(names) >= count
        and all(isinstance(name, str) for name in names)
    )
    return tuple(names) if is_list_of_names else ids


def read_labels(path: epath.Path, count: int) -> Int[np.ndarray, " n"] | None:
    """Returns the labels of `count` images, or None where the file has no such array of integers.

    Raises:
      UserError: a label is negative or too large for a class id, or there are fewer labels than the
        header promises.
    """
    with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
        if "arr_1.npy" not in archive.namelist():
            return None
    with open_member(path, "arr_1.npy") as (file, shape, dtype):
        if shape != (count,) or dtype.kind not in "iu":
            return None
        content = file.read(count * dtype.itemsize)
        if len(content) < count * dtype.itemsize:
            raise UserError(f"{path} is cut off: arr_1 ends before its {count} labels")
    labels = np.frombuffer(content, dtype)
    for label in (labels.min(), labels.max()):
        is_valid = 0 <= label <= MAX_LABEL
        require(is_valid, f"a label in arr_1 of {path}", label, f"from 0 to {MAX_LABEL:,}")
    return labels
