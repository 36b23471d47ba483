"""Files of a sample set: the `.npz` that is joined from the hosts' shards, and its PNGs."""

import contextlib
import functools
import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int, Shaped, UInt8
from PIL import Image

from var_jax.errors import UserError
from var_jax.evaluate.sample_plan import Plan
from var_jax.io import atomic, npz
from var_jax.io.json import read_object

ROWS = 256  # number of images written at once
MANIFEST = "manifest.json"
Shard = Callable[[], Shaped[np.ndarray, "n ..."]]  # of images, or of their tokens


def read_manifest_settings(path: epath.Path) -> dict[str, Any]:
    """Returns the settings of a plan from the manifest of its shards or PNG files."""
    return {key: value for key, value in read_object(path).items() if key != "drawn_with"}


def read_npz_settings(path: epath.Path) -> dict[str, Any]:
    """Returns the settings of a plan from its `.npz` file.

    Raises:
      UserError: the file holds none.
    """
    try:
        values = json.loads(str(npz.read_arrays(path, "settings")["settings"]))
        return {key: value for key, value in values.items() if key != "class_names"}
    except (UserError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is no sample set of this program; remove it, or give another --out"
        ) from error


def join(
    out: epath.Path,
    beside: epath.Path,
    plan: Plan,
    shards: list[range],
    stored: list[Shard],
    chosen: np.ndarray,
):
    """Writes the set from its shards, under a temporary name like `beside` until it is complete."""

    def images() -> Iterator[bytes]:
        yield npz.header_bytes(np.dtype(np.uint8), (len(chosen), *plan.image_shape))
        for part in rows_of(stored, chosen, len(shards[0])):
            yield part.tobytes()

    settings = np.array(json.dumps(plan.settings_and_names))
    members = [
        ("arr_0", images()),
        ("arr_1", [npz.array_bytes(plan.label(chosen))]),
        ("settings", [npz.array_bytes(settings)]),
    ]
    temporary = atomic.temporary_name(beside)
    try:
        with (
            temporary.open("wb") as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        ):
            for name, parts in members:
                npz.write_member(archive, name, parts)
        temporary.replace(out)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and out.exists():
            raise
        raise UserError(f"cannot write the samples {out}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def rows_of(
    stored: list[Shard], chosen: Int[np.ndarray, " n"], shard_rows: int
) -> Iterator[Shaped[np.ndarray, "rows ..."]]:
    """Yields the rows at some indices, in their order, `ROWS` at once.

    Args:
      stored: the shards in order; each has `shard_rows` rows, the last one perhaps fewer.
      chosen: indices of rows in the whole of all shards.
    """
    for start in range(0, len(chosen), ROWS):
        files, places = np.divmod(chosen[start : start + ROWS], shard_rows)
        first = stored[files[0]]()
        part = np.empty((len(files), *first.shape[1:]), first.dtype)
        for file in np.unique(files):
            here = files == file
            part[here] = stored[file]()[places[here]]
        yield part


def open_shard(path: epath.Path) -> Shard:
    """Returns a function that returns a shard's images, or their tokens.

    A local shard is memory-mapped at every call and closed with the array: all shards of a large
    set are more files than a process may have open. A bucket's shard is read once.
    """
    if "://" not in str(path):
        return functools.partial(np.load, os.fspath(path), mmap_mode="r")
    with path.open("rb") as file:
        images = np.load(file)
    return lambda: images


def write_pngs(out: epath.Path, directory: epath.Path, plan: Plan):
    """Writes the images of a set as PNG files, and its settings; the directory appears complete."""
    temporary = atomic.temporary_name(directory)
    try:
        temporary.mkdir(parents=True)
        (temporary / MANIFEST).write_text(json.dumps(plan.settings, indent=1))
        for place, (image, label) in enumerate(_read_images(out)):
            pixels = image[..., 0] if image.shape[-1] == 1 else image
            with (temporary / f"{place:06d}_{label}.png").open("wb") as file:
                Image.fromarray(pixels).save(file, "PNG")
        temporary.rename(directory)
    except OSError as error:
        if (directory / MANIFEST).exists() and read_manifest_settings(
            directory / MANIFEST
        ) == plan.settings:
            return  # another host has written it
        raise UserError(
            f"cannot write the pictures {directory}: {error.strerror or error}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            remove(temporary)


def _read_images(out: epath.Path) -> Iterator[tuple[UInt8[np.ndarray, "h w c"], int]]:
    """Yields the images and labels of a set one by one: all pixels may not fit into memory."""
    labels = npz.read_arrays(out, "arr_1")["arr_1"]
    with npz.open_member(out, "arr_0", "it must be a sample set of this program") as images:
        shape = images.shape[1:]
        for label in labels:
            pixels = np.frombuffer(images.file.read(math.prod(shape)), np.uint8)
            yield pixels.reshape(shape), int(label)


def remove(partial: epath.Path):
    """Removes a directory, local or in a bucket, if it exists."""
    if "://" not in str(partial):
        shutil.rmtree(os.fspath(partial), ignore_errors=True)
    elif partial.exists():
        partial.rmtree()
