"""Recognizes files that replace a failed download: pointers, web pages, error messages."""

import os

from etils import epath

from var_jax.errors import UserError

HEAD_BYTES = 1024  # number of first bytes of a file that are examined
POINTER = b"version https://git-lfs.github.com/spec/"
ARCHIVES = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
}


def failed_download(head: bytes) -> str | None:
    """Returns a description of bytes that are not a file's own content, with the remedy.

    Args:
      head: the file's first bytes.
    Returns:
      a text for a message, or None if the bytes may be the file's own content.
    """
    if not head:
        return "an empty file; download or write it again"
    if head.startswith(POINTER):
        return (
            "a Git LFS pointer, not the file that it points to; fetch that by `git lfs pull`, "
            "or download it"
        )
    if head.startswith((b"/annex/objects/", b"../.git/annex/", b".git/annex/")):
        return "a git-annex pointer, not the file that it points to; fetch that by `git annex get`"
    for start, kind in ARCHIVES.items():
        if head.startswith(start):
            return f"{kind}; unpack it first"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")) or (
        text.startswith(b"<") and b"<html" in text
    ):
        return (
            "an HTML page, as a server sends in place of a file that needs a login or is "
            "elsewhere; download the file itself again"
        )
    if text.startswith((b"<?xml", b"<error")) and b"<svg" not in text:
        return (
            "an XML message, as a server sends in place of a file; download the file itself again"
        )
    return None


def refuse_failed_download(path: str | os.PathLike, what: str):
    """Raises UserError if a file has something else in place of its own content.

    A file that is missing or cannot be opened passes; its reader reports it.

    Args:
      path: the file.
      what: the kind of content that is expected, for the message.
    """
    try:
        with epath.Path(path).open("rb") as file:
            kind = failed_download(file.read(HEAD_BYTES))
    except OSError:
        return
    if kind:
        raise UserError(f"{os.fspath(path)} does not read as {what}: it is {kind}")
