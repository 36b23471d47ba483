"""Rows of a study that `var-jax` commands make: a JSON file each, made once on whatever machine."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from var_jax.errors import RUN_FAILED_EXIT_CODE
from var_jax.io import atomic


class TimeIsUp(Exception):
    """No further row is to be begun."""


class CommandRows:
    """The rows of a study by name, each in a file that is written when the row is done.

    Args:
      out: directory of the files.
      hours: after which no row is begun; 0 for none at all.
    """

    def __init__(self, out: Path, hours: float):
        self._out, self._deadline = out, time.monotonic() + 3600 * hours
        out.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns a row, and makes it unless it is there.

        Raises:
          TimeIsUp: it is not there, and the time for new rows is over.
        """
        path = self._out / f"{name}.json"
        if not path.exists():
            if time.monotonic() >= self._deadline:
                raise TimeIsUp(name)
            atomic.write(path, json.dumps(make(), indent=1) + "\n")
            print(f"written {path}", flush=True)
        return json.loads(path.read_text())


def as_flags(values: dict[str, Any]) -> list[str]:
    """Returns keys of a config as flags of the command line."""
    return [f"--config.{key}={value}" for key, value in values.items()]


def var_jax(*arguments: Any, may_fail: bool = False) -> bool:
    """Runs a command in a process of its own, and returns whether it ended well.

    If it did not, this process ends with its exit code, unless `may_fail` allows that.

    Args:
      may_fail: whether the command may end with the code of a run that failed, which one that
        diverged has, as has one whose remote store does not answer.
    """
    command = [sys.executable, "-m", "var_jax", *map(str, arguments)]
    code = subprocess.run(command).returncode
    if code and not (may_fail and code == RUN_FAILED_EXIT_CODE):
        sys.exit(code)
    return not code


def seconds_to_make(file: Path, make: Callable[[], object]) -> float | None:
    """Returns the processor time in which commands make a file, None if it was begun before.

    A command that goes on with a file takes less time than the whole file does.
    """
    is_fresh = not any(file.parent.glob(f"{file.name}*"))
    before = processor_seconds()
    make()
    return processor_seconds() - before if is_fresh else None


def processor_seconds() -> float:
    """Returns the processor time of all commands so far, which compares on a shared machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
