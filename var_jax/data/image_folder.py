"""A user's own images: directory/class/file, or directory/{train,test,val}/class/file."""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import os

from etils import epath

from var_jax.data import transforms
from var_jax.data.visible_files import visible, walk
from var_jax.errors import UserError

SPLITS = ("train", "test", "val")
HELD_OUT = 0.1
FILES_A_TASK = 64


@dataclasses.dataclass(frozen=True)
class File:
    """One image: its path below the directory (with "/"), class and split, and what tells that it changed."""

    name: str
    label: int
    split: str
    size: int
    modified: float


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a directory in a fixed order, links that lead nowhere or back among them as files of no size.

    Attributes:
      root: the directory.
      class_names: names of the class folders, sorted; a label is an index into them.
      files: sorted by name. Hidden files are left out.
    """

    root: epath.Path
    class_names: tuple[str, ...]
    files: tuple[File, ...]

    @property
    def fingerprint(self) -> str:
        """Changes with every file that is added, removed, renamed or written to."""
        lines = [f"{self.class_names}", *(f"{f.name}\0{f.split}\0{f.size}\0{f.modified}" for f in self.files)]
        return fingerprint(lines)

    def without(self, names: set[str]) -> "Listing":
        return dataclasses.replace(self, files=tuple(f for f in self.files if f.name not in names))


def fingerprint(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def listing(directory: str) -> Listing:
    """What is in the directory, files of a class at any depth.

    Without folders for splits, about a tenth of every class (by a hash of the names, at least one file where there
    are two) is held out as "test".

    Raises:
      UserError: the directory is missing, or has no class folders, or one of them has no files.
    """
    root = epath.Path(directory).expanduser()
    if not directory or not root.is_dir():
        raise UserError(f"data.source_dir {directory!r} is no directory; it must hold one folder of images a class")
    folders = {path.name: path for path in visible(root) if path.is_dir()}
    if "train" in folders and set(folders) <= set(SPLITS) and any(p.is_dir() for p in visible(folders["train"])):
        splits = {split: {p.name: p for p in visible(folder) if p.is_dir()} for split, folder in folders.items()}
    else:
        splits = {"": folders}
    class_names = tuple(sorted(set().union(*splits.values())))
    if not class_names:
        raise UserError(f"{directory} has no folders; it must hold one folder of images a class")
    files = []
    for split, classes in splits.items():
        for name, folder in classes.items():
            label = class_names.index(name)
            found = [File(path, label, split, size, modified) for path, size, modified in
                     walk(folder, f"{split}/{name}".strip("/"))]
            files += found if split else _hold_out(found)
    for label in sorted(set(range(len(class_names))) - {f.label for f in files}):
        raise UserError(f"class folder {class_names[label]!r} of {directory} holds no files; fill it or remove it")
    return Listing(root, class_names, tuple(sorted(files, key=lambda f: f.name)))


def undecodable(files: Listing) -> dict[str, str]:
    """{name: message} of the files that do not decode; every file is read to its end."""
    def check(start: int) -> list[tuple[str, str]]:
        bad = []
        for file in files.files[start:start + FILES_A_TASK]:
            try:
                transforms.decode((files.root / file.name).read_bytes(), str(files.root / file.name))
            except UserError as error:
                bad.append((file.name, str(error)))
            except OSError as error:
                bad.append((file.name, f"{files.root / file.name} cannot be read ({error.strerror or error})"))
        return bad

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside Python's lock
        return dict(itertools.chain.from_iterable(pool.map(check, range(0, len(files.files), FILES_A_TASK))))


def _hold_out(files: list[File]) -> list[File]:
    """The files of a class, each in its split."""
    # By its own name's hash alone: a file keeps its side whatever comes or goes, and neighbours in a video are not
    # taken together. Only a class with no file on one side lends it the nearest one.
    order = sorted(files, key=lambda f: _hash(f.name))
    count = sum(_hash(f.name) < HELD_OUT for f in files)
    count = min(max(count, 1), len(files) - 1)
    return [dataclasses.replace(f, split="test" if i < count else "train") for i, f in enumerate(order)]


def _hash(name: str) -> float:
    """In [0, 1), as good as random."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6]) / 2**48
