"""Data sets by name, prepared once as array_record and read at random without TensorFlow."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from etils import epath
from jaxtyping import UInt8

from var_jax.data import image_folder, prepare, split_folders, survey, transforms
from var_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from var_jax.config.train import (
        DataConfig,
    )  # for its type alone: data must not depend on training

NEWLY_DECODED = f"-decoding{survey.DECODING}"
log = logging.getLogger(__name__)


class Split(Protocol):
    """Images at random access.

    Attributes:
      class_names: by label.
      class_counts: images of each class, where the data set tells; else empty.
      fingerprint: of the whole data set: of the content of a user's own files; else of what TFDS
        notes of the prepared copy, its name, configuration and version and what lies in each split
        (of "digits", the version).
    """

    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": uint8 (height, width, channels) as stored, "label": int}."""
        ...


class TfdsSplit:
    """A split of a prepared TFDS data set, decoded by Pillow; without a "label", all images are of
    one class, "all".

    Args:
      class_counts: as `Split` has them.
    """

    def __init__(self, builder: Any, split: str, class_counts: tuple[int, ...] = ()):
        self._made_of = builder, split, class_counts
        self.class_counts = class_counts
        self._name = f"{builder.name}/{split}"
        features = builder.info.features
        self.class_names: tuple[str, ...] = (
            tuple(features["label"].names) if "label" in features else ("all",)
        )
        self.fingerprint = fingerprint_of(builder.info)
        # TFDS decodes with OpenCV where that is installed, and takes a palette for grey levels; its
        # SkipDecoding would do, but makes `tfds.testing.mock_data` want TensorFlow.
        features["image"].decode_example_np = bytes
        self._source = builder.as_data_source(split)

    def __reduce__(self):
        return TfdsSplit, self._made_of  # a worker process opens the prepared files itself

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(
        self, index: int
    ) -> dict[str, UInt8[np.ndarray, "height width channels"] | int]:
        if not 0 <= index < len(self):
            raise IndexError(index)  # which also ends a plain loop
        example = self._source[index]
        image = example["image"]
        if isinstance(image, bytes):
            file = example.get("file_name", b"")
            image = transforms.decode(
                image, f"image {index} of {self._name}" + (f" ({file.decode()})" if file else "")
            )
        return {"image": transforms.eight_bits(image), "label": int(example.get("label", 0))}


def content_fingerprint(content: Mapping[str, str], decoding: int = 1) -> str:
    """The fingerprint of a data set by those of its splits' content.

    Args:
      decoding: `Survey.decoding`: the same files have other pixels where an earlier version decoded
        them otherwise.
    """
    of_files = image_folder.fingerprint(
        [f"{name}\0{value}" for name, value in sorted(content.items())]
    )
    return of_files + (NEWLY_DECODED if decoding == survey.DECODING else "")


def fingerprint_of(info: Any) -> str:
    """Of a `tfds.core.DatasetInfo`; nothing is read."""
    metadata = info.metadata or {}
    content = metadata.get("content")
    if content is not None:
        return content_fingerprint(content, metadata.get("decoding", 1))
    if info.name in prepare.OWN:  # made by the version alone
        return str(info.version)
    # Another copy of the same version may be cut, filtered, or in other shards and so in another
    # order.
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
    """Opens splits of the data set that `data` names, prepared first if it is not.

    What is prepared is written beside its place and renamed when it is whole, so that neither a
    killed process nor another one at the same time spoils it. Copies of a user's files carry a
    fingerprint of names, sizes and times: a folder that changes is prepared anew.

    Args:
      data: its `name`, `data_dir`, `source_dir` and `skip_bad_images`.
      splits: TFDS splits, slices such as "train[:90%]" included. An image folder's "test" is its
        "val" where it has no other held-out images, and the other way round.
      class_names: of an image folder, the order of classes that an earlier run has; by default that
        of numbers, or of a copy that an earlier version prepared.
    Raises:
      UserError: an unknown name or split, a missing or empty directory, files that do not decode, a
        data set without images or with a "label" that is no class, or one that TFDS cannot prepare
        here.
    """
    counts: dict[str, tuple[int, ...]] = {}
    with prepare.quiet_tfds(progress=data.name not in prepare.OWN):
        if data.name == "image_folder":
            # A slice of "train" says that the user divides the images.
            whole_train = any("[" in name for name in (data.train_split, data.eval_split, *splits))
            files = image_folder.listing(data.source_dir, class_names, whole_train)
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
                + ", ".join(f"{name} ({found})" for name, found in kinds.items())
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
    """The split of an image folder that a user means: held-out images are "test" to some and "val"
    to others."""
    name = split_folders.SPLIT_OF.get(split, split)
    if name not in known and (other := {"test": "val", "val": "test"}.get(name)) in known:
        log.warning(
            "%s has no split %r; its held-out images are those of its split %r",
            source_dir,
            split,
            other,
        )
        return other
    return name


def require_raw_files(data: "DataConfig"):
    """Raises UserError when the user's own files that a data set is made of are not there; prepares
    nothing."""
    if data.name == "image_folder":
        image_folder.listing(data.source_dir)
    elif data.name == "fashion_mnist_idx":
        from var_jax.data import builders

        directory = epath.Path(data.source_dir or prepare.DEBIAN_FASHION_MNIST).expanduser()
        builders.FashionMnistIdx(directory=directory, data_dir=data.data_dir or None)


def sizes(data: "DataConfig") -> tuple[int, int]:
    """(channels, classes) of an image folder or of a data set of TFDS, of which nothing is
    prepared.

    An image folder has color where one of its files has, by the files' headers; of another data set
    its description counts.

    Raises:
      UserError: there is no such data set or folder.
    """
    if data.name == "image_folder":
        files = image_folder.listing(data.source_dir)
        return image_folder.channels(files), len(files.class_names)
    with prepare.quiet_tfds(progress=False):
        features: Any = dict(
            prepare.tfds_builder(data.name, data.data_dir or None).info.features.items()
        )
    channels = (getattr(features.get("image"), "shape", None) or (None,))[-1]
    classes = getattr(features.get("label"), "num_classes", None)
    return channels or 3, classes or 1  # no labels: one class of all images
