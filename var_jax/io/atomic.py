"""Files written whole or not at all, by the standard library alone: benchmarks run where little is
installed."""

import contextlib
import os
import secrets
from collections.abc import Sequence

from var_jax.errors import UserError


def temporary_name(path):
    """Beside a path (pathlib's or etils'), of this process and call alone: several may write the
    same file."""
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def write(path, content: str | Sequence):
    """The file whole, or as it was before (OSError). Of several writers the last one's content
    stays.

    Args:
      path: pathlib's or etils'.
      content: text, or buffers of bytes one after the other.
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
    """`write` of a file that a user asked for, into a directory that is made where it is missing.

    Raises:
      UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, content)
    except OSError as error:
        raise UserError(f"cannot write {what} {path}: {error.strerror or error}") from error
