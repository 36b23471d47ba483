"""Fingerprints of the images on this machine, which token caches are compared with."""

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from etils import epath

from var_jax.data import image_folder, prepare, sources, survey
from var_jax.errors import UserError

if TYPE_CHECKING:
    # Only for its type: data must not depend on training.
    from var_jax.config.train import DataConfig

log = logging.getLogger(__name__)


def fingerprint(data: "DataConfig", class_names: Sequence[str] = ()) -> str | None:
    """Returns the fingerprint of a data set's images on this machine, or None without images.

    Call it before training from a token cache, which needs no images: nothing is downloaded or
    copied. The files of a folder that is not prepared in its present state are decoded once.

    Args:
      data: data config, whose `name`, `data_dir`, `source_dir`, splits and `skip_bad_images` are
        used.
      class_names: for an image folder, the order of classes in the token cache.
    """
    try:
        if data.name == "image_folder":
            return _of_folder(data, class_names)
        if data.name in ("digits", "fashion_mnist_idx"):  # small, and prepared in seconds
            return sources.open_split(data, "train").fingerprint
        return _of_prepared(data)
    except UserError as error:
        if data.source_dir:
            log.warning("the images could not be compared with those of the token cache: %s", error)
        return None


def _of_folder(data: "DataConfig", class_names: Sequence[str]) -> str | None:
    if not data.source_dir or not epath.Path(data.source_dir).expanduser().is_dir():
        return None
    files = prepare.list_folder(data, class_names)
    if prepare.with_builder(files, data, keep_order=bool(class_names))[1].is_prepared():
        return sources.open_split(data, data.train_split, class_names).fingerprint
    log.info(
        "comparing the %d files of %s with those of the token cache",
        len(files.files),
        data.source_dir,
    )
    findings = survey.survey(files)
    bad = set(findings.bad) if data.skip_bad_images else set()
    return sources.content_fingerprint(image_folder.content(files.without(bad)), findings.decoding)


def _of_prepared(data: "DataConfig") -> str | None:
    prepared = epath.Path(data.data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    name = data.name.partition(":")[0].partition("/")[0]
    if not (prepared.expanduser() / name).is_dir():
        return None
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(
            data.name, data_dir=data.data_dir or None, file_format="array_record"
        )
    except Exception as error:  # other people's builders raise anything
        raise UserError(f"data set {data.name!r}: {error}") from error
    return sources.fingerprint_of(builder.info) if builder.is_prepared() else None
