"""Ends all processes of a run when one of them is gone.

JAX notices within its heartbeat timeout that another process is gone, and then aborts in C++, where
no Python runs; its own callback for this case cannot be used from Python (jaxlib 0.10 fails to
convert its argument). The C signal handler below therefore turns the abort into one line and an
exit code.
"""

import ctypes
import os
import signal
import threading

import jax

LEAVE_SECONDS = 5
EXIT_LOST = 1
LOST = (
    "another process of this run ended or does not answer; "
    "start the same command again on every host, and it resumes from the last checkpoint"
)
# Parts of the messages about a lost process from Gloo's collectives, and from JAX's coordination
# service and barriers.
LOST_SIGNS = (
    "gloo",
    "coordination service",
    "coordinationservice",
    "heartbeat",
    "barrier",
    "socket closed",
)
_abort_handler = None  # C holds no reference of its own


def end_on_abort():
    """Makes an abort of this process, which is JAX's on a lost one, one line and an exit code."""
    global _abort_handler

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def on_abort(_):
        os.write(2, f"var-jax: {LOST}\n".encode())
        os._exit(EXIT_LOST)

    _abort_handler = on_abort
    ctypes.CDLL(None).signal(signal.SIGABRT, on_abort)


def is_lost_process(error: BaseException) -> bool:
    """Returns whether an error, or one of its causes, says that another process is gone."""
    text = ""
    while error is not None:
        text += str(error).lower()
        error = error.__cause__ or error.__context__
    return any(sign in text for sign in LOST_SIGNS)


def leave(code: int):
    """Ends this process with an exit code after an error, without waiting for the other processes.

    The usual exit waits for all others, which may be waiting for this one. Here they get
    LEAVE_SECONDS, in which processes that fail in the same way leave in order.
    """
    farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    farewell.start()
    farewell.join(LEAVE_SECONDS)
    os._exit(code)
