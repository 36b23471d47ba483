"""A user's own images: directory/class/file, or directory/{train,test,val}/class/file."""

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
FILES_A_TASK = 64
GREY_MODES = ("1", "L", "LA", "La", "I", "F")  # of Pillow
CONTROLS = (
    "Cc",
    "Zl",
    "Zp",
)  # categories of Unicode: control characters, and separators of lines and paragraphs


@dataclasses.dataclass(frozen=True)
class File:
    """One image: its path below the directory (with "/"), class and split, and what tells that it
    changed."""

    name: str
    label: int
    split: str
    size: int
    modified: float


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a directory in a fixed order, links that lead nowhere or back among them as
    files of no size.

    Attributes:
      root: the directory.
      class_names: names of the class folders as `printable` gives them; a label is an index into
        them. Numbers in them count as numbers ("2" before "10"), unless the caller asked for an
        order of its own.
      files: sorted by name. Hidden files are left out.
      notes: what the user should know of how the folders were read, a line each.
    """

    root: epath.Path
    class_names: tuple[str, ...]
    files: tuple[File, ...]
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Changes with every file that is added, removed, renamed or written to."""
        lines = [
            f"{self.class_names}",
            *(f"{f.name}\0{f.split}\0{f.size}\0{f.modified}" for f in self.files),
        ]
        return fingerprint(lines)

    @property
    def counts(self) -> dict[str, tuple[int, ...]]:
        """{split: files of each class}."""
        counts = {
            split: [0] * len(self.class_names) for split in sorted({f.split for f in self.files})
        }
        for file in self.files:
            counts[file.split][file.label] += 1
        return {split: tuple(some) for split, some in counts.items()}

    def without(self, names: set[str]) -> "Listing":
        return dataclasses.replace(self, files=tuple(f for f in self.files if f.name not in names))

    def in_order(self, class_names: Sequence[str]) -> "Listing":
        """The same files with labels by another order of the same classes."""
        label = {name: i for i, name in enumerate(class_names)}
        files = tuple(
            dataclasses.replace(f, label=label[self.class_names[f.label]]) for f in self.files
        )
        return dataclasses.replace(self, class_names=tuple(class_names), files=files)


def natural(name: str) -> tuple:
    """Sorts texts with the numbers in them by value: "img2" before "img10", and "1" before "01"."""
    parts = re.split(r"(\d+)", name)  # texts at even places, digits at odd ones
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), len(name), name


def printable(name: str) -> str:
    """A file's or folder's name as text that any encoding takes; most names as they are.

    Names on a disk are bytes. Those that are no UTF-8, as old archives leave them, have the bytes
    in question written as `\\xe9`, and control characters, such as a line break, are escaped
    likewise.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    escaped = (
        c.encode("unicode_escape").decode() if unicodedata.category(c) in CONTROLS else c
        for c in text
    )
    return "".join(escaped)


def fingerprint(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def content_line(file: File, content: bytes) -> str:
    """A file as the fingerprint of its split has it: by its bytes, since a copy has other times."""
    return f"{file.name}\0{file.label}\0{hashlib.sha256(content).hexdigest()}"


def content(files: Listing) -> dict[str, str]:
    """The fingerprint of every split's content; every file is read to its end."""

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


def listing(directory: str, class_names: Sequence[str] = (), whole_train: bool = False) -> Listing:
    """What is in the directory, files of a class at any depth.

    Without folders for splits, about a tenth of every class (by a hash of the names, at least one
    file where there are two) is held out as "test".

    Args:
      class_names: the classes as an earlier run knows them. Where the folders are the same, in
        whatever order, they keep its order, and folders that look like splits stay the classes that
        they were then.
      whole_train: do not hold out files of a folder of training images alone.
    Raises:
      UserError: the directory is missing, or has no class folders, or one of them has no files, or
        folders in it look like splits and cannot be read as such.
    """
    root = epath.Path(directory).expanduser()
    if not directory or not root.is_dir():
        raise UserError(
            f"data.source_dir {directory!r} is no directory; it must hold one folder of images a "
            "class"
        )
    folders = split_folders.subfolders(root)
    if not folders:
        raise UserError(f"{directory} has no folders; it must hold one folder of images a class")
    if class_names and sorted(class_names) == sorted(
        _class_names(set(folders), directory).values()
    ):
        found = split_folders.Layout((split_folders.Part("", "", folders),))
    else:
        found = split_folders.layout(root)
    names = _class_names({name for part in found.parts for name in part.classes}, directory)
    shown = sorted(names.values(), key=natural)
    files: list[File] = []
    for part in found.parts:
        split = "train" if whole_train and part.prefix and not part.split else part.split
        for name, folder in part.classes.items():
            prefix = f"{part.prefix}/{name}".strip("/")
            seen = [
                File(path, shown.index(names[name]), split, size, modified)
                for path, size, modified in walk(folder, prefix)
            ]
            files += seen if split else _hold_out(seen)
    for label in sorted(set(range(len(shown))) - {f.label for f in files}):
        raise UserError(
            f"class folder {shown[label]!r} of {directory} holds no files; fill it or remove it"
        )
    whole = Listing(root, tuple(shown), tuple(sorted(files, key=lambda f: f.name)), found.notes)
    return whole.in_order(class_names) if sorted(class_names) == sorted(shown) else whole


def _class_names(folders: set[str], directory: str) -> dict[str, str]:
    """{folder's name: the class's}.

    Raises:
      UserError: two folders would be one class.
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
    """3 where a file has color by its header, else 1; the first one with color ends the search."""
    return 3 if any(_has_color(files.root / file.name) for file in files.files) else 1


def _has_color(path: epath.Path) -> bool:
    """Of what is no image, False: whoever reads it says so."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            return image.mode not in GREY_MODES and not image.mode.startswith("I;16")
    except Exception:  # Pillow's plugins raise nearly every kind
        return False


def _hold_out(files: list[File]) -> list[File]:
    """The files of a class, each in its split."""
    # By its own name's hash alone: a file keeps its side whatever comes or goes, and neighbours in
    # a video are not taken together. Only a class with no file on one side lends it the nearest
    # one.
    order = sorted(files, key=lambda f: _hash(f.name))
    count = sum(_hash(f.name) < HELD_OUT for f in files)
    count = min(max(count, 1), len(files) - 1)
    return [
        dataclasses.replace(f, split="test" if i < count else "train") for i, f in enumerate(order)
    ]


def _hash(name: str) -> float:
    """In [0, 1), as good as random."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6]) / 2**48
