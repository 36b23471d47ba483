"""TFDS builders of data sets that TFDS does not have, written as array_record without TensorFlow.

Images are yielded as encoded files, because TFDS needs TensorFlow to encode arrays. The builders
take arguments and are therefore not registered by name; the name of their configuration is a
fingerprint of their content.
"""

import hashlib
import io
import os
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from sklearn import datasets, model_selection

from var_jax.data import idx
from var_jax.data.image_folder import Listing, content_line, fingerprint, printable
from var_jax.errors import UserError

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FASHION_STEMS = {"train": "train", "test": "t10k"}
DIGITS_TEST = 360


class _Local(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder without downloads: TFDS looks for no checksums and logs no sizes."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _log_download_bytes(self):
        pass

    def _log_download_done(self):
        pass


class Digits(_Local, skip_registration=True):
    """scikit-learn's 1,797 gray 8 x 8 digits, in a fixed stratified split of 1,437 and 360."""

    name = "digits"

    def _info(self):
        return _info(self, channels=1, class_names=[str(digit) for digit in range(10)])

    def _split_generators(self, dl_manager):
        images, labels = datasets.load_digits(return_X_y=True)
        images = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        train, test = model_selection.train_test_split(
            np.arange(len(labels)), test_size=DIGITS_TEST, random_state=0, stratify=labels
        )
        return {
            split: self._generate_examples(images, labels, rows)
            for split, rows in (("train", train), ("test", test))
        }

    def _generate_examples(self, images, labels, rows):
        for row in rows:
            yield int(row), {"image": _png(images[row]), "label": int(labels[row])}


class FashionMnistIdx(_Local, skip_registration=True):
    """Fashion-MNIST, or a data set in its format, from four idx files, which may be gzipped."""

    name = "fashion_mnist_idx"
    VERSION = tfds.core.Version("1.0.1")  # from this version on, the metadata states the content

    def __init__(self, *, directory: epath.Path, data_dir: str | None, earlier: bool = False):
        """Makes the builder of the files' copy.

        Args:
          earlier: whether the copy has the name that earlier versions gave it, of names, sizes and
            whole seconds, which files in two folders may share.
        """
        if not directory.is_dir():
            raise UserError(
                f"{directory} is no directory; data.source_dir must be the folder of "
                "Fashion-MNIST's idx files (on Debian, the package dataset-fashion-mnist brings "
                "them)"
            )
        self._paths = {
            split: [
                idx.find(directory, f"{stem}-{kind}-ubyte")
                for kind in ("images-idx3", "labels-idx1")
            ]
            for split, stem in FASHION_STEMS.items()
        }
        stats = [(path, os.stat(path)) for pair in self._paths.values() for path in pair]
        if earlier:
            state = [f"{path.name}\0{s.st_size}\0{int(s.st_mtime)}" for path, s in stats]
        else:
            state = [f"{path.resolve()}\0{s.st_size}\0{s.st_mtime}" for path, s in stats]
        super().__init__(data_dir=data_dir, config=_content(state))

    def _info(self):
        return _info(self, channels=1, class_names=FASHION_CLASSES)

    def _split_generators(self, dl_manager):
        splits = self._read()
        metadata: Any = self.info.metadata
        metadata["content"] = self.content(splits)
        metadata["brightest"] = max(int(images.max(initial=0)) for images, _ in splits.values())
        return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

    def content(self, splits=None) -> dict[str, str]:
        """Returns {split: fingerprint of its images and labels}; by default the files are read."""
        splits = splits or self._read()
        return {
            split: fingerprint([hashlib.sha256(array.tobytes()).hexdigest() for array in arrays])
            for split, arrays in splits.items()
        }

    def _read(self):
        splits = {}
        for split, (image_path, label_path) in self._paths.items():
            images, labels = idx.read(image_path, 3), idx.read(label_path, 1)
            if len(images) != len(labels):
                raise UserError(
                    f"{image_path} holds {len(images)} images, but {label_path} {len(labels)} "
                    "labels"
                )
            if len(labels) and labels.max() >= len(FASHION_CLASSES):
                raise UserError(f"{label_path} holds the label {labels.max()}; labels go up to 9")
            splits[split] = images, labels
        return splits

    def _generate_examples(self, images, labels):
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield row, {"image": _png(image), "label": int(label)}


class ImageFolder(_Local, skip_registration=True):
    """The files of an image folder with their bytes unchanged; `skipped` names those left out.

    The metadata fingerprints the files' bytes: times change with every copy of a folder, and the
    images do not.
    """

    name = "image_folder"

    def __init__(self, *, files: Listing, data_dir: str | None, state: str = ""):
        """Makes the builder of a folder's copy.

        Args:
          state: the fingerprint that names the copy; by default that of `files`.
        """
        self._files = files
        self.skipped: list[str] = []
        super().__init__(data_dir=data_dir, config=_content([state or files.fingerprint]))

    def _info(self):
        return _info(
            self, channels=3, class_names=self._files.class_names, file_name=tfds.features.Text()
        )

    def _split_generators(self, dl_manager):
        metadata: Any = self.info.metadata
        metadata["skipped"] = self.skipped
        metadata["content"] = {}
        files = self._files.without(set(self.skipped)).files
        return {
            split: self._generate_examples(split, [f for f in files if f.split == split])
            for split in sorted({f.split for f in files})
        }

    def _generate_examples(self, split, files):
        lines = []
        for file in files:
            content = (self._files.root / file.name).read_bytes()
            lines.append(content_line(file, content))
            shown = printable(file.name)
            # TFDS orders images by a hash of the key, which is bytes if a name is not text.
            key = file.name if shown == file.name else os.fsencode(file.name)
            yield key, {"image": io.BytesIO(content), "label": file.label, "file_name": shown}
        metadata: Any = self.info.metadata
        metadata["content"][split] = fingerprint(lines)


def _info(builder, channels: int, class_names, **features):
    return tfds.core.DatasetInfo(
        builder=builder,
        metadata=tfds.core.MetadataDict(),
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, channels)),
                "label": tfds.features.ClassLabel(names=list(class_names)),
                **features,
            }
        ),
    )


def _content(lines: list[str]) -> tfds.core.BuilderConfig:
    return tfds.core.BuilderConfig(name=fingerprint(lines))


def _png(pixels: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    file.seek(0)
    return file
