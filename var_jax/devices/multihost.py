"""One run over several processes: how they find each other, and how all of them end when one does.

JAX finds out within its heartbeat timeout that another process is gone, and then aborts in C++,
where nothing of Python's is asked; its own callback for this case cannot be used from Python
(jaxlib 0.10 fails to convert its argument). Hence the C signal handler below, which turns the abort
into one line and an exit code.
"""

import ctypes
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from var_jax.config.strict import require
from var_jax.errors import UserError

START_SECONDS = 300  # hosts of a slice boot, and pull images, minutes apart
PEER_SECONDS = 60
SHUTDOWN_SECONDS = 300
LEAVE_SECONDS = 5
EXIT_LOST = 1
TOLD_CHARACTERS = 500  # of what differs on a host
HOSTS_TOLD = 4

LOST = (
    "another process of this run ended or does not answer; "
    "start the same command again on every host, and it resumes from the last checkpoint"
)
# What the libraries below say of a process that is gone: Gloo's collectives, JAX's coordination
# service and barriers.
SIGNS = (
    "gloo",
    "coordination service",
    "coordinationservice",
    "heartbeat",
    "barrier",
    "socket closed",
)

Result = TypeVar("Result")

_abort_handler = None  # C holds no reference of its own


def initialise(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    start_seconds: int = START_SECONDS,
    peer_seconds: int = PEER_SECONDS,
    shutdown_seconds: int = SHUTDOWN_SECONDS,
):
    """Joins the other processes of this run, before JAX touches a device; alone, it does nothing.

    With no arguments it asks JAX's own detection of TPU pods, SLURM, GKE and Open MPI. On CPUs the
    processes speak by Gloo.

    Args:
      coordinator: "host:port" where process 0 listens, the same in every process.
      num_processes: how many processes there are.
      process_id: the number of this process, from 0.
      start_seconds: until all must be there.
      peer_seconds: without a sign of life of a process, after which all others end with one line
        and exit code 1.
      shutdown_seconds: that a process which is done waits for the others to be.
    Raises:
      UserError: arguments that say nothing of use, a port that is taken, or no answer from process
        0.
    """
    timeouts = {
        "initialization_timeout": start_seconds,
        "heartbeat_timeout_seconds": peer_seconds,
        "shutdown_timeout_seconds": shutdown_seconds,
    }
    if (coordinator, num_processes, process_id) == (None, None, None):
        _detected(timeouts)
    else:
        _require_whole(coordinator, num_processes, process_id)
        if num_processes == 1:
            return
        host, port = _address(coordinator)
        if process_id == 0:
            _require_free(port)
        else:
            _await(host, port, start_seconds)
        _prepare()
        jax.distributed.initialize(coordinator, num_processes, process_id, **timeouts)


def together() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def processes_on_host() -> int:
    """Returns how many processes of this run share this host, and so its memory; every one of them
    has to ask."""
    host = socket.gethostname()
    return gather_texts(host).count(host)


def require_same(
    what: str, mine: Mapping[str, Any], differences: Callable[[Any, Any], list[str]], remedy: str
):
    """Compares what every process of a run holds with what process 0 does; alone, it does nothing.

    All processes have to call it. It tells what differs, which a run would do wrong without a word.

    Args:
      what: the thing, for the message.
      mine: what tells it, as JSON takes it.
      differences: (process 0's, mine) -> what differs, in words.
      remedy: what would be right.
    Raises:
      UserError: on all processes, with the same line, when any of them holds something else.
    """
    if not together():
        return
    own = json.dumps(mine)
    first = broadcast_text(own)
    different = differences(json.loads(first), json.loads(own)) if own != first else []
    found = gather_texts("; ".join(different)[:TOLD_CHARACTERS])
    hosts = gather_texts(socket.gethostname()[:TOLD_CHARACTERS])
    if wrong := [i for i, text in enumerate(found) if text]:
        told = " | ".join(f"process {i} (host {hosts[i]}): {found[i]}" for i in wrong[:HOSTS_TOLD])
        more = f" | and {len(wrong) - HOSTS_TOLD} processes more" if len(wrong) > HOSTS_TOLD else ""
        raise UserError(
            f"{what} of process 0 (host {hosts[0]}) and others differ: {told}{more}; {remedy}"
        )


def everywhere(work: Callable[[], Result]) -> Result:
    """The result of some work that all processes do, in which none may wait for another.

    Raises:
      UserError: on all processes, when it was raised on any: the others would wait for that one,
        and end without knowing why.
    """
    result, mistake = None, None
    try:
        result = work()
    except UserError as error:
        if not together():
            raise
        mistake = error
    found = gather_texts(str(mistake or "")[:TOLD_CHARACTERS])
    if wrong := [i for i, text in enumerate(found) if text]:
        if mistake is not None:
            raise mistake
        raise UserError(f"process {wrong[0]} has ended: {found[wrong[0]]}")
    return cast(Result, result)


def broadcast_text(text: str) -> str:
    """Process 0's text, on every process; alone, the text itself."""
    if not together():
        return text
    content = np.frombuffer(text.encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(length, np.uint8)
    if jax.process_index() == 0:
        padded[:] = content
    return (
        np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes().decode()
    )


def gather_texts(text: str) -> list[str]:
    """The texts of all processes by their index, on every process."""
    if not together():
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.int32(len(content))))
    padded = np.zeros(max(int(lengths.max()), 1), np.uint8)
    padded[: len(content)] = content
    rows = np.asarray(multihost_utils.process_allgather(padded)).astype(np.uint8)
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


def lost_a_process(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that another process is gone."""
    text = ""
    while error is not None:
        text += str(error).lower()
        error = error.__cause__ or error.__context__
    return any(sign in text for sign in SIGNS)


def leave(code: int):
    """Ends this process, of several, after an error, with an exit code.

    The usual way out waits for all others, which may be waiting for this one. Here they are given
    LEAVE_SECONDS, in which all that fail alike leave in order.
    """
    farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    farewell.start()
    farewell.join(LEAVE_SECONDS)
    os._exit(code)


def _detected(timeouts: dict[str, int]):
    if os.environ.get("SLURM_NTASKS") == "1":
        return  # one-task steps of one job would all listen on the same port
    _prepare()
    try:
        jax.distributed.initialize(**timeouts)
    except RuntimeError as error:
        if "must be called before" not in str(error):
            raise
        # A Python program that has used JAX already runs by itself: there is no joining any more.
    except ValueError as error:  # how JAX says that there is no cluster that it knows
        if "coordinator_address should be defined" not in str(error):
            raise UserError(
                f"this cluster's settings do not make a run of several processes: {error}; "
                "name them with --coordinator, --num-processes and --process-id"
            ) from error


def _prepare():
    global _abort_handler
    # JAX's own listener for SIGTERM would take the place of the training loop's.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def on_abort(_):
        os.write(2, f"var-jax: {LOST}\n".encode())
        os._exit(EXIT_LOST)

    _abort_handler = on_abort
    ctypes.CDLL(None).signal(signal.SIGABRT, on_abort)


def _require_whole(coordinator: str | None, num_processes: int | None, process_id: int | None):
    given = {
        "--coordinator": coordinator,
        "--num-processes": num_processes,
        "--process-id": process_id,
    }
    if missing := [name for name, value in given.items() if value is None]:
        raise UserError(
            f"{' and '.join(missing)} missing: --coordinator, --num-processes and --process-id go together"
        )
    require(num_processes >= 1, "--num-processes", num_processes, "at least 1")
    require(
        0 <= process_id < num_processes,
        "--process-id",
        process_id,
        f"from 0 to {num_processes - 1}, as there are {num_processes} processes",
    )
    _address(coordinator)


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    require(
        bool(host) and port.isdecimal() and 0 < int(port) < 2**16,
        "--coordinator",
        repr(coordinator),
        "HOST:PORT, such as 10.0.0.1:8476",
    )
    return host.strip("[]"), int(port)


def _require_free(port: int):
    """JAX crashes when it cannot listen."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            raise UserError(
                f"--coordinator: process 0 cannot listen on port {port}: {error.strerror}; "
                "give another port in every process"
            ) from error


def _await(host: str, port: int, seconds: float):
    """Returns when process 0 listens: JAX's own wait ends in an abort."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=max(1.0, end - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() >= end:
                raise UserError(
                    f"--coordinator {host}:{port}: no answer from process 0 in {seconds:g} s "
                    f"({error.strerror or error}); start it, or correct the address"
                ) from error
        time.sleep(0.2)
