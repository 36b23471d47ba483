"""The visible files below a directory: the one walk that training and evaluation share."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath


class Seen(NamedTuple):
    """A visible file.

    Attributes:
      name: its path below the directory, joined by "/", with the prefix that `walk` was given.
      size: size in bytes; 0 for a link that leads nowhere or back to a folder above it.
      modified: modification time in seconds since 1970, as exact as the file system has it; 0 for
        such a link.
    """

    name: str
    size: int
    modified: float


def visible(folder: epath.Path) -> Iterator[epath.Path]:
    """Yields the visible files and folders in a folder.

    Hidden are, for example, `.ipynb_checkpoints`, `.Trash-1000` and macOS's `._x.png`.
    """
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def walk(folder: epath.Path, prefix: str = "", above: tuple[str, ...] = ()) -> Iterator[Seen]:
    """Yields every visible file below a folder, at any depth and in no particular order.

    A link that leads nowhere, or back to a folder above it, comes as a file without bytes, so that
    its reader reports it. epath has no recursive patterns.

    Args:
      prefix: goes in front of every name, with a "/" between them.
      above: resolved folders that the walk came through.
    """
    above = (*above, os.path.realpath(folder))
    for path in visible(folder):
        name = f"{prefix}/{path.name}" if prefix else path.name
        try:
            stat = path.stat()
            # epath has whole seconds, and two files may be written within one.
            local = None if "://" in str(path) else os.stat(path)
        except OSError:
            yield Seen(name, 0, 0.0)
            continue
        if not stat.is_directory:
            yield Seen(name, int(stat.length), local.st_mtime if local else stat.mtime)
        elif os.path.realpath(path) in above:
            yield Seen(name, 0, 0.0)
        else:
            yield from walk(path, name, above)
