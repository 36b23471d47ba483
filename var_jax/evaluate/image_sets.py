"""Sets of images to measure: `.npz` files, folders of image files, and splits of data sets."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from PIL import Image

from var_jax.config.strict import require
from var_jax.config.train import DataConfig
from var_jax.data import image_file, loader, sources, survey, transforms, visible_files
from var_jax.data.image_folder import fingerprint
from var_jax.errors import UserError, did_you_mean
from var_jax.io.file_kinds import refuse_stand_in
from var_jax.pretrained import weights

LABELLED = "a directory of class folders, DATASET:SPLIT, or FILE.npz with labels in arr_1"
Shape = tuple[int, int, int]
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")  # members of the published reference files
MAX_LABEL = 999_999  # every class up to the largest label has a name
NPZ_HINT = "it must hold arr_0, uint8 of (images, height, width, 1 or 3 channels)"


class Batch(NamedTuple):
    """Images and, where the set has them, their labels."""

    images: UInt8[np.ndarray, "b h w c"]
    labels: Int[np.ndarray, " b"] | None


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images of one size, in a fixed order.

    Attributes:
      name: as the user named it.
      fingerprint: changes with the images, their number and how they are resized.
      shape: (height, width, channels) that every image comes at.
      resize: how they were brought there, for reports.
      count: images.
      class_names: by label; empty where there are no labels.
      read: batch size -> batches in order, the last one perhaps smaller.
    """

    name: str
    fingerprint: str
    shape: Shape
    resize: str
    count: int
    class_names: tuple[str, ...]
    read: Callable[[int], Iterator[Batch]]

    def described(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "name": self.name,
            "count": self.count,
            "image_shape": list(self.shape),
            "resize": self.resize,
            "fingerprint": self.fingerprint,
        }


def open_images(
    spec: str,
    *,
    shape: Shape | None = None,
    resize: transforms.Resize = "crop",
    data_dir: str = "",
    source_dir: str = "",
    num: int = 0,
    seed: int = 0,
) -> ImageSet:
    """The images that a user names.

    Args:
      spec: FILE.npz with uint8 `arr_0` (labels, if any, in `arr_1`); a directory, whose visible
        image files at any depth are taken; or DATASET:SPLIT, such as fashion_mnist_idx:test,
        imagenet2012:validation or digits:train[:100].
      shape: (height, width, channels) to bring images to; by default that of the first, which all
        must have.
      resize: how, as in training, with centre crops; images of that height and width are taken as
        they are, and an `.npz` must have the shape already.
      data_dir, source_dir: of DATASET, as in `data` of a training config.
      num: that many of them, drawn by the seed; 0 for all.
    Raises:
      UserError: there is no such file, directory, data set or split, or what it holds is not what
        it must be.
    """
    require(num >= 0, "--num", num, "0, for all, or more")
    path = epath.Path(spec).expanduser()
    if spec.endswith(".npz"):
        return _npz(spec, path, shape, num, seed)
    if path.is_dir():
        files = _files(path)
        rows, shown = _rows(len(files), num, seed), f"folder {spec}"
        content = fingerprint(
            [
                f"decoding {survey.DECODING}",
                *(hashlib.sha256(files[i].read_bytes()).hexdigest() for i in rows),
            ]
        )

        def load(i: int) -> dict[str, Any]:
            samples = image_file.read(files[i].read_bytes(), str(files[i]))
            if i == rows[0]:  # as a sample of all: a line per file would be too many
                for remark in image_file.remarks(samples):
                    survey.say(f"{files[i]} {remark}")
            return {"image": image_file.pixels_of(samples, str(files[i])), "label": -1}

        return _loaded(spec, load, rows, shape, resize, (), content, shown)
    name, colon, split_name = spec.partition(":")
    if not colon or "/" in name:
        raise UserError(
            f"no images at {spec!r}; give FILE.npz, a directory of images, or DATASET:SPLIT, such "
            "as fashion_mnist_idx:test"
        )
    data = DataConfig(name, data_dir=data_dir, source_dir=source_dir)
    split = sources.open_split(data, split_name)
    require(len(split) > 0, spec, "empty", "of at least one image")
    rows = _rows(len(split), num, seed)
    content = fingerprint(
        [name, split_name, split.fingerprint, str(len(split)), str((num, seed if num else 0))]
    )
    return _loaded(
        spec, split.__getitem__, rows, shape, resize, split.class_names, content, f"data set {spec}"
    )


def open_labelled(spec: str, **options: Any) -> ImageSet:
    """As `open_images`, for what needs labels: of a directory of class folders, its training images
    with their classes.

    A directory is read as training reads `data.source_dir`, without what it holds out.

    Raises:
      UserError: as `open_images`, a directory without class folders, or images that have no labels.
    """
    if not spec.endswith(".npz") and epath.Path(spec).expanduser().is_dir():
        opened = open_images("image_folder:train", **{**options, "source_dir": spec})
        return dataclasses.replace(opened, name=spec)
    images = open_images(spec, **options)
    require(bool(images.class_names), spec, "without labels", LABELLED)
    return images


def with_classes_of(images: ImageSet, class_names: Sequence[str]) -> ImageSet:
    """The same images with labels by the ids that others give to the same class names, as two
    folders need not agree.

    Where either has no names (as `.npz` files, whose classes are called by their ids), labels stay.

    Raises:
      UserError: a class that the others do not have.
    """
    numbers, ours = tuple(map(str, range(len(images.class_names)))), images.class_names
    if (
        ours == tuple(class_names)
        or ours == numbers
        or tuple(class_names) == tuple(map(str, range(len(class_names))))
    ):
        return images
    for name in ours:
        if name not in class_names:
            raise UserError(
                f"class {name!r} of {images.name} is none of the samples' classes"
                f"{did_you_mean(name, class_names)}"
            )
    ids = np.asarray([list(class_names).index(name) for name in ours], np.int32)

    def read(batch_size: int) -> Iterator[Batch]:
        for batch in images.read(batch_size):
            yield Batch(batch.images, None if batch.labels is None else ids[batch.labels])

    return dataclasses.replace(
        images,
        class_names=tuple(class_names),
        read=read,
        fingerprint=fingerprint([images.fingerprint, *class_names]),
    )


def _rows(length: int, num: int, seed: int) -> np.ndarray:
    require(num <= length, "--num", num, f"at most the number of images, {length}")
    return (
        np.sort(np.random.default_rng(seed).permutation(length)[:num]) if num else np.arange(length)
    )


def _files(directory: epath.Path) -> list[epath.Path]:
    known = Image.registered_extensions()
    names = [
        file.name
        for file in visible_files.walk(directory)
        if os.path.splitext(file.name)[1].lower() in known
    ]
    if not names:
        raise UserError(f"{directory} holds no image files, such as .png or .jpg")
    return [directory / name for name in sorted(names, key=lambda name: name.split("/"))]


def _loaded(
    name: str,
    load: Callable[[int], dict[str, Any]],
    rows: np.ndarray,
    shape: Shape | None,
    resize: transforms.Resize,
    class_names: tuple[str, ...],
    content: str,
    shown: str,
) -> ImageSet:
    """Of images at random access, resized unless `shape` is that of the first."""
    resized = shape is not None
    if shape is None:
        shape = _shape(load(int(rows[0]))["image"].shape)
    else:
        transforms.check(shape, resize)

    size = shape

    def fitted(place: int) -> dict[str, Any]:
        found = load(int(rows[place]))
        pixels = found["image"]
        if resized:
            pixels = transforms.at_size(pixels, size, resize, f"image {rows[place]}")
        elif pixels.shape != size:
            raise UserError(
                f"{shown} holds images of different sizes, {size} and {pixels.shape}; all must "
                "have one"
            )
        return {"image": pixels, "label": np.int32(found["label"])}

    def read(batch_size: int) -> Iterator[Batch]:
        blank = {"image": np.zeros(size, np.uint8), "label": np.int32(0)}
        batches = loader.in_order(
            len(rows),
            fitted,
            blank,
            batch_size,
            0,
            None,
            example_bytes=int(np.prod(size)),
            workers=0,
        )
        for batch in batches:
            mask = batch["mask"]
            yield Batch(batch["image"][mask], batch["label"][mask] if class_names else None)

    told = f"{resize}, centred, to {size[0]} x {size[1]}" if resized else "none"
    if resized and resize == "crop":
        told += "; images of that size as they are"
    return ImageSet(
        name, fingerprint([content, str(size), told]), size, told, len(rows), class_names, read
    )


def _shape(found: tuple[int, ...]) -> Shape:
    height, width, channels = found
    return height, width, channels


def _npz(spec: str, path: epath.Path, shape: Shape | None, num: int, seed: int) -> ImageSet:
    """Of a file that is read row by row: an evaluation's samples may be larger than the memory."""
    if not path.exists():
        raise UserError(f"no file {spec}")
    refuse_stand_in(path, ".npz")
    _refuse_statistics(path)
    with _member(path, "arr_0.npy") as (_, found, dtype):
        fine = len(found) == 4 and found[-1] in (1, 3) and dtype == np.uint8
        require(
            fine,
            f"arr_0 of {spec}",
            f"{dtype} of {found}",
            NPZ_HINT.removeprefix("it must hold arr_0, "),
        )
    require(found[0] > 0, spec, "empty", "of at least one image")
    require(
        shape is None or found[1:] == shape,
        f"the shape of the images in {spec}",
        found[1:],
        f"{shape}, as that of what they are compared with",
    )
    rows, labels = _rows(found[0], num, seed), _npz_labels(path, found[0])

    def read(batch_size: int) -> Iterator[Batch]:
        with _member(path, "arr_0.npy") as (file, _, _):
            wanted, size = set(rows.tolist()), int(np.prod(found[1:]))
            for start in range(0, found[0], batch_size):
                count = min(batch_size, found[0] - start)
                content = file.read(count * size)
                if len(content) < count * size:  # the archive's own list of sizes was wrong
                    raise UserError(f"{spec} is cut off: arr_0 ends before its {found[0]} images")
                images = np.frombuffer(content, np.uint8).reshape(count, *found[1:])
                kept = [i for i in range(count) if start + i in wanted]
                if kept:
                    yield Batch(
                        images[kept],
                        None if labels is None else labels[start : start + count][kept],
                    )

    content = weights.fingerprint(str(path))
    names = () if labels is None else _npz_class_names(path, int(labels.max()) + 1)
    content = fingerprint([content, str((num, seed if num else 0))])
    return ImageSet(spec, content, _shape(found[1:]), "none", len(rows), names, read)


def _refuse_statistics(path: epath.Path):
    """Raises UserError of a reference file of a published protocol, which counts by the moments
    that it holds.

    Such a file's `arr_0` is a part of the images that its `mu` and `sigma` are of: a distance to
    that part alone is another figure than the published one, under the same name.
    """
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return  # `_member` says what is wrong with it
    if found := [name for name in held if name in STATISTICS]:
        raise UserError(
            f"{path} holds the statistics {', '.join(found)} of a published protocol, which this "
            "version does not read; its arr_0, if it has one, is a part of the images that they "
            "are of. Give the real images themselves: a directory, DATASET:SPLIT, or an .npz of "
            "arr_0 alone"
        )


@contextlib.contextmanager
def _member(path: epath.Path, name: str) -> Iterator[tuple[Any, tuple[int, ...], np.dtype]]:
    """An array of an `.npz`, its bytes to be read in order: (file, shape, dtype).

    Raises:
      UserError: the file is damaged, or has no such array, or fewer bytes of it than its header
        promises.
    """
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
            if name not in archive.namelist():
                others = ", ".join(other.removesuffix(".npy") for other in archive.namelist()[:5])
                raise UserError(
                    f"{path} has no {name.removesuffix('.npy')}, but {others}; {NPZ_HINT}"
                )
            with archive.open(name) as file:
                version = np.lib.format.read_magic(file)
                header = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, fortran, dtype = header(file)
                require(not fortran, f"{name} of {path}", "in Fortran's order", "in C's")
                # Before anything is made of the shape's size. Pickled objects have no size that a
                # header tells.
                promised, held = (
                    math.prod(shape) * dtype.itemsize,
                    archive.getinfo(name).file_size - file.tell(),
                )
                if held < promised and not dtype.hasobject:
                    raise UserError(
                        f"{path} is cut off: {name.removesuffix('.npy')} holds {held} bytes of the "
                        f"{promised} that its header promises"
                    )
                yield file, shape, dtype
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} does not read as .npz: {error}; {NPZ_HINT}") from error


def _npz_class_names(path: epath.Path, count: int) -> tuple[str, ...]:
    """Those that `var-jax generate` notes in its settings, where it knows them; else the ids."""
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
    right = (
        isinstance(names, list)
        and len(names) >= count
        and all(isinstance(name, str) for name in names)
    )
    return tuple(names) if right else ids


def _npz_labels(path: epath.Path, count: int) -> Int[np.ndarray, " n"] | None:
    """Of as many images, or None where the file has none that fit.

    Raises:
      UserError: a label that is no class id, or too large for one; fewer of them than the header
        promises.
    """
    with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
        if "arr_1.npy" not in archive.namelist():
            return None
    with _member(path, "arr_1.npy") as (file, shape, dtype):
        if shape != (count,) or dtype.kind not in "iu":
            return None
        content = file.read(count * dtype.itemsize)
        if len(content) < count * dtype.itemsize:
            raise UserError(f"{path} is cut off: arr_1 ends before its {count} labels")
    labels = np.frombuffer(content, dtype)
    for end in (labels.min(), labels.max()):
        require(
            0 <= end <= MAX_LABEL, f"a label in arr_1 of {path}", end, f"from 0 to {MAX_LABEL:,}"
        )
    return labels
