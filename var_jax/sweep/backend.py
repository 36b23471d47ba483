"""What starts runs: the interface of the engines `local`, `slurm` and `jobset`, and their registry.

An engine starts commands and says whether a job still exists. It knows nothing of a run's progress:
what a run has done stands in its directory, which outlives every scheduler's memory.
"""

import dataclasses
import importlib
import typing
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from var_jax.config.strict import build
from var_jax.errors import UserError, did_you_mean

# Modules are imported when they are asked for: a scheduler's client is not needed to run without
# it.
ENGINES = {
    "local": "var_jax.sweep.local:Local",
    "slurm": "var_jax.sweep.slurm:Slurm",
    "jobset": "var_jax.sweep.jobset:JobSet",
}


@dataclasses.dataclass(frozen=True)
class RunCommand:
    """One attempt at a run.

    Attributes:
      run: id of the run.
      directory: its directory (`--workdir` of the command), where an engine may put logs; it
        exists.
      argv: the whole command, from the Python interpreter on. Started again it resumes; it exits
        with 0 (done), 75 (preempted, everything saved: start it again), 2 (the user's mistake) or
        anything else (failed).
      attempt: 1 for the first start, one more with every later one; with `run` it makes a name that
        is used once.
      environment: variables that the command must find set besides; part of what is started, on
        every host.
    """

    run: str
    directory: str
    argv: tuple[str, ...]
    attempt: int = 1
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Engine(Protocol):
    """A frozen dataclass; its fields, all with defaults, are what `--option KEY=VALUE` sets.

    Attributes:
      jobs (of the class): how many of the sweep's runs may be live at a time unless `--jobs` says;
      0 for no bound but
        the scheduler's own.
      queues (of the class): whether a job may wait, or be started again by the scheduler, for as
      long as it takes.
    """

    jobs: ClassVar[int]
    queues: ClassVar[bool]

    def check(self, workdir: str) -> None:
        """Raises UserError when its jobs could not write the sweep's directory, or this process not
        read what they write. It is called before anything is written there."""
        ...

    def submit(self, commands: Sequence[RunCommand]) -> list[str]:
        """Starts or queues every command; job ids in the same order. Jobs outlive the process that
        submits them.

        An id is one line of text that `alive` and `stop` of another process, on another host, make
        sense of. A scheduler may run a job again under the same id (requeue): it stays alive
        meanwhile.

        Raises:
          UserError: the scheduler is not there or refuses; then none of the commands was started.
        """
        ...

    def alive(self, job: str) -> bool | None:
        """Whether the job is queued or running; None when it cannot be known here, and the run's
        files decide."""
        ...

    def stop(self, job: str) -> None:
        """Asks a job to end: SIGTERM, at which a run saves a checkpoint. Nothing when it has
        ended."""
        ...

    def render(self, commands: Sequence[RunCommand]) -> str:
        """What `submit` would hand to the scheduler, as text for `--dry-run`; "" when there is
        nothing to show."""
        ...


def make(name: str, options: Mapping[str, str]) -> Engine:
    """The engine of a name with its options.

    Raises:
      UserError: no such engine or option, a value of the wrong kind, or its library is not
        installed.
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
    """The environment that keeps a run's compiled programs in its directory, which all of its hosts
    see.

    JAX writes them on process 0 alone: in a home directory, which hosts of a slice do not share,
    every other host compiles everything again at each start.
    """
    return {"JAX_COMPILATION_CACHE_DIR": f"{directory.rstrip('/')}/xla"}


def _parsed(kind: type, key: str, text: str):
    """A command line's text as the kind of a field."""
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
