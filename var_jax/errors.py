"""The one exception for a user's mistake; the command line turns it into one line and exit code 2."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can put right: a flag, config key, file, checkpoint or image.

    The message is one line that names what was wrong and what would be right.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` when a known name is close, else a list of the known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"
