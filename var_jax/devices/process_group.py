"""Joins the processes of a run."""

import os
import socket
import time

import jax

from var_jax.config.strict import require
from var_jax.devices import lost_process
from var_jax.errors import UserError

START_SECONDS = 300  # hosts of a slice boot, and pull images, minutes apart
PEER_SECONDS = 60
SHUTDOWN_SECONDS = 300
CONNECT_PAUSE_SECONDS = 0.2


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    start_seconds: int = START_SECONDS,
    peer_seconds: int = PEER_SECONDS,
    shutdown_seconds: int = SHUTDOWN_SECONDS,
):
    """Joins the other processes of this run; a single process does nothing.

    Call it before JAX touches a device. Without arguments it relies on JAX's detection of TPU pods,
    SLURM, GKE and Open MPI. On CPUs the processes communicate by Gloo.

    Args:
      coordinator: "host:port" where process 0 listens, the same in every process.
      num_processes: number of processes of the run.
      process_id: index of this process, from 0.
      start_seconds: seconds to wait until all processes have joined.
      peer_seconds: seconds without a sign of life from a process after which all others end with
        one line and exit code 1.
      shutdown_seconds: seconds that a finished process waits for the others.
    Raises:
      UserError: the arguments are incomplete or wrong, the port is taken, or process 0 does not
        answer.
    """
    timeouts = {
        "initialization_timeout": start_seconds,
        "heartbeat_timeout_seconds": peer_seconds,
        "shutdown_timeout_seconds": shutdown_seconds,
    }
    if (coordinator, num_processes, process_id) == (None, None, None):
        _initialize_detected(timeouts)
        return
    _check_arguments(coordinator, num_processes, process_id)
    if num_processes == 1:
        return
    host, port = _parse_address(coordinator)
    if process_id == 0:
        _require_free_port(port)
    else:
        _wait_for_coordinator(host, port, start_seconds)
    _prepare()
    jax.distributed.initialize(coordinator, num_processes, process_id, **timeouts)


def _initialize_detected(timeouts: dict[str, int]):
    if os.environ.get("SLURM_NTASKS") == "1":
        return  # one-task steps of one job would all listen on the same port
    _prepare()
    try:
        jax.distributed.initialize(**timeouts)
    except RuntimeError as error:
        # A Python program that has used JAX already runs by itself, and can join no others.
        if "must be called before" not in str(error):
            raise
    except ValueError as error:
        # JAX raises this if it detects no cluster: this is a single process.
        if "coordinator_address should be defined" not in str(error):
            raise UserError(
                f"this cluster's settings do not make a run of several processes: {error}; "
                "name them with --coordinator, --num-processes and --process-id"
            ) from error


def _prepare():
    # JAX's own listener for SIGTERM would take the place of the training loop's.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    lost_process.end_on_abort()


def _check_arguments(coordinator: str | None, num_processes: int | None, process_id: int | None):
    flags = {
        "--coordinator": coordinator,
        "--num-processes": num_processes,
        "--process-id": process_id,
    }
    missing = [name for name, value in flags.items() if value is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} missing: "
            "--coordinator, --num-processes and --process-id go together"
        )
    require(num_processes >= 1, "--num-processes", num_processes, "at least 1")
    require(
        0 <= process_id < num_processes,
        "--process-id",
        process_id,
        f"from 0 to {num_processes - 1}, as there are {num_processes} processes",
    )
    _parse_address(coordinator)


def _parse_address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    require(
        bool(host) and port.isdecimal() and 0 < int(port) < 2**16,
        "--coordinator",
        repr(coordinator),
        "HOST:PORT, such as 10.0.0.1:8476",
    )
    return host.strip("[]"), int(port)


def _require_free_port(port: int):
    """Raises UserError if nothing can listen on a port; JAX would crash."""
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


def _wait_for_coordinator(host: str, port: int, seconds: float):
    """Waits until process 0 listens, and raises UserError if it does not; JAX would abort."""
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
        time.sleep(CONNECT_PAUSE_SECONDS)
