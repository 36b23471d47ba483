"""Warns of a reference with images that a model was trained on.

Its reconstructions of those say less about new ones.
"""

import os
from typing import Any

from etils import epath

from var_jax.data import image_folder
from var_jax.errors import UserError
from var_jax.io.json import read_object

WHOLE = "all"  # every split, as TFDS names them together


def warning(model: str, reference: str, source_dir: str = "") -> str | None:
    """Returns a warning if a reference has, or may have, a run's training images; else None.

    Args:
      model: the model's directory; one without a run's `config.json` does not name its training
        images.
      reference: DATASET:SPLIT or a directory, as the user named it.
      source_dir: raw files of DATASET, as the user named them.
    """
    data = data_of(model)
    if data is None:
        return None
    what = _split(data, reference, source_dir) or _directory(data, reference)
    return what and (
        f"{reference} {what} this run was trained on: reconstructions of images that it has not "
        f"seen may be worse; measure {data.get('name')}:{data.get('eval_split')}"
    )


def data_of(model: str) -> dict[str, Any] | None:
    """Returns the section `data` of the config of the run that made a model, or None.

    The directory is a workdir, or that of `quickstart`, whose tokenizer was trained below it; for
    any other the result is None.
    """
    for place in ("config.json", "tokenizer-run/config.json"):
        path = epath.Path(model) / place
        if path.exists():
            data = read_object(path).get("data")
            return data if isinstance(data, dict) else None
    return None


def _split(data: dict[str, Any], reference: str, source_dir: str) -> str | None:
    name, colon, split = reference.partition(":")
    if not colon or name != data.get("name") or split == data.get("eval_split"):
        return None
    if name == "image_folder" and not _same(source_dir, data.get("source_dir", "")):
        return None
    trained = str(data.get("train_split", ""))
    if split == trained:
        return "is what"
    asked = _bases(split)
    return "may hold images that" if WHOLE in asked or asked & _bases(trained) else None


def _bases(split: str) -> set[str]:
    """Returns the splits that are part of a split such as "train[:90%]+test"."""
    return {part.partition("[")[0].strip() for part in split.split("+")}


def _directory(data: dict[str, Any], reference: str) -> str | None:
    source = data.get("source_dir")
    if (
        data.get("name") != "image_folder"
        or not source
        or not os.path.isdir(os.path.expanduser(reference))
    ):
        return None
    try:
        root, files = (
            os.path.realpath(os.path.expanduser(source)),
            image_folder.listing(source).files,
        )
    except (UserError, OSError):  # moved since: nothing to compare with
        return None
    below = os.path.join(os.path.realpath(os.path.expanduser(reference)), "")
    held = sum(
        file.split == "train" and os.path.realpath(os.path.join(root, file.name)).startswith(below)
        for file in files
    )
    return f"holds {held} images that" if held else None


def _same(one: str, other: str) -> bool:
    return os.path.realpath(os.path.expanduser(one)) == os.path.realpath(os.path.expanduser(other))
