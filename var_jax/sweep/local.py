"""The engine `local`, which starts runs as subprocesses on this machine."""

import contextlib
import dataclasses
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import ClassVar

import psutil
from etils import epath

from var_jax.errors import UserError
from var_jax.sweep.backend import RunCommand
from var_jax.sweep.claims import ProcessId, process_alive, process_id


@dataclasses.dataclass(frozen=True)
class Local:
    """Starts each run in its own session, so that it outlives the sweep's process and its Ctrl-C.

    Output goes to `log.txt` in the run's directory, or is discarded if that is a bucket. Job ids
    are HOST:PID:BIRTH.
    """

    max_live_runs: ClassVar[int] = 1
    may_wait: ClassVar[bool] = False

    def check(self, workdir: str) -> None:
        pass

    def submit(self, commands: Sequence[RunCommand]) -> list[str]:
        jobs: list[str] = []
        for command in commands:
            try:
                jobs.append(_start(command))
            except OSError as error:
                for job in jobs:
                    self.stop(job)
                raise UserError(
                    f"cannot start run {command.run}: {error.strerror}: {error.filename}"
                ) from error
        return jobs

    def alive(self, job: str) -> bool | None:
        host, pid, born = _parse(job)
        # The job may be no child of this process, or reaped before.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        return process_alive(host, pid, born)

    def stop(self, job: str) -> None:
        host, pid, born = _parse(job)
        if process_alive(host, pid, born):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def render(self, commands: Sequence[RunCommand]) -> str:
        return ""


def _start(command: RunCommand) -> str:
    directory = epath.Path(command.directory)
    with contextlib.ExitStack() as stack:
        log = subprocess.DEVNULL
        if "://" not in command.directory:
            log = stack.enter_context(open(directory / "log.txt", "ab"))
        process = subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **command.environment},
        )
    try:
        host, pid, born = process_id(process.pid)
    except psutil.NoSuchProcess:  # gone and reaped already
        host, pid, born = "", process.pid, 0.0
    # `alive` reaps the process. Without a return code, Popen would warn that it was not waited for.
    process.returncode = 0
    return f"{host}:{pid}:{born:.2f}"


def _parse(job: str) -> ProcessId:
    """Returns the process that a job's id names."""
    host, pid, born = job.rsplit(":", 2)
    return ProcessId(host, int(pid), float(born))
