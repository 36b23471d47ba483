"""Errors that the command line reports in one line, with an exit code.

The codes are 2 for a user's mistake, 75 for preemption, and 1 for a run that failed.
"""

import argparse
import difflib
import re
from collections.abc import Iterable
from typing import NoReturn

URL_SCHEMES = ("gs", "s3", "az")
USER_ERROR_EXIT_CODE = 2
RUN_FAILED_EXIT_CODE = 1
PREEMPTED_EXIT_CODE = 75
NEGATIVE = re.compile(r"-(\d|\.\d|inf\b|nan\b)")  # the start of a negative number


class UserError(ValueError):
    """An error that the user can correct: a wrong flag, config key, file, checkpoint or image.

    The message is one line that names the mistake and the right value.
    """


class Preempted(Exception):
    """The machine is about to be taken away; the run is saved, and the same command resumes it."""


class RunFailed(RuntimeError):
    """A run failed through no mistake in its command: one line, and exit code 1."""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line and reads every negative number.

    By itself argparse takes -0.5 for a value, and -1e3, -inf or -1,-2 for an option.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        # No option begins with a digit. There is no public name for the pattern.
        self._negative_number_matcher = NEGATIVE

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" if a known name is close, else a list of the known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def require_path(path: object, name: str = "path", *, on_hub: bool = False):
    """Raises UserError for a URL of an unsupported kind, such as "http://".

    Other paths are left to their readers.

    Call it where a path comes from outside: the library behind paths tries to reach hosts by some
    of these schemes, and ends on others with an error that names neither the path nor the remedy.

    Args:
      path: the path or URL.
      name: its name for the message.
      on_hub: whether an address on the Hugging Face hub, "hf://...", is supported.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", str(path))
    if scheme is None or scheme[1] in URL_SCHEMES or (on_hub and scheme[1] == "hf"):
        return
    right = "a local directory or file, or a URL of " + ", ".join(
        f"{known}://" for known in URL_SCHEMES
    )
    if scheme[1] == "hf":
        right = (
            "a local path: only models to use are read from the Hugging Face hub; "
            "fetch it by `hf download OWNER/NAME --local-dir DIR` and give DIR"
        )
    elif on_hub:
        right += ", or hf://OWNER/NAME"
    raise UserError(f"{name} is {str(path)!r}; it must be {right}")
