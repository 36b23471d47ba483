"""Distinguishes the split folders of an image folder from its class folders.

Reading a folder `valid/` as a class would silently train on held-out images, and reading a class as
a split would lose its images. So only unambiguous layouts are read; the others are refused, or
noted, by name.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

from etils import epath
from PIL import Image

from var_jax.data.visible_files import visible, walk
from var_jax.errors import UserError

ROLES = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
}
SPLIT_OF = {word: role for role, words in ROLES.items() for word in words}
NAMES_SHOWN = 5

Folders = dict[str, epath.Path]


class Part(NamedTuple):
    """The class folders of one split.

    Attributes:
      split: "train", "test" or "val"; "" if files are yet to be held out.
      prefix: the split's folder below the root, as it is spelled; "" if the classes are in the
        root.
      classes: the class folders, by their names on the disk.
    """

    split: str
    prefix: str
    classes: Folders


class Layout(NamedTuple):
    """The splits of an image folder.

    Attributes:
      parts: its splits.
      notes: remarks for the user on the layout, one line each.
    """

    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()


def layout(root: epath.Path) -> Layout:
    """Reads which folders of an image folder are splits, and which are classes.

    Folders are splits when one of them is named train (or training), has class folders, and is next
    to another split, or next to no other images. Names that only contain such a word, such as
    train_images, must share a class folder with each other. Anything else next to splits is left
    out, with a note.

    Raises:
      UserError: folders look like splits, and reading them as such would be a guess.
    """
    folders = subfolders(root)
    inside = {name: subfolders(folder) for name, folder in folders.items()}
    exact = {name: role for name in folders if (role := _role(name))}
    by_word = {name: role for name in folders if (role := _role_within(name))}
    for roles in (exact, by_word):
        if _are_splits(root, folders, inside, roles, must_share=roles is by_word):
            return _with_splits(root, inside, roles)
    _refuse_splits_among_classes(root, folders, inside, exact)
    _refuse_unpaired_split(root, inside, {**by_word, **exact})
    return Layout((Part("", "", folders),), tuple(_class_notes(root, inside, by_word)))


def subfolders(folder: epath.Path) -> Folders:
    """Returns the visible folders in a folder, by name."""
    return {path.name: path for path in visible(folder) if path.is_dir()}


def listed(names) -> str:
    """Returns the first few names and the number of the others, for a message."""
    names = sorted(names)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(map(repr, names[:NAMES_SHOWN])) + more


def _role(name: str) -> str | None:
    """Returns the role of a name, whatever its case, width of letters and spaces."""
    return SPLIT_OF.get(_normalized(name).strip())


def _normalized(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _role_within(name: str) -> str | None:
    """Returns the one role that the words of a name mean, or None.

    It is "train" for "train_images" and "Train2017".
    """
    roles = {SPLIT_OF[word] for word in re.split(r"[^a-z]+", _normalized(name)) if word in SPLIT_OF}
    return roles.pop() if len(roles) == 1 else None


def _are_splits(
    root: epath.Path,
    folders: Folders,
    inside: Mapping[str, Folders],
    roles: Mapping[str, str],
    *,
    must_share: bool,
) -> bool:
    """Returns whether the folders with roles are splits.

    Args:
      root: the image folder.
      folders: its folders.
      inside: the folders in each of them.
      roles: the roles of the folders whose names have one, by name.
      must_share: whether a training folder and another one must have a class folder in common.
    Raises:
      UserError: two folders are the same split.
    """
    train = [name for name, role in roles.items() if role == "train" and inside[name]]
    if not train:
        return False
    held = [name for name, role in roles.items() if role != "train"]
    if must_share and not any(
        inside[one].keys() & inside[other].keys() for one in train for other in held
    ):
        return False
    if not held and any(
        _holds_images(folder) for name, folder in folders.items() if name not in roles
    ):
        return False
    for role in ROLES:
        same = [name for name in roles if roles[name] == role and inside[name]]
        if len(same) > 1:
            raise UserError(
                f"{root} has {listed(same)}, which are all the split {role!r}; keep one of them, "
                "or move its class folders into the other"
            )
    return True


def _with_splits(
    root: epath.Path, inside: Mapping[str, Folders], roles: Mapping[str, str]
) -> Layout:
    """Returns the parts of a folder of splits.

    Some training files are to be held out if no other split has class folders.
    """
    with_classes = {role: name for name, role in roles.items() if inside[name]}
    alone = len(with_classes) == 1
    parts = tuple(
        Part("" if alone else role, name, inside[name]) for role, name in with_classes.items()
    )
    notes = [
        f"folder {name!r} of {root} looks like a split and has no class folders; it is left out"
        for name in roles
        if not inside[name]
    ]
    if others := inside.keys() - roles.keys():
        notes.append(
            f"{root} holds splits ({listed(with_classes.values())}); what is next to them is "
            f"left out: {listed(others)}"
        )
    return Layout(parts, tuple(notes))


def _refuse_splits_among_classes(
    root: epath.Path, folders: Folders, inside: Mapping[str, Folders], exact: Mapping[str, str]
):
    """Raises UserError for held-out images that would be trained on, as or in a class."""
    remedy = f"it must be {root}/train/CLASS/FILE and {root}/test/CLASS/FILE"
    if exact and exact.keys() == folders.keys() and (len(exact) > 1 or any(inside.values())):
        what = (
            "but none for training"
            if "train" not in exact.values()
            else "that hold no class folders"
        )
        raise UserError(
            f"{root} has folders that look like splits ({listed(exact)}), {what}; {remedy}"
        )
    for name in exact:
        if shared := inside[name].keys() & folders.keys():
            raise UserError(
                f"folder {name!r} of {root} looks like a split next to the class folders "
                f"{listed(shared)}, which it holds too; {remedy}"
            )
    for name, below in inside.items():
        roles = {_role(one) for one in below} - {None}
        if "train" in roles and len(roles) > 1 and len(folders) == 1:
            raise UserError(
                f"{root} holds one folder, {name!r}, whose folders are splits; give "
                f"data.source_dir={root / name}"
            )
        if "train" in roles and len(roles) > 1:
            raise UserError(
                f"class folder {name!r} of {root} holds splits ({listed(below)}); {remedy}"
            )


def _refuse_unpaired_split(
    root: epath.Path, inside: Mapping[str, Folders], roles: Mapping[str, str]
):
    """Raises UserError for a split next to a folder of the same classes that is named otherwise.

    Examples are `training` next to `Prüfung` or `unlabeled`: as classes, nothing in an image would
    distinguish them.
    """
    for name in roles:
        for other in inside.keys() - roles.keys():
            if shared := inside[name].keys() & inside[other].keys():
                raise UserError(
                    f"folder {name!r} of {root} looks like a split, and {other!r} next to it holds "
                    f"the same class folders ({listed(shared)}); name it train, test or val, or "
                    "move it elsewhere"
                )


def _class_notes(root: epath.Path, inside: Mapping[str, Folders], split_like: Mapping[str, str]):
    if split_like:
        yield f"folders of {root} that look like splits are taken for classes: {listed(split_like)}"
    everywhere = set.intersection(*(set(below) for below in inside.values())) if inside else set()
    if len(inside) > 1 and everywhere:
        yield (
            f"the classes of {root} ({listed(inside)}) hold folders of the same names "
            f"({listed(everywhere)}); if they are splits, name them train and test"
        )
    if len(inside) == 1:
        ((name, below),) = inside.items()
        if len(below) > 1:
            yield (
                f"{root} holds one class, {name!r}, with folders in it ({listed(below)}); if those "
                f"are the classes, give data.source_dir={root / name}"
            )


def _holds_images(folder: epath.Path) -> bool:
    known = tuple(Image.registered_extensions())
    return any(file.name.lower().endswith(known) for file in walk(folder))
