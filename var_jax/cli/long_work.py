"""Reports the elapsed time of work in a compiler, and lets a signal end it."""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

INTERVAL_SECONDS = 30.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def reported(what: str, interval: float = INTERVAL_SECONDS) -> Iterator[None]:
    """Prints the work of a block on stderr, and then the elapsed time every `interval` seconds.

    SIGINT and SIGTERM end the process at once, with one line and exit code 128 + number. Python's
    own handlers would wait for the compiler, which works in C++ for minutes, and the TPU compiler
    installs handlers that print a C++ stack trace; so enter the block after that compiler is
    loaded. In another thread than the main one, where Python takes no signals, only the time is
    printed.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(reader, interval), daemon=True)
    watcher.start()
    with contextlib.ExitStack() as undo:
        undo.callback(reader.close)
        undo.callback(watcher.join)
        undo.callback(writer.send, b"\0")
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.signal(number, signal.default_int_handler)
                # None is a handler of C++ code, which Python cannot install again.
                undo.callback(signal.signal, number, before or signal.SIG_DFL)
            undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer.fileno()))
        print(what, file=sys.stderr, flush=True)
        yield


def _watch(reader: socket.socket, interval: float):
    """Prints the time until a byte comes: 0 at the end of the block, else a signal's number."""
    start = time.monotonic()
    while not select.select([reader], [], [], interval)[0]:
        minutes, seconds = divmod(round(time.monotonic() - start), 60)
        print(f"still at it after {minutes}:{seconds:02} min", file=sys.stderr, flush=True)
    (number,) = reader.recv(1)
    if number:
        print(f"var-jax: ended by {signal.Signals(number).name}", file=sys.stderr, flush=True)
        os._exit(128 + number)
