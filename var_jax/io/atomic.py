"""Files that are written completely or not at all.

Only the standard library is imported, as benchmarks run where little is installed.
"""

import contextlib
import os
import secrets
from collections.abc import Sequence

from var_jax.errors import UserError


def temporary_name(path):
    """Returns a name beside a path that no other process or call uses.

    Args:
      path: pathlib's or etils'.
    """
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def write(path, content: str | Sequence):
    """Writes a file completely, or leaves it as it was before.

    With several writers the content of the last one stays.

    Args:
      path: pathlib's or etils'.
      content: text, or buffers of bytes that follow each other.
    Raises:
      OSError: the file cannot be written.
    """
    temporary = temporary_name(path)
    try:
        if isinstance(content, str):
            temporary.write_text(content)
        else:
            with temporary.open("wb") as file:
                for part in content:
                    file.write(part)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def save(path, content: str | Sequence, what: str):
    """Writes a file that a user asked for, and makes its directory if that is missing.

    Args:
      path: pathlib's or etils'.
      content: as for `write`.
      what: the name of the file's content, for the message.
    Raises:
      UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, content)
    except OSError as error:
        raise UserError(f"cannot write {what} {path}: {error.strerror or error}") from error
