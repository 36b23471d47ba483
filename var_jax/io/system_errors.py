"""Errors of the operating system in one line."""

import errno
import os

# TensorStore puts the operating system's own words for the cause into a long message.
CAUSES = [
    os.strerror(code)
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)
]


def one_line(error: BaseException) -> str:
    """Returns an error's cause in the operating system's words, else its message's first line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    causes = [cause for cause in CAUSES if cause in text] or text.strip().splitlines()
    return causes[0][:300] if causes else type(error).__name__
