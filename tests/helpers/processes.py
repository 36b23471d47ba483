"""Runs of `var-jax train` as real processes of this machine, none of which outlives its test."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

POLL_SECONDS = 0.02


class Processes:
    """The processes of one run, over several of which it is spread.

    Attributes:
      workdir: of the run.
      all: as subprocess.Popen has them.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        workdir: Path,
        cache: Path,
        count: int,
        devices: int,
        flags: Sequence[str],
    ):
        self.workdir = Path(workdir)
        self.workdir.parent.mkdir(parents=True, exist_ok=True)
        address = f"127.0.0.1:{free_port()}"
        self._logs = [
            self.workdir.parent / f"{self.workdir.name}.{time.monotonic_ns()}.{i}.log"
            for i in range(count)
        ]
        self.all = []
        for i, log in enumerate(self._logs):
            together = [
                "--coordinator",
                address,
                f"--num-processes={count}",
                f"--process-id={i}",
                *flags,
            ]
            with log.open("w") as file:
                self.all.append(
                    subprocess.Popen(
                        [
                            sys.executable,
                            "-m",
                            "var_jax",
                            "train",
                            "--workdir",
                            str(workdir),
                            *arguments,
                            *(together if count > 1 else []),
                        ],
                        env=environment(cache, devices),
                        stdout=file,
                        stderr=file,
                    )
                )

    def output(self, index: int = 0) -> str:
        """Returns what a process has printed."""
        return self._logs[index].read_text()

    def ended(self, index: int, seconds: float) -> int:
        """Returns the exit code of a process (negative: a signal), which must end in time."""
        try:
            return self.all[index].wait(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(
                f"process {index} has not ended in {seconds} s: {self.output(index)[-2000:]}"
            ) from error

    def codes(self, seconds: float) -> list[int]:
        end = time.monotonic() + seconds
        return [self.ended(i, max(0.1, end - time.monotonic())) for i in range(len(self.all))]

    def send(self, number: signal.Signals, index: int | None = None):
        for process in self.all if index is None else [self.all[index]]:
            process.send_signal(number)

    def until(self, condition, seconds: float):
        """Waits for a condition while all processes run."""
        end = time.monotonic() + seconds
        while not condition():
            printed = "\n".join(self.output(i)[-1500:] for i in range(len(self.all)))
            assert time.monotonic() < end, f"not so in {seconds} s: {printed}"
            assert all(process.poll() is None for process in self.all), (
                f"a process ended: {printed}"
            )
            time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def running(
    arguments: Sequence[str],
    workdir: Path,
    cache: Path,
    count: int = 1,
    devices: int = 1,
    flags: Sequence[str] = (),
) -> Iterator[Processes]:
    """`var-jax train` with these arguments in `count` processes of `devices` devices each.

    Args:
      cache: where compiled programs are kept.
      flags: of processes that are several.
    """
    processes = Processes(arguments, workdir, cache, count, devices, flags)
    try:
        yield processes
    finally:
        for process in processes.all:
            process.kill()  # also ends one that is stopped
        for process in processes.all:
            process.wait()


ARGUMENTS = """
import sys
index, count, address = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
"""
JOIN = """
from var_jax.devices import process_group
process_group.initialize(address, count, index)
"""


def scripts(
    code: str,
    directory: Path,
    cache: Path,
    count: int = 2,
    devices: int = 1,
    seconds: float = 300,
    join: bool = True,
) -> list[tuple[int, str]]:
    """(exit code, what it printed) of a Python script in several processes.

    Args:
      code: finds `index` (of its process), `count` and `address` (where process 0 may listen).
      cache: where compiled programs are kept.
      join: whether they form one group before the code; else it has to see to that.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "script.py"
    file.write_text(ARGUMENTS + (JOIN if join else "") + code)
    address = f"127.0.0.1:{free_port()}"
    logs = [directory / f"script.{i}.log" for i in range(count)]
    started = []
    try:
        for i, log in enumerate(logs):
            with log.open("w") as out:
                started.append(
                    subprocess.Popen(
                        [sys.executable, str(file), str(i), str(count), address],
                        env=environment(cache, devices),
                        stdout=out,
                        stderr=out,
                    )
                )
        end = time.monotonic() + seconds
        codes = [process.wait(timeout=max(0.1, end - time.monotonic())) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [(code, log.read_text()) for code, log in zip(codes, logs, strict=True)]


def environment(cache: Path, devices: int) -> dict[str, str]:
    """Returns the environment of a process with some host devices: programs compile quickly at the
    cost of their speed, and a script finds the tests' own modules."""
    path = os.pathsep.join(
        [
            str(Path(__file__).parents[1]),
            str(Path(__file__).parents[2]),
            os.environ.get("PYTHONPATH", ""),
        ]
    )
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PYTHONPATH": path,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }


def wait_for(holds: Callable[[], bool], seconds: float = 30):
    """Waits until a condition holds, which it must in time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"it does not hold after {seconds} s"
        time.sleep(POLL_SECONDS)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def records(workdir: Path, split: str = "train", metric: str = "loss") -> dict[int, float]:
    """Returns {step: metric} of metrics.jsonl; a line that is being written is left out."""
    path = Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    steps = [record["step"] for record in entries if record["split"] == split]
    assert len(steps) == len(set(steps)), f"a step twice: {steps}"
    return {record["step"]: record[metric] for record in entries if record["split"] == split}


def restarts(workdir: Path) -> int:
    """Returns how often a run was resumed; -1 before it has started."""
    path = Path(workdir) / "status.json"
    return json.loads(path.read_text())["restarts"] if path.exists() else -1


def checkpoints(workdir: Path) -> list[int]:
    """Returns the steps of finished checkpoints, by their directories' names."""
    directory = Path(workdir) / "checkpoints"
    return sorted(int(path.name) for path in directory.glob("*") if re.fullmatch(r"\d+", path.name))
