"""What a command tells of its work while it runs: the package's log, on stderr, as plain lines."""

import logging
import sys


class Stderr(logging.Handler):
    """Prints notes as they are, and before anything else its level and another library's name.

    stderr is looked up at every line, since a program may replace it.
    """

    def emit(self, record: logging.LogRecord):
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        source = "" if record.name.split(".")[0] == "var_jax" else f"{record.name}: "
        print(f"{level}{source}{self.format(record)}", file=sys.stderr, flush=True)


def show():
    """Prints the package's notes (INFO), and other libraries' warnings; where a handler is set
    already, that one does.

    Call it where a command starts, before libraries are imported: some set a handler of their own
    with the first thing that they log.
    """
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(Stderr())
    logging.getLogger("var_jax").setLevel(logging.INFO)
