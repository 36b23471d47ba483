"""Opens data sets by name, with random access to their images and without TensorFlow."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import UInt8

from var_jax.data import image_folder, prepare, split_folders, survey, transforms
from var_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    # Only for its type: data must not depend on training.
    from var_jax.config.train import DataConfig

NEWLY_DECODED = f"-decoding{survey.DECODING}"
log = logging.getLogger(__name__)


class Split(Protocol):
    """Labeled images with random access.

    Attributes:
      class_names: class names by label.
      class_counts: number of images of each class, where the data set states it; else empty.
      fingerprint: fingerprint of the whole data set. For a user's own files it covers their
        content; for others it covers TFDS's record of the prepared copy: name, configuration,
        version and the sizes of each split (for "digits" only the version).
    """

    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns {"image": uint8 (height, width, channels) as stored, "label": int}."""
        ...


class TfdsSplit:
    """A split of a prepared TFDS data set, decoded by Pillow.

    If the data set has no "label", all images belong to one class, "all".

    Args:
      class_counts: as in `Split`.
    """

    def __init__(self, builder: Any, split: str, class_counts: tuple[int, ...] = ()):
        self._arguments = builder, split, class_counts
        self.class_counts = class_counts
        self._name = f"{builder.name}/{split}"
        features = builder.info.features
        self.class_names: tuple[str, ...] = (
            tuple(features["label"].names) if "label" in features else ("all",)
        )
        self.fingerprint = fingerprint_of(builder.info)
        # TFDS decodes with OpenCV if that is installed, and takes palette indices for grays; its
        # SkipDecoding would do, but then `tfds.testing.mock_data` needs TensorFlow.
        features["image"].decode_example_np = bytes
        self._source = builder.as_data_source(split)
        try:
            len(self._source)
        except ValueError as error:  # as of "train[90%:10%]"
            raise UserError(
                f"split {split!r} of data set {builder.name!r} ends before it begins"
            ) from error

    def __reduce__(self):
        # A worker process opens the prepared files itself.
        return TfdsSplit, self._arguments

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(
        self, index: int
    ) -> dict[str, UInt8[np.ndarray, "height width channels"] | int]:
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends a plain loop over the split, too
        example = self._source[index]
        image = example["image"]
        if isinstance(image, bytes):
            file = example.get("file_name", b"")
            image = transforms.decode(
                image, f"image {index} of {self._name}" + (f" ({file.decode()})" if file else "")
            )
        return {"image": transforms.eight_bits(image), "label": int(example.get("label", 0))}


def content_fingerprint(content: Mapping[str, str], decoding: int = 1) -> str:
    """Returns the fingerprint of a data set from those of its splits' content.

    Args:
      content: {split: fingerprint of its content}.
      decoding: `Survey.decoding`; the same files have other pixels where an earlier version decoded
        them differently.
    """
    of_files = image_folder.fingerprint(
        [f"{name}\0{value}" for name, value in sorted(content.items())]
    )
    return of_files + (NEWLY_DECODED if decoding == survey.DECODING else "")


def fingerprint_of(info: Any) -> str:
    """Returns the fingerprint of a data set from its `tfds.core.DatasetInfo`; nothing is read."""
    metadata = info.metadata or {}
    content = metadata.get("content")
    if content is not None:
        return content_fingerprint(content, metadata.get("decoding", 1))
    if info.name in prepare.OWN:  # determined by the version
        return str(info.version)
    # Another copy of the same version may be truncated, filtered, or sharded differently and so in
    # another order.
    return image_folder.fingerprint(
        [
            info.full_name,
            *(
                f"{name}\0{split.num_examples}\0{split.num_bytes}\0{split.shard_lengths}"
                for name, split in sorted(info.splits.items())
            ),
        ]
    )


def open_split(data: "DataConfig", split: str, class_names: Sequence[str] = ()) -> TfdsSplit:
    """Opens one split of the data set that `data` names; see `open_splits`."""
    return open_splits(data, [split], class_names)[0]


def open_splits(
    data: "DataConfig", splits: Sequence[str], class_names: Sequence[str] = ()
) -> list[TfdsSplit]:
    """Opens splits of the data set that `data` names, and prepares it first where needed.

    Copies of a user's files carry a fingerprint of the folder and of its files' names, sizes and
    times: a folder that changes or moves is prepared anew.

    Args:
      data: data config, whose `name`, `data_dir`, `source_dir` and `skip_bad_images` are used.
      splits: TFDS splits, including slices such as "train[:90%]". An image folder's "test" is its
        "val" if it has no other held-out images, and vice versa.
      class_names: for an image folder, the order of classes of an earlier run; by default the
        natural order of names, or that of a copy that an earlier version prepared.
    Raises:
      UserError: the name or a split is unknown; a directory is missing or empty; files do not
        decode; the data set has no images, or a "label" that is no class; or TFDS cannot prepare it
        here.
    """
    counts: dict[str, tuple[int, ...]] = {}
    with prepare.quiet_tfds(progress=data.name not in prepare.OWN):
        if data.name == "image_folder":
            files = prepare.list_folder(data, class_names, splits)
            builder, counts = prepare.prepare_folder(files, data, keep_order=bool(class_names))
            splits = [_of_folder(split, builder.info.splits, data.source_dir) for split in splits]
        else:
            builder = prepare.prepare_data_set(data)
    features: Any = builder.info.features
    kinds = {key: type(feature).__name__ for key, feature in features.items()}
    needed = {"image": "Image", **({"label": "ClassLabel"} if "label" in kinds else {})}
    for key, kind in needed.items():
        if kinds.get(key) != kind:
            raise UserError(
                f"data set {data.name!r} has no {kind} feature {key!r}; it has "
                + ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            )
    dtype = np.dtype(features["image"].np_dtype)
    if dtype not in (np.uint8, np.uint16):  # TFDS stores others as if their bytes were colors
        raise UserError(
            f"data set {data.name!r} has images of {dtype}, which have no known range; they must "
            "be uint8 or uint16"
        )
    return [_opened(builder, split, data.name, counts.get(split, ())) for split in splits]


def _opened(builder: Any, split: str, name: str, class_counts: tuple[int, ...]) -> TfdsSplit:
    try:
        return TfdsSplit(builder, split, class_counts)
    except (ValueError, KeyError) as error:
        hint = did_you_mean(split, builder.info.splits)
        raise UserError(f"data set {name!r} has no split {split!r} with images{hint}") from error
    except NotImplementedError as error:
        raise UserError(
            f"{builder.data_dir} is not prepared as array_record; give another data.data_dir"
        ) from error


def _of_folder(split: str, known: Collection[str], source_dir: str) -> str:
    """Returns the split of an image folder that a user means by "test" or "val"."""
    name = split_folders.SPLIT_OF.get(split, split)
    other = {"test": "val", "val": "test"}.get(name)
    if name not in known and other is not None and other in known:
        log.warning(
            "%s has no split %r; its held-out images are those of its split %r",
            source_dir,
            split,
            other,
        )
        return other
    return name


def sizes(data: "DataConfig") -> tuple[int, int]:
    """Returns (channels, classes) of a data set without preparing it.

    An image folder is in color if one of its files is, by the files' headers. Other data sets state
    their sizes in their descriptions.

    Raises:
      UserError: there is no such data set or folder.
    """
    if data.name == "image_folder":
        files = image_folder.listing(data.source_dir)
        return image_folder.channels(files), len(files.class_names)
    with prepare.quiet_tfds(progress=False):
        info: Any = prepare.tfds_builder(data.name, data.data_dir or None).info
        features = dict(info.features.items())
    channels = (getattr(features.get("image"), "shape", None) or (None,))[-1]
    classes = getattr(features.get("label"), "num_classes", None)
    return channels or 3, classes or 1  # no labels: one class of all images
