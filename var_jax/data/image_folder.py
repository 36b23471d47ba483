"""A user's images in folders: directory/class/file, or directory/{train,test,val}/class/file."""

import concurrent.futures
import dataclasses
import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence

from etils import epath
from PIL import Image

from var_jax.data import split_folders
from var_jax.data.visible_files import walk
from var_jax.errors import UserError

HELD_OUT = 0.1
FILES_PER_TASK = 64
GRAY_MODES = ("1", "L", "LA", "La", "I", "F")  # of Pillow
# Unicode's categories of control characters, and of separators of lines and paragraphs.
CONTROLS = ("Cc", "Zl", "Zp")


@dataclasses.dataclass(frozen=True)
class File:
    """One image file.

    Attributes:
      name: path below the directory, joined by "/".
      label: its class id.
      split: "train", "test" or "val".
      size, modified: size in bytes and modification time, which reveal a change.
    """

    name: str
    label: int
    split: str
    size: int
    modified: float


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of an image folder in a fixed order.

    Links that lead nowhere, or back to a folder above them, are listed as empty files.

    Attributes:
      root: the directory.
      class_names: names of the class folders as `printable` returns them; a label is an index into
        them. They are in natural order ("2" before "10"), unless the caller chose another.
      files: visible files, sorted by name.
      notes: remarks for the user on how the folders were read, one line each.
    """

    root: epath.Path
    class_names: tuple[str, ...]
    files: tuple[File, ...]
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the folder and its files' state, which names the copy that is made of it.

        It changes when a file is added, removed, renamed or written to. Other folders have others,
        whatever their files.
        """
        root = str(self.root) if "://" in str(self.root) else os.path.realpath(self.root)
        return fingerprint([root, *self._lines([f.modified for f in self.files])])

    @property
    def earlier_fingerprint(self) -> str:
        """Fingerprint by which earlier versions named copies, of whole seconds and no folder.

        Two folders may share it.
        """
        # Files without a time are links that lead nowhere.
        return fingerprint(self._lines([int(f.modified) or 0.0 for f in self.files]))

    def _lines(self, times: Sequence[float]) -> list[str]:
        files = zip(self.files, times, strict=True)
        return [
            f"{self.class_names}",
            *(f"{f.name}\0{f.split}\0{f.size}\0{time}" for f, time in files),
        ]

    @property
    def counts(self) -> dict[str, tuple[int, ...]]:
        """Numbers of files of each class, by split."""
        counts = {
            split: [0] * len(self.class_names) for split in sorted({f.split for f in self.files})
        }
        for file in self.files:
            counts[file.split][file.label] += 1
        return {split: tuple(per_class) for split, per_class in counts.items()}

    def without(self, names: set[str]) -> "Listing":
        """Returns the listing without the named files."""
        return dataclasses.replace(self, files=tuple(f for f in self.files if f.name not in names))

    def in_order(self, class_names: Sequence[str]) -> "Listing":
        """Returns the same files, labeled by another order of the same classes."""
        label = {name: i for i, name in enumerate(class_names)}
        files = tuple(
            dataclasses.replace(f, label=label[self.class_names[f.label]]) for f in self.files
        )
        return dataclasses.replace(self, class_names=tuple(class_names), files=files)


def natural_sort_key(name: str) -> tuple:
    """Returns a sort key that compares numbers in names by value.

    It puts "img2" before "img10", and "1" before "01".
    """
    parts = re.split(r"(\d+)", name)  # digits at odd positions, other text at even ones
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), len(name), name


def printable(name: str) -> str:
    """Returns the name of a file or folder as text that can be printed; most names are unchanged.

    Names on a disk are bytes. Bytes that are not UTF-8, as in names from old archives, are written
    as `\\xe9`; control characters, such as line breaks, are escaped likewise.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    escaped = (
        c.encode("unicode_escape").decode() if unicodedata.category(c) in CONTROLS else c
        for c in text
    )
    return "".join(escaped)


def fingerprint(lines: list[str]) -> str:
    """Returns 16 hexadecimal digits that change with the lines and their order."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def content_line(file: File, content: bytes) -> str:
    """Returns a file's line in its split's fingerprint, which copies of the file share."""
    return f"{file.name}\0{file.label}\0{hashlib.sha256(content).hexdigest()}"


def content(files: Listing) -> dict[str, str]:
    """Returns {split: fingerprint of its content}; reads every file to its end."""

    def line(file: File) -> str:
        try:
            return content_line(file, (files.root / file.name).read_bytes())
        except OSError as error:
            raise UserError(
                f"{files.root / file.name} cannot be read ({error.strerror or error})"
            ) from error

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        lines = list(pool.map(line, files.files))
    return {
        split: fingerprint(
            [text for file, text in zip(files.files, lines, strict=True) if file.split == split]
        )
        for split in sorted({file.split for file in files.files})
    }


def listing(
    directory: str, class_names: Sequence[str] = (), *, whole_train: bool = False
) -> Listing:
    """Lists an image folder; the files of a class may be at any depth.

    If no folders are splits, about a tenth of every class (by a hash of the names, and at least one
    file of two) is held out as "test".

    Args:
      directory: the folder.
      class_names: classes of an earlier run. If the folders are the same ones, they keep that
        order, and folders that look like splits stay the classes that they were then.
      whole_train: whether all files are for training if the only split is one for training.
    Raises:
      UserError: the directory is missing or has no class folders; a class folder has no files; or
        folders look like splits and cannot be read as such.
    """
    root = epath.Path(directory).expanduser()
    if not directory or not root.is_dir():
        raise UserError(
            f"data.source_dir {directory!r} is no directory; it must hold one folder of images "
            "per class"
        )
    folders = split_folders.subfolders(root)
    if not folders:
        raise UserError(f"{directory} has no folders; it must hold one folder of images per class")
    if class_names and sorted(class_names) == sorted(
        _class_names(set(folders), directory).values()
    ):
        layout = split_folders.Layout((split_folders.Part("", "", folders),))
    else:
        layout = split_folders.layout(root)
    names = _class_names({name for part in layout.parts for name in part.classes}, directory)
    shown = sorted(names.values(), key=natural_sort_key)
    files: list[File] = []
    for part in layout.parts:
        split = "train" if whole_train and part.prefix and not part.split else part.split
        for name, folder in part.classes.items():
            prefix = f"{part.prefix}/{name}".strip("/")
            class_files = [
                File(path, shown.index(names[name]), split, size, modified)
                for path, size, modified in walk(folder, prefix)
            ]
            files += class_files if split else _hold_out(class_files)
    for label in sorted(set(range(len(shown))) - {f.label for f in files}):
        raise UserError(
            f"class folder {shown[label]!r} of {directory} holds no files; fill it or remove it"
        )
    result = Listing(root, tuple(shown), tuple(sorted(files, key=lambda f: f.name)), layout.notes)
    return result.in_order(class_names) if sorted(class_names) == sorted(shown) else result


def _class_names(folders: set[str], directory: str) -> dict[str, str]:
    """Returns {folder name: class name}.

    Raises:
      UserError: two folders would be the same class.
    """
    names = {folder: printable(folder).strip() or repr(folder) for folder in folders}
    for name in names.values():
        if len(same := [folder for folder in folders if names[folder] == name]) > 1:
            raise UserError(
                f"folders {', '.join(map(ascii, sorted(same)))} of {directory} would all be the "
                f"class {name!r}; rename them"
            )
    return names


def channels(files: Listing) -> int:
    """Returns 3 if any file is in color, by its header, else 1."""
    return 3 if any(_has_color(files.root / file.name) for file in files.files) else 1


def _has_color(path: epath.Path) -> bool:
    """Returns whether a file is an image in color, by its header."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            return image.mode not in GRAY_MODES and not image.mode.startswith("I;16")
    except Exception:  # Pillow's plugins raise nearly every kind
        return False


def _hold_out(files: list[File]) -> list[File]:
    """Returns the files of a class, divided into "train" and "test"."""
    # The hash of a file's own name decides: it keeps its split when other files come or go, and
    # neighboring frames of a video do not end up together. Only if one split would be empty, it
    # gets the file with the nearest hash.
    order = sorted(files, key=lambda f: _hash(f.name))
    count = sum(_hash(f.name) < HELD_OUT for f in files)
    count = min(max(count, 1), len(files) - 1)
    return [
        dataclasses.replace(f, split="test" if i < count else "train") for i, f in enumerate(order)
    ]


def _hash(name: str) -> float:
    """Returns a pseudorandom number in [0, 1)."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6]) / 2**48
