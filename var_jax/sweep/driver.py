"""Submits a sweep's runs, watches them and starts dead ones again, until all are done or given up.

Nothing is kept in memory that is not in the runs' directories: the process may be killed and
started again, or run twice at a time, on several hosts.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Sequence

from etils import epath

from var_jax.errors import UserError
from var_jax.io import atomic
from var_jax.io.checkpoint import Checkpoints
from var_jax.sweep import claims, runs
from var_jax.sweep.backend import Engine, RunCommand
from var_jax.sweep.claims import Claim
from var_jax.sweep.plan import Run
from var_jax.sweep.runs import RETRIED, Observed

HEARTBEAT_SECONDS = 60.0  # how often a job that is known to exist is noted as such


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What `drive` drives.

    Attributes:
      runs: trunks before their branches.
      config_file: as `train --config` takes it.
      workdir: the sweep's directory.
      backend, engine: what runs are started with.
      jobs: runs live at a time; 0 for no bound.
      max_restarts: see `runs.give_up_reason`.
      stale: see `runs.observe`.
    """

    runs: Sequence[Run]
    config_file: str
    workdir: str
    backend: str
    engine: Engine
    jobs: int
    max_restarts: int = 5
    stale: float = runs.STALE_SECONDS

    def directory(self, run: str) -> epath.Path:
        return epath.Path(self.workdir) / run

    def observe(self, run: str) -> Observed:
        return runs.observe(
            self.directory(run),
            self.alive,
            self.stale,
            may_wait=lambda claim: self.engine.queues and claim.backend == self.backend,
        )

    def alive(self, claim: Claim) -> bool | None:
        return self.engine.alive(claim.job) if claim.backend == self.backend else None


def require_directory(workdir: str):
    """Raises UserError when the sweep's directory is something else."""
    path = epath.Path(workdir)
    if path.exists() and not path.is_dir():
        raise UserError(f"cannot write the sweep's directory {workdir}: it is a file")


def write_plan(sweep: Sweep, overrides: Sequence[str]):
    """sweep.json: what the sweep is made of, for `status`.

    Raises:
      UserError: the directory cannot be written.
    """
    plan = {
        "config": sweep.config_file,
        "overrides": list(overrides),
        "backend": sweep.backend,
        "runs": [
            {
                "id": run.id,
                "label": run.label,
                "trunk": run.trunk,
                "steps": run.config.steps,
                "first_step": run.config.branch_step,
                "params": run.params,
                "tokens": run.tokens,
                "compute": run.compute,
                "own_compute": run.own_compute,
            }
            for run in sweep.runs
        ],
    }
    directory = epath.Path(sweep.workdir)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        atomic.write(directory / "sweep.json", json.dumps(plan, indent=1))
    except OSError as error:
        raise UserError(
            f"cannot write the sweep's directory {sweep.workdir}: {error.strerror or error}"
        ) from error


def drive(
    sweep: Sweep, *, interval: float, retry: bool = False, say: Callable[[str], None] = print
) -> dict[str, str]:
    """Returns when no run is live and none can be started.

    Args:
      interval: seconds between two looks at the runs.
      retry: gives runs that were given up another chance.
      say: told of every change of a run's state.
    Returns:
      reasons by run for which it was given up; every other run is done.
    Raises:
      UserError: the engine does not start runs; those that are live go on.
    """
    told: dict[str, str] = {}
    chances = {run.id for run in sweep.runs} if retry else set()
    while True:
        seen = {run.id: sweep.observe(run.id) for run in sweep.runs}
        given_up: dict[str, str] = {}
        ready: list[Run] = []
        for run in sweep.runs:
            one = seen[run.id]
            if not one.live and one.state != "done":
                reason = _out_of_reach(sweep, run, seen, given_up) or (
                    runs.give_up_reason(one, sweep.max_restarts) if run.id not in chances else ""
                )
                if reason:
                    given_up[run.id] = reason
                elif _can_start(sweep, run):
                    ready.append(run)
            elif one.state != "done":
                _note_heartbeat(sweep, run.id, one)
            now = f"given up: {given_up[run.id]}" if run.id in given_up else one.state
            if now not in (told.get(run.id, "new"), "new"):
                say(_line(sweep, run, one, now))
            told[run.id] = now
        live = sum(one.live for one in seen.values())
        if not live and not ready:
            return given_up
        ready = ready[: max(0, sweep.jobs - live)] if sweep.jobs else ready
        _start(sweep, ready, seen, chances)
        chances -= {run.id for run in ready}
        time.sleep(interval)


def stop(sweep: Sweep) -> list[str]:
    """Asks every live run of this engine to save and end; the ids of those asked."""
    asked = []
    for run in sweep.runs:
        one = sweep.observe(run.id)
        if (
            one.live
            and one.claims
            and one.claims[-1].job
            and one.claims[-1].backend == sweep.backend
        ):
            sweep.engine.stop(one.claims[-1].job)
            asked.append(run.id)
    return asked


def commands(sweep: Sweep) -> list[RunCommand]:
    """The first start of every run."""
    return [run.command(sweep.config_file, sweep.workdir, 1) for run in sweep.runs]


def _start(sweep: Sweep, ready: Sequence[Run], seen: dict[str, Observed], chances: set[str]):
    """Claims and submits; a run that another submitter claims first is left to it."""
    won: list[tuple[Run, Claim]] = []
    for run in ready:
        one = seen[run.id]
        retried = run.id in chances and runs.give_up_reason(one, sweep.max_restarts)
        ended = "" if one.state == "new" else RETRIED if retried else one.state
        claim = claims.create(
            sweep.directory(run.id), one.attempt + 1, sweep.backend, ended, one.step
        )
        if claim is not None:
            won.append((run, claim))
    if not won:
        return
    try:
        jobs = sweep.engine.submit(
            [run.command(sweep.config_file, sweep.workdir, claim.attempt) for run, claim in won]
        )
    except UserError:
        for run, claim in won:
            claims.replace(sweep.directory(run.id), claim, abandoned=True)
        raise
    for (run, claim), job in zip(won, jobs, strict=True):
        claims.replace(sweep.directory(run.id), claim, job=job, heartbeat=time.time())


def _can_start(sweep: Sweep, run: Run) -> bool:
    """Whether what a branch starts from is on disk: its own checkpoint, or its trunk's."""
    return (
        not run.trunk
        or run.config.branch_step in _checkpoints(sweep, run.trunk)
        or bool(_checkpoints(sweep, run.id))
    )


def _out_of_reach(
    sweep: Sweep, run: Run, seen: dict[str, Observed], given_up: dict[str, str]
) -> str:
    """Why a branch can never start: its trunk ended without the checkpoint that it needs."""
    if _can_start(sweep, run):
        return ""
    if run.trunk in given_up:
        return f"its trunk {run.trunk} was given up before step {run.config.branch_step}"
    if seen[run.trunk].state == "done":
        return (
            f"its trunk {run.trunk} is done and has no checkpoint of step {run.config.branch_step}"
        )
    return ""


def _checkpoints(sweep: Sweep, run: str) -> list[int]:
    return Checkpoints(sweep.directory(run) / "checkpoints", keep=1).steps()


def _note_heartbeat(sweep: Sweep, run: str, one: Observed):
    """Lets a later look, which may not get an answer from the scheduler, know that there was
    one."""
    if (
        one.claims
        and (claim := one.claims[-1]).job
        and time.time() - claim.heartbeat > HEARTBEAT_SECONDS
        and sweep.alive(claim)
    ):
        with contextlib.suppress(OSError):  # the next look notes it
            claims.replace(sweep.directory(run), claim, heartbeat=time.time())


def _line(sweep: Sweep, run: Run, one: Observed, now: str) -> str:
    attempt = f", attempt {one.attempt}" if one.attempt > 1 and one.live else ""
    at = f" at step {one.step}" if now in ("preempted", "failed", "dead") else ""
    told = one.state in ("failed", "dead") and not one.refusal  # a refusal is the reason already
    words = runs.last_log_line(sweep.directory(run.id)) if told else ""
    return f"{f'{run.id} {run.label}'.rstrip()}: {now}{at}{attempt}{f' ({words})' if words else ''}"
