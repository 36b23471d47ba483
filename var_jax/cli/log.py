"""A command's log of its work: the package's messages, on stderr, as plain lines."""

import logging
import sys


class Stderr(logging.Handler):
    """Prints notes as they are, and other messages with their level and library.

    stderr is looked up at every line, since a program may replace it.
    """

    def emit(self, record: logging.LogRecord):
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        source = "" if record.name.split(".")[0] == "var_jax" else f"{record.name}: "
        print(f"{level}{source}{self.format(record)}", file=sys.stderr, flush=True)


def show():
    """Prints the package's notes (INFO), and other libraries' warnings.

    If a handler is set already, it is left to print them.

    Call it where a command starts, before libraries are imported: some set a handler of their own
    with the first thing that they log.
    """
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(Stderr())
    logging.getLogger("var_jax").setLevel(logging.INFO)
