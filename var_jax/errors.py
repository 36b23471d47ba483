"""What the command line turns into one line and an exit code: a user's mistake (2), and preemption (75)."""

import argparse
import difflib
from collections.abc import Iterable
from typing import NoReturn


class UserError(ValueError):
    """Something the user can put right: a flag, config key, file, checkpoint or image.

    The message is one line that names what was wrong and what would be right.
    """


class Preempted(Exception):
    """The machine is about to be taken away; everything is saved, and the same command goes on from there."""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` when a known name is close, else a list of the known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"
