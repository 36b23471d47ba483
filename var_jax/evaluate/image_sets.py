"""Sets of images to evaluate: `.npz` files, folders of image files, and splits of data sets."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from PIL import Image

from var_jax.config.sections import current_resize_name, oldest_resize_name
from var_jax.config.strict import require
from var_jax.config.train import DataConfig
from var_jax.data import image_file, sources, streams, survey, transforms, visible_files
from var_jax.data.image_folder import fingerprint, printable
from var_jax.errors import UserError, did_you_mean
from var_jax.evaluate import npz_images
from var_jax.io.failed_downloads import refuse_failed_download
from var_jax.pretrained import weights

LABELED = "a directory of class folders, DATASET:SPLIT, or FILE.npz with labels in arr_1"
Shape = tuple[int, int, int]


class Batch(NamedTuple):
    """Images and, if the set has them, their labels."""

    images: UInt8[np.ndarray, "b h w c"]
    labels: Int[np.ndarray, " b"] | None


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images of one size, in a fixed order.

    Attributes:
      name: as the user named the set.
      fingerprint: changes with the images, their number and how they are resized.
      shape: (height, width, channels) of every image.
      resize: how the images were brought to that shape, for reports.
      count: number of images.
      class_names: class names by label; empty where there are no labels.
      read: function from the batch size to batches in order; the last one may be smaller.
    """

    name: str
    fingerprint: str
    shape: Shape
    resize: str
    count: int
    class_names: tuple[str, ...]
    read: Callable[[int], Iterator[Batch]]

    def described(self) -> dict[str, Any]:
        """Returns the entry of this set in a report."""
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
    """Opens the images that a user names.

    Args:
      spec: FILE.npz with uint8 `arr_0` (labels, if any, in `arr_1`); a directory, whose visible
        image files at any depth are taken; or DATASET:SPLIT, such as fashion_mnist_idx:test,
        imagenet2012:validation or digits:train[:100].
      shape: (height, width, channels) to resize images to; by default that of the first image,
        which all must have.
      resize: how to resize, as in training, with center crops. Images that have the height and
        width stay as they are, and those of an `.npz` must have the shape already.
      data_dir: `data.data_dir` of a training config, for DATASET.
      source_dir: `data.source_dir` of a training config, for DATASET.
      num: size of a random subset, chosen by `seed`; 0 for all images.
    Raises:
      UserError: there is no such file, directory, data set or split, or its content does not fit.
    """
    require(num >= 0, "--num", num, "0, for all, or more")
    resize = current_resize_name(resize)
    path = epath.Path(spec).expanduser()
    if spec.endswith(".npz"):
        if path.exists():
            npz_images.refuse_statistics(path)
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

        reading = survey.Reading(spec, len(rows))

        def load(i: int) -> dict[str, Any]:
            samples = image_file.read(files[i].read_bytes(), str(files[i]))
            pixels = image_file.pixels_of(samples, str(files[i]))
            reading.add(i, str(files[i].relative_to(path)), samples)
            return {"image": pixels, "label": -1}

        return _loaded(
            spec,
            load,
            rows,
            shape=shape,
            resize=resize,
            class_names=(),
            content=content,
            shown=shown,
        )
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
        spec,
        split.__getitem__,
        rows,
        shape=shape,
        resize=resize,
        class_names=split.class_names,
        content=content,
        shown=f"data set {spec}",
    )


def open_images_of_statistics(spec: str, size: tuple[int, int]) -> ImageSet:
    """Opens the images in a reference file of statistics.

    They are usually only some of the images that the statistics were computed from.

    Args:
      spec: FILE.npz.
      size: (height, width) of the samples. The channels may differ: networks repeat a single one.
    Raises:
      UserError: the images have another size, or cannot be read.
    """
    images = _npz(spec, epath.Path(spec).expanduser(), None, 0, 0)
    require(
        images.shape[:2] == size,
        f"the size of the images in {spec}",
        images.shape[:2],
        f"{size}, as that of what they are compared with",
    )
    return images


def open_labeled(spec: str, **options: Any) -> ImageSet:
    """Opens images with their labels, for metrics that need them; arguments as for `open_images`.

    A directory must consist of class folders. It is read as training reads `data.source_dir`, and
    its training split is returned.

    Raises:
      UserError: as in `open_images`; or the directory has no class folders, or the images no
        labels.
    """
    if not spec.endswith(".npz") and epath.Path(spec).expanduser().is_dir():
        opened = open_images("image_folder:train", **{**options, "source_dir": spec})
        return dataclasses.replace(opened, name=spec)
    images = open_images(spec, **options)
    require(bool(images.class_names), spec, "without labels", LABELED)
    return images


def with_classes_of(images: ImageSet, class_names: Sequence[str]) -> ImageSet:
    """Returns the same images, labeled by the order of classes of another set.

    Call it before labels of two sets are compared: two folders may order the same classes
    differently. If either set has no names (as `.npz` files, whose classes are named by their ids),
    labels stay as they are.

    Raises:
      UserError: a class is not among `class_names`.
    """
    own_names = images.class_names
    if own_names == tuple(class_names) or _are_ids(own_names) or _are_ids(class_names):
        return images
    for name in own_names:
        if name not in class_names:
            raise UserError(
                f"class {name!r} of {images.name} is none of the samples' classes"
                f"{did_you_mean(name, class_names)}"
            )
    ids = np.asarray([list(class_names).index(name) for name in own_names], np.int32)

    def read(batch_size: int) -> Iterator[Batch]:
        for batch in images.read(batch_size):
            yield Batch(batch.images, None if batch.labels is None else ids[batch.labels])

    return dataclasses.replace(
        images,
        class_names=tuple(class_names),
        read=read,
        fingerprint=fingerprint([images.fingerprint, *class_names]),
    )


def _are_ids(class_names: Sequence[str]) -> bool:
    """Returns whether classes have no names other than 0, 1, 2, ..."""
    return tuple(class_names) == tuple(map(str, range(len(class_names))))


def _rows(length: int, num: int, seed: int) -> np.ndarray:
    """Returns the indices of all images, or of a random subset of `num`, ascending."""
    require(num <= length, "--num", num, f"at most the number of images, {length}")
    if not num:
        return np.arange(length)
    return np.sort(np.random.default_rng(seed).permutation(length)[:num])


def _files(directory: epath.Path) -> list[epath.Path]:
    """Returns the visible image files in a directory, at any depth, folder by folder."""
    known = Image.registered_extensions()
    names, others = [], []
    for file in visible_files.walk(directory):
        extension = os.path.splitext(file.name)[1].lower()
        (names if extension in known else others).append(file.name)
    if not names:
        raise UserError(f"{directory} holds no image files, such as .png or .jpg")
    if others:
        survey.say(
            f"{len(names)} images of {directory}; {len(others)} files are left out, as their names "
            f"do not end as images' do ({printable(min(others))}{', ...' * (len(others) > 1)})"
        )
    return [directory / name for name in sorted(names, key=lambda name: name.split("/"))]


def _loaded(
    name: str,
    load: Callable[[int], dict[str, Any]],
    rows: np.ndarray,
    *,
    shape: Shape | None,
    resize: transforms.Resize,
    class_names: tuple[str, ...],
    content: str,
    shown: str,
) -> ImageSet:
    """Returns a set of images with random access.

    Args:
      name: as the user named the set.
      load: takes an index and returns {"image", "label"}.
      rows: indices of the images in the set.
      shape: shape to resize to; None for that of the first image, without resizing.
      class_names: class names by label; empty where there are no labels.
      content: fingerprint of the images as they are stored.
      shown: name of the set in a message.
    """
    resized = shape is not None
    if shape is None:
        shape = _shape(load(int(rows[0]))["image"].shape)
    else:
        transforms.check(shape, resize)

    size = shape

    def load_resized(place: int) -> dict[str, Any]:
        example = load(int(rows[place]))
        pixels = example["image"]
        if resized:
            pixels = transforms.at_size(pixels, size, resize, f"image {rows[place]}")
        elif pixels.shape != size:
            raise UserError(
                f"{shown} holds images of different sizes, {size} and {pixels.shape}; all must "
                "have one"
            )
        return {"image": pixels, "label": np.int32(example["label"])}

    def read(batch_size: int) -> Iterator[Batch]:
        blank = {"image": np.zeros(size, np.uint8), "label": np.int32(0)}
        examples = streams.Examples(len(rows), load_resized, blank, int(np.prod(size)))
        for batch in streams.in_order(examples, batch_size, workers=0):
            mask = batch["mask"]
            yield Batch(batch["image"][mask], batch["label"][mask] if class_names else None)

    resize_text = f"{resize}, centered, to {size[0]} x {size[1]}" if resized else "none"
    if resized and resize == "crop":
        resize_text += "; images of that size as they are"
    return ImageSet(
        name,
        fingerprint([content, str(size), _first_text(resize_text)]),
        size,
        resize_text,
        len(rows),
        class_names,
        read,
    )


def current_text(resize_text: str) -> str:
    """Returns the present text of an `ImageSet.resize` that an earlier version wrote."""
    name, comma, rest = resize_text.partition(", centred,")
    return f"{current_resize_name(name)}, centered,{rest}" if comma else resize_text


def _first_text(resize_text: str) -> str:
    """Returns `ImageSet.resize` in the words that it had first, which fingerprints keep."""
    name, comma, rest = resize_text.partition(", centered,")
    return f"{oldest_resize_name(name)}, centred,{rest}" if comma else resize_text


def _shape(shape: tuple[int, ...]) -> Shape:
    height, width, channels = shape
    return height, width, channels


def _npz(spec: str, path: epath.Path, shape: Shape | None, num: int, seed: int) -> ImageSet:
    """Returns the images of an `.npz` file, which is read row by row: it may exceed the memory."""
    if not path.exists():
        raise UserError(f"no file {spec}")
    refuse_failed_download(path, ".npz")
    with npz_images.open_images(path) as (_, file_shape, dtype):
        is_images = len(file_shape) == 4 and file_shape[-1] in (1, 3) and dtype == np.uint8
        require(is_images, f"arr_0 of {spec}", f"{dtype} of {file_shape}", npz_images.LAYOUT)
    require(file_shape[0] > 0, spec, "empty", "of at least one image")
    require(
        shape is None or file_shape[1:] == shape,
        f"the shape of the images in {spec}",
        file_shape[1:],
        f"{shape}, as that of what they are compared with",
    )
    rows, labels = _rows(file_shape[0], num, seed), npz_images.read_labels(path, file_shape[0])

    def read(batch_size: int) -> Iterator[Batch]:
        with npz_images.open_images(path) as (file, _, _):
            chosen, size = set(rows.tolist()), int(np.prod(file_shape[1:]))
            for start in range(0, file_shape[0], batch_size):
                count = min(batch_size, file_shape[0] - start)
                content = file.read(count * size)
                if len(content) < count * size:  # the archive's directory states a wrong size
                    raise UserError(
                        f"{spec} is cut off: arr_0 ends before its {file_shape[0]} images"
                    )
                images = np.frombuffer(content, np.uint8).reshape(count, *file_shape[1:])
                chosen_here = [i for i in range(count) if start + i in chosen]
                if chosen_here:
                    here = None if labels is None else labels[start : start + count][chosen_here]
                    yield Batch(images[chosen_here], here)

    content = weights.fingerprint(str(path))
    names = () if labels is None else npz_images.read_class_names(path, int(labels.max()) + 1)
    content = fingerprint([content, str((num, seed if num else 0))])
    return ImageSet(spec, content, _shape(file_shape[1:]), "none", len(rows), names, read)
