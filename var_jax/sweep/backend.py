"""The interface of the engines that start runs (`local`, `slurm`, `jobset`), and their registry.

An engine starts commands and reports whether a job still exists. It knows nothing about a run's
progress, which is in the run's directory and outlasts every scheduler's records.
"""

import dataclasses
import importlib
import typing
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from var_jax.config.strict import build
from var_jax.errors import UserError, did_you_mean

# Modules are imported on demand, so that a scheduler's client is needed only with that engine.
ENGINES = {
    "local": "var_jax.sweep.local:Local",
    "slurm": "var_jax.sweep.slurm:Slurm",
    "jobset": "var_jax.sweep.jobset:JobSet",
}


@dataclasses.dataclass(frozen=True)
class RunCommand:
    """The command of one attempt at a run.

    Attributes:
      run: id of the run.
      directory: the run's directory (`--workdir` of the command), where an engine may put logs; it
        exists.
      argv: the full command, from the Python interpreter on. Started again it resumes. It exits
        with 0 (done), 75 (preempted, everything saved: start it again), 2 (the user's mistake) or
        another code (failed).
      attempt: 1 for the first start, and one more for each later start; `run` and `attempt`
        together are unique.
      environment: additional environment variables of the command, on every host.
    """

    run: str
    directory: str
    argv: tuple[str, ...]
    attempt: int = 1
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Engine(Protocol):
    """The part of a backend that starts runs: a frozen dataclass of its options.

    `--option KEY=VALUE` sets a field. All fields have defaults.

    Attributes:
      max_live_runs: class attribute, the default of `--jobs`: the maximum number of live runs; 0
        for no limit but the scheduler's own.
      may_wait: class attribute, whether a job may wait in a queue, or be restarted by the
        scheduler, for an unlimited time.
    """

    max_live_runs: ClassVar[int]
    may_wait: ClassVar[bool]

    def check(self, workdir: str) -> None:
        """Raises UserError if the directory cannot be shared with the jobs.

        Jobs have to write the sweep's directory, and this process has to read their files. It is
        called before anything is written there.
        """
        ...

    def submit(self, commands: Sequence[RunCommand]) -> list[str]:
        """Starts or queues every command, and returns the job ids in the same order.

        Jobs outlive the process that submits them. An id is one line of text that `alive` and
        `stop` understand in another process and on another host. A scheduler may run a job again
        under the same id (requeue); it counts as alive in the meantime.

        Raises:
          UserError: the scheduler is missing or refuses; then none of the commands was started.
        """
        ...

    def alive(self, job: str) -> bool | None:
        """Returns whether the job is queued or running; None if only the run's files can tell."""
        ...

    def stop(self, job: str) -> None:
        """Sends SIGTERM to a job, upon which its run saves a checkpoint and exits; does not wait.

        A scheduler kills a job that takes longer than its grace period, and does not requeue it. A
        job that has ended is left alone.
        """
        ...

    def render(self, commands: Sequence[RunCommand]) -> str:
        """Returns the text that `submit` would pass to the scheduler, for `--dry-run`, or ""."""
        ...


def make(name: str, options: Mapping[str, str]) -> Engine:
    """Returns the engine of this name with the given options.

    Raises:
      UserError: the engine or option does not exist, a value has the wrong type, or the engine's
        library is not installed.
    """
    if name not in ENGINES:
        raise UserError(f"unknown backend {name!r}{did_you_mean(name, ENGINES)}")
    module, _, cls = ENGINES[name].partition(":")
    try:
        kind = getattr(importlib.import_module(module), cls)
    except ModuleNotFoundError as error:
        raise UserError(
            f"backend {name} needs the package {error.name}, which is not installed; "
            f"pip install 'var-jax[{name}]'"
        ) from error
    hints = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind)}
    for key in options:
        if key not in fields:
            raise UserError(f"backend {name} has no option {key!r}{did_you_mean(key, fields)}")
    return build(
        kind,
        {key: _parsed(hints[key], key, text) for key, text in options.items()},
        f"--option {name}",
    )


def shared_programs(directory: str) -> dict[str, str]:
    """Returns the environment that keeps a run's compiled programs in its directory.

    All hosts of the run share that directory. JAX writes the programs on process 0 only, so with a
    home directory that hosts do not share, every other host would compile again at each start.
    """
    return {"JAX_COMPILATION_CACHE_DIR": f"{directory.rstrip('/')}/xla"}


def _parsed(kind: type, key: str, text: str):
    """Parses the text of an option as the type of its field."""
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"--option {key}={text}: it must be true or false")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise UserError(
                f"--option {key}={text}: it must be a {'whole ' if kind is int else ''}number"
            ) from None
    return text
