"""Images and labels in an `.npz` file, read row by row: samples may be larger than the memory."""

import contextlib
import json

import numpy as np
from etils import epath
from jaxtyping import Int

from var_jax.config.strict import require
from var_jax.errors import UserError
from var_jax.io import npz

# Arrays of reference files: means and covariances of features, and of those of sFID.
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")
MAX_LABEL = 999_999  # every class up to the largest label has a name
LAYOUT = "uint8 of (images, height, width, 1 or 3 channels)"


def open_images(path: epath.Path) -> contextlib.AbstractContextManager[npz.Member]:
    """Opens the images of a file to read their bytes in order.

    Raises:
      UserError: the file is damaged, has no images, or holds fewer than its header promises.
    """
    return npz.open_member(path, "arr_0", f"it must hold arr_0, {LAYOUT}")


def statistics_in(path: epath.Path) -> list[str]:
    """Returns the names of the means and covariances in a file; none for a file of only images."""
    return [name for name in npz.member_names(path) if name in STATISTICS]


def refuse_statistics(path: epath.Path):
    """Raises UserError for a file of means and covariances.

    Call it if a reader needs images.

    The `arr_0` of such a file is only a part of the images that its `mu` and `sigma` were computed
    from. A distance to that part would differ from the published one, under the same name.
    """
    if statistics := statistics_in(path):
        raise UserError(
            f"{path} holds the statistics {', '.join(statistics)} of a reference; its arr_0, if it "
            "has one, is a part of the images that they are of. Only `evaluate --samples` takes "
            "such a file, as --reference; give real images here: a directory, DATASET:SPLIT, or an "
            ".npz of arr_0 alone"
        )


def read_class_names(path: epath.Path, count: int) -> tuple[str, ...]:
    """Returns the class names in the settings that `var-jax generate` wrote, else the ids."""
    ids = tuple(map(str, range(count)))
    try:
        settings = npz.read_arrays(path, "settings")["settings"]
        names = json.loads(str(settings)).get("class_names", ())
    except (ValueError, AttributeError):  # UserError is a ValueError
        return ids
    is_list_of_names = (
        isinstance(names, list)
        and len(names) >= count
        and all(isinstance(name, str) for name in names)
    )
    return tuple(names) if is_list_of_names else ids


def read_labels(path: epath.Path, count: int) -> Int[np.ndarray, " n"] | None:
    """Returns the labels of `count` images, or None if the file has no such array of integers.

    Raises:
      UserError: a label is negative or too large for a class id, or there are fewer labels than the
        header promises.
    """
    if "arr_1" not in npz.member_names(path):
        return None
    hint = "its arr_1, where it has one, must hold a label per image"
    with npz.open_member(path, "arr_1", hint) as (file, shape, dtype):
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
