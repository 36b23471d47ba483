"""Prepares data sets as array_record, by TFDS without TensorFlow.

A data set is written next to its final place and renamed when it is complete, so that neither a
killed process nor a concurrent one spoils it.
"""

import contextlib
import dataclasses
import io
import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from var_jax.data import image_folder, survey
from var_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

    # Only for its type: data must not depend on training.
    from var_jax.config.train import DataConfig
    from var_jax.data import builders
DEBIAN_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
OWN = ("digits", "fashion_mnist_idx", "image_folder")
SKIPPED_FILES_SHOWN = 10
DECODED_BYTES = 2**28  # of the files of a folder that a check decodes: half a minute's work
log = logging.getLogger(__name__)


def prepare_data_set(data: "DataConfig") -> "tfds.core.DatasetBuilder":
    """Returns the builder of a data set other than an image folder, prepared if it was not.

    Raises:
      UserError: the data set is unknown or cannot be prepared here.
    """
    builder = _builder(data)
    if data.name not in OWN:
        return _prepare_by_tfds(data.name, builder)
    prepared = _prepare(builder)
    if data.name == "fashion_mnist_idx":
        for line in survey.dark_remarks(
            data.source_dir or DEBIAN_FASHION_MNIST,
            (prepared.info.metadata or {}).get("brightest", 255),
        ):
            survey.say(line)
    return prepared


def _builder(data: "DataConfig") -> "tfds.core.DatasetBuilder":
    """Returns the builder of a data set other than an image folder; nothing is prepared.

    Raises:
      UserError: there is no such data set, or its files are missing.
    """
    from var_jax.data import builders  # TFDS is slow to import

    if data.name == "digits":
        return builders.Digits(data_dir=data.data_dir or None)
    if data.name == "fashion_mnist_idx":
        return _fashion_mnist_builder(data)
    return tfds_builder(data.name, data.data_dir or None)


def _fashion_mnist_builder(data: "DataConfig") -> "builders.FashionMnistIdx":
    """Returns the builder of four idx files; of an earlier version's copy if it has their content.

    Raises:
      UserError: the files are missing.
    """
    from var_jax.data import builders

    directory = epath.Path(data.source_dir or DEBIAN_FASHION_MNIST).expanduser()
    data_dir = data.data_dir or None
    builder = builders.FashionMnistIdx(directory=directory, data_dir=data_dir)
    if builder.is_prepared():
        return builder
    earlier = builders.FashionMnistIdx(directory=directory, data_dir=data_dir, earlier=True)
    if earlier.is_prepared():
        metadata: Any = _prepare(earlier).info.metadata
        if dict(metadata.get("content") or {}) == earlier.content():
            return earlier
    return builder


def _prepare(builder: "tfds.core.DatasetBuilder") -> "tfds.core.DatasetBuilder":
    """Writes the prepared files if there are none, and returns a builder that only reads them."""
    import tensorflow_datasets as tfds

    try:
        if not builder.is_prepared():
            _download_and_prepare(builder)
    except OSError as error:
        raise UserError(
            f"{builder.data_dir} cannot be written ({error}); give another data.data_dir"
        ) from error
    try:
        return tfds.builder_from_directory(builder.data_dir)
    except Exception as error:  # files lost from a directory that was complete once
        raise UserError(
            f"{builder.data_dir} is damaged ({_first_line(error)}); remove it to start afresh"
        ) from error


def list_folder(
    data: "DataConfig", class_names: Sequence[str] = (), splits: Sequence[str] = ()
) -> image_folder.Listing:
    """Returns the files of an image folder as a run of a data config sees them.

    Args:
      class_names: as in `image_folder.listing`.
      splits: further splits that are read.
    Raises:
      UserError: as `image_folder.listing`.
    """
    # With a slice of "train", the user divides the images.
    whole_train = any("[" in name for name in (data.train_split, data.eval_split, *splits))
    return image_folder.listing(data.source_dir, class_names, whole_train=whole_train)


def prepare_folder(
    files: image_folder.Listing, data: "DataConfig", *, keep_order: bool
) -> tuple["tfds.core.DatasetBuilder", dict[str, tuple[int, ...]]]:
    """Copies the images of a folder as array_record, if that was not done before.

    Args:
      files: the folder's files.
      data: the paths of the folder and of the copy.
      keep_order: whether the order of classes in `files` is that of an earlier run; otherwise a
        copy that an earlier version prepared may change it.
    Returns:
      the builder of the copy, and {split: number of images of each class}.
    Raises:
      UserError: files do not decode, or the copy cannot be written.
    """
    for note in files.notes:
        log.warning("%s", note)
    files, builder = with_builder(files, data, keep_order=keep_order)
    if not builder.is_prepared():
        log.info("checking and copying the %d files of %s", len(files.files), data.source_dir)
        findings = survey.survey(files)
        _refuse_bad(findings, files, data)
        builder.skipped = sorted(findings.bad)
        prepared = _prepare(builder)
        survey.save(findings, epath.Path(prepared.data_dir))
    else:
        prepared = _prepare(builder)
        findings = _survey_of_copy(prepared, files, data)
    metadata: Any = prepared.info.metadata
    metadata["decoding"] = findings.decoding
    skipped = metadata["skipped"]
    _refuse_skipped(skipped, files, data)
    if skipped:
        shown = ", ".join(skipped[:SKIPPED_FILES_SHOWN]) + (
            ", ..." if len(skipped) > SKIPPED_FILES_SHOWN else ""
        )
        log.warning(
            "left out %d files of %s that do not decode (all in %s): %s",
            len(skipped),
            data.source_dir,
            epath.Path(prepared.data_dir) / "metadata.json",
            shown,
        )
    for line in findings.remarks(data.source_dir):
        survey.say(line)
    return prepared, files.without(set(skipped)).counts


def for_check(
    data: "DataConfig", scratch: str, *, on_this_machine: bool = True
) -> "DataConfig | None":
    """Returns the data config with which a check may open a data set before any run prepares it.

    It is the same one where the data set is prepared, and one with `scratch` as `data_dir` where
    preparing it takes seconds. None if it is neither: a folder of more than `DECODED_BYTES`, or a
    data set of TFDS, which a run may have to download.

    Args:
      scratch: an empty directory, for the caller to remove.
      on_this_machine: whether runs of this machine will prepare it, in a `data_dir` that they can
        write.
    Raises:
      UserError: there is no such data set or folder, or `data_dir` cannot be written.
    """
    size = 0
    if data.name == "image_folder":
        files = list_folder(data)
        builder: Any = with_builder(files, data, keep_order=False)[1]
        size = sum(file.size for file in files.files)
    else:
        builder = _builder(data)
    if builder.is_prepared():
        return data
    if on_this_machine:
        _require_writable(epath.Path(builder.data_dir))
    if data.name not in OWN or size > DECODED_BYTES:
        return None
    return dataclasses.replace(data, data_dir=scratch)


def _require_writable(directory: epath.Path):
    """Raises UserError if a local directory cannot be made."""
    if "://" in str(directory):
        return
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{directory} cannot be written; give another data.data_dir")


def with_builder(
    files: image_folder.Listing, data: "DataConfig", *, keep_order: bool
) -> tuple[image_folder.Listing, "builders.ImageFolder"]:
    """Returns the files of a folder and the builder of their copy.

    A copy that an earlier version made is used where it has the same content, which is compared
    once. Its classes may be in another order.

    Args:
      files: the folder's files.
      data: the data config, whose `data_dir` is used.
      keep_order: as in `prepare_folder`.
    """
    from var_jax.data import builders  # TFDS is slow to import

    data_dir = data.data_dir or None
    builder = builders.ImageFolder(files=files, data_dir=data_dir)
    if builder.is_prepared():
        return files, builder
    # Earlier versions sorted numbers as strings.
    orders = [files] if keep_order else [files, files.in_order(sorted(files.class_names))]
    for listing in orders:
        state = listing.earlier_fingerprint
        earlier = builders.ImageFolder(files=listing, data_dir=data_dir, state=state)
        compared = epath.Path(earlier.data_dir) / f"holds_{listing.fingerprint}"
        if not earlier.is_prepared():
            continue
        if compared.exists():
            return listing, earlier
        if _has_content_of(listing, earlier):
            with contextlib.suppress(OSError):  # else it is compared again
                compared.touch()
            return listing, earlier
    return files, builder


def _has_content_of(files: image_folder.Listing, builder: "builders.ImageFolder") -> bool:
    """Returns whether a copy has the bytes of a folder's files; reads every file."""
    metadata: Any = _prepare(builder).info.metadata
    copied = files.without(set(metadata["skipped"]))
    return image_folder.content(copied) == dict(metadata.get("content") or {})


def _refuse_bad(findings: survey.Survey, files: image_folder.Listing, data: "DataConfig"):
    """Raises UserError for files that do not decode, unless they are to be left out."""
    bad = findings.bad
    if bad and not data.skip_bad_images:
        raise _bad_files(next(iter(bad.values())), len(bad))
    if len(bad) == len(files.files):
        raise UserError(
            f"none of the {len(bad)} files decodes; the first: {next(iter(bad.values()))}"
        )


def _refuse_skipped(skipped: Sequence[str], files: image_folder.Listing, data: "DataConfig"):
    """Raises UserError for files that a copy left out, unless they are to be left out again."""
    if skipped and not data.skip_bad_images:
        raise _bad_files(f"{files.root / skipped[0]} does not decode", len(skipped))


def _survey_of_copy(
    prepared: "tfds.core.DatasetBuilder", files: image_folder.Listing, data: "DataConfig"
) -> survey.Survey:
    """Returns the survey of a copy that exists already.

    A copy that an earlier version made is surveyed now. Copies hold the files' own bytes, so a
    later decoder needs no new copy, unless it refuses some of the files.
    """
    directory = epath.Path(prepared.data_dir)
    if findings := survey.load(directory):
        return findings
    metadata: Any = prepared.info.metadata
    copied = files.without(set(metadata["skipped"]))
    log.warning(
        "looking through the %d files of %s, which an earlier version copied",
        len(copied.files),
        data.source_dir,
    )
    findings = survey.survey(copied)
    if findings.bad:
        first = next(iter(findings.bad.values()))
        if not data.skip_bad_images:
            raise _bad_files(first, len(findings.bad))
        raise UserError(
            f"{first}; an earlier version took such files into {directory}: remove it to leave "
            "them out"
        )
    survey.save(findings, directory)
    return findings


def _bad_files(first: str, count: int) -> UserError:
    """Returns the error for files that do not decode, with the message of the first."""
    others = f" (and {count - 1} more files)" if count > 1 else ""
    return UserError(
        f"{first}{others}; put it right, or set data.skip_bad_images to leave such files out"
    )


def _prepare_by_tfds(name: str, builder: "tfds.core.DatasetBuilder") -> "tfds.core.DatasetBuilder":
    try:
        _download_and_prepare(builder)
    # Other people's builders need manual downloads, further packages or the network, and raise
    # whatever they like.
    except Exception as error:
        raise UserError(
            f"TFDS cannot prepare {name!r} here: {_first_line(error)}; prepare it elsewhere as "
            "array_record and set data.data_dir"
        ) from error
    return builder


def tfds_builder(name: str, data_dir: str | None) -> "tfds.core.DatasetBuilder":
    """Returns TFDS's builder of a data set; nothing is prepared.

    Raises:
      UserError: TFDS has no such data set, or its builder fails.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        hint = did_you_mean(name, [*OWN, *tfds.list_builders(with_community_datasets=False)])
        # TFDS knows hundreds: if no name is close, only this package's own are listed.
        if "did you mean" not in hint:
            hint = f"; known: {', '.join(OWN)} and the names of TFDS"
        raise UserError(f"unknown data set {name!r}{hint}") from error
    except Exception as error:
        raise UserError(f"data set {name!r}: {_first_line(error)}") from error
    return builder


def _download_and_prepare(builder: "tfds.core.DatasetBuilder"):
    import tensorflow_datasets as tfds

    try:
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    except OSError:
        # If the path exists, another process has prepared the same copy.
        if not builder.data_path.exists():
            raise


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "").rstrip(" :.") or type(error).__name__


@contextlib.contextmanager
def quiet_tfds(*, progress: bool) -> Iterator[None]:
    """Suppresses TFDS's warnings and announcements; errors are raised as they are.

    Args:
      progress: whether its progress bars are shown.
    """
    import tensorflow_datasets as tfds

    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    if not progress:
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.setLevel(level)
        tfds.enable_progress_bar()
