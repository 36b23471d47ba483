"""Files that are written completely or not at all.

It imports only the standard library, because benchmarks run where little is installed.
"""

import contextlib
import os
import secrets
from collections.abc import Sequence

from var_jax.errors import UserError


def temporary_name(path):
    """Returns a path in the same directory that no other process or call uses.

    Args:
      path: a path of pathlib or etils.
    """
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def write(path, content: str | Sequence):
    """Writes a file completely, or leaves it as it was before.

    With several writers the content of the last one stays.

    Args:
      path: a path of pathlib or etils.
      content: text, or consecutive buffers of bytes.
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
    """Writes a file that a user requested, and creates its directory if that is missing.

    Args:
      path: a path of pathlib or etils.
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
