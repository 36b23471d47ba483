"""Turns exceptions into an exit code and one line on stderr, for every command."""

import errno
import re
import sys
import traceback

from var_jax.devices import platforms
from var_jax.errors import (
    PREEMPTED_EXIT_CODE,
    RUN_FAILED_EXIT_CODE,
    USER_ERROR_EXIT_CODE,
    Preempted,
    RunFailed,
    UserError,
)

# The operating system's errors that the user can correct.
USER_ERRNOS = (
    errno.ENOSPC,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EDQUOT,
    errno.EFBIG,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EEXIST,
)
BUCKET_LIBRARIES = {"gcsfs": "gs://", "s3fs": "s3://", "adlfs": "az://"}
REMOTE_LIBRARIES = ("fsspec", "gcsfs", "s3fs", "adlfs", "huggingface_hub")


def line_and_code(error: BaseException) -> tuple[str, int] | None:
    """Returns the line for stderr and the exit code, or None for an error with a stack trace.

    The codes are 2 for a user's mistake, 75 for preemption with everything saved, 130 for an
    interruption, and 1 for a run that failed and for a remote store that does not answer, which may
    answer the next time.
    """
    if isinstance(error, UserError):
        return str(error), USER_ERROR_EXIT_CODE
    if isinstance(error, Preempted):
        return str(error), PREEMPTED_EXIT_CODE
    if isinstance(error, RunFailed):
        return str(error), RUN_FAILED_EXIT_CODE
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, OSError) and error.errno in USER_ERRNOS:
        return f"{error.filename or 'a file'}: {error.strerror}", USER_ERROR_EXIT_CODE
    if isinstance(error, ImportError) and (line := without_bucket_library(error)):
        return line, USER_ERROR_EXIT_CODE
    if line := platforms.without_device(error):
        return line, USER_ERROR_EXIT_CODE
    if line := out_of_memory(error):
        return line, USER_ERROR_EXIT_CODE
    if line := unreachable(error):
        return line, RUN_FAILED_EXIT_CODE
    return None


def report(error: BaseException) -> int | None:
    """Prints the line of an error that has one, and returns its exit code; None for any other."""
    known = line_and_code(error)
    if known is None:
        return None
    line, code = known
    print(f"var-jax: {' '.join(line.split())}", file=sys.stderr, flush=True)
    return code


def leave_group(error: BaseException):
    """Ends one process of several after an error: the usual exit waits for the others.

    Errors that end a single process with a stack trace do so here, too.
    """
    from var_jax.devices import lost_process

    code = report(error)
    if code is None:
        traceback.print_exception(error)
        code = 1
    lost_process.leave(code)


def without_bucket_library(error: ImportError) -> str | None:
    """Returns the line for a bucket's path whose library is missing; None for other modules."""
    missing = error.name or getattr(error.__cause__, "name", None)
    if missing not in BUCKET_LIBRARIES:
        return None
    package = "'var-jax[gcs]'" if missing == "gcsfs" else missing
    return (
        f"a path in a bucket ({BUCKET_LIBRARIES[missing]}) needs the package {missing}; "
        f"install it by pip install {package}"
    )


def out_of_memory(error: BaseException) -> str | None:
    """Returns the line for an array or a program that is too large for the memory."""
    text = " ".join(str(error).split())
    exhausted = type(error).__name__ == "JaxRuntimeError" and text.startswith("RESOURCE_EXHAUSTED")
    if not (exhausted or isinstance(error, MemoryError)):
        return None
    return (
        f"out of memory ({text[:200] or 'no memory is left'}); take a smaller batch or model, "
        "in training also --config.microbatches=2 or more"
    )


def unreachable(error: BaseException) -> str | None:
    """Returns the line for an error from a library that reads remote stores."""
    packages = {file.split("/")[0] for file in _files(error)}
    if isinstance(error, AssertionError) or not packages.intersection(REMOTE_LIBRARIES):
        return None
    text = " ".join(str(error).split())
    return f"a remote path cannot be reached: {type(error).__name__}: {text[:300]}"


def _files(error: BaseException) -> list[str]:
    """Returns the source files that an error went through, from the package's folder on."""
    frames = traceback.extract_tb(error.__traceback__)
    return [
        re.split(r"[\\/](?:site|dist)-packages[\\/]", frame.filename)[-1].replace("\\", "/")
        for frame in frames
    ]
