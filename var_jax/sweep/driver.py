"""Submits the runs of a sweep, watches them and restarts dead ones until all are done or given up.

All state is in the runs' directories: the process may be killed and started again, and several
processes may drive one sweep at the same time, also on different hosts.
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
from var_jax.sweep import claims, run_state
from var_jax.sweep.backend import Engine, RunCommand
from var_jax.sweep.claims import Claim
from var_jax.sweep.plan import Run
from var_jax.sweep.run_state import RETRIED, Observed

HEARTBEAT_SECONDS = 60.0  # interval at which the claim of a live job is updated


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep and the engine that runs it.

    Attributes:
      runs: the runs, trunks before their branches.
      config_file: the config file as `train --config` takes it.
      workdir: the sweep's directory.
      backend, engine: name of the engine that starts runs, and the engine.
      max_live_runs: 0 for no limit.
      max_restarts: see `run_state.give_up_reason`.
      stale: see `run_state.observe`.
    """

    runs: Sequence[Run]
    config_file: str
    workdir: str
    backend: str
    engine: Engine
    max_live_runs: int
    max_restarts: int = 5
    stale: float = run_state.STALE_SECONDS

    def directory(self, run: str) -> epath.Path:
        """Returns the directory of the run with this id."""
        return epath.Path(self.workdir) / run

    def observe(self, run: str) -> Observed:
        """Returns the present state of the run with this id."""
        return run_state.observe(
            self.directory(run),
            self.alive,
            self.stale,
            may_wait=lambda claim: self.engine.may_wait and claim.backend == self.backend,
        )

    def alive(self, claim: Claim) -> bool | None:
        """Returns whether a claim's job exists; None if another engine started it."""
        return self.engine.alive(claim.job) if claim.backend == self.backend else None


def require_directory(workdir: str):
    """Raises UserError if the sweep's directory, or one above it, exists and is no directory."""
    path = epath.Path(workdir)
    for above in (path, *path.parents):
        if above.exists():
            if not above.is_dir():
                name = "it" if above == path else above
                raise UserError(f"cannot write the sweep's directory {workdir}: {name} is a file")
            return


def write_plan(sweep: Sweep, overrides: Sequence[str]):
    """Writes sweep.json, the list of the sweep's runs, for `status`.

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
    sweep: Sweep, *, interval: float, retry: bool = False, report: Callable[[str], None] = print
) -> dict[str, str]:
    """Starts, watches and restarts runs until none is live and none can be started.

    Args:
      interval: seconds between two observations of the runs.
      retry: whether runs that were given up get another chance.
      report: called with one line for every change of a run's state.

    Returns:
      For each run that was given up, the reason. All other runs are done.

    Raises:
      UserError: the engine cannot start runs; those that are live go on.
    """
    reported: dict[str, str] = {}
    chances = {run.id for run in sweep.runs} if retry else set()
    while True:
        observations = {run.id: sweep.observe(run.id) for run in sweep.runs}
        given_up: dict[str, str] = {}
        ready: list[Run] = []
        for run in sweep.runs:
            observed = observations[run.id]
            if not observed.live and observed.state != "done":
                reason = _out_of_reach(sweep, run, observations, given_up) or (
                    run_state.give_up_reason(observed, sweep.max_restarts)
                    if run.id not in chances
                    else ""
                )
                if reason:
                    given_up[run.id] = reason
                elif _can_start(sweep, run):
                    ready.append(run)
            elif observed.state != "done":
                _note_heartbeat(sweep, run.id, observed)
            description = f"given up: {given_up[run.id]}" if run.id in given_up else observed.state
            if description not in (reported.get(run.id, "new"), "new"):
                report(_line(sweep, run, observed, description))
            reported[run.id] = description
        live = sum(observed.live for observed in observations.values())
        if not live and not ready:
            return given_up
        limit = sweep.max_live_runs
        ready = ready[: max(0, limit - live)] if limit else ready
        _start(sweep, ready, observations, chances)
        chances -= {run.id for run in ready}
        time.sleep(interval)


def stop(sweep: Sweep) -> list[str]:
    """Asks every live run of this engine to save and end, and returns their ids."""
    stopped = []
    for run in sweep.runs:
        observed = sweep.observe(run.id)
        if (
            observed.live
            and observed.claims
            and observed.claims[-1].job
            and observed.claims[-1].backend == sweep.backend
        ):
            sweep.engine.stop(observed.claims[-1].job)
            stopped.append(run.id)
    return stopped


def commands(sweep: Sweep) -> list[RunCommand]:
    """Returns the commands of the first attempt at every run."""
    return [run.command(sweep.config_file, sweep.workdir, 1) for run in sweep.runs]


def _start(
    sweep: Sweep, ready: Sequence[Run], observations: dict[str, Observed], chances: set[str]
):
    """Claims runs and submits them, except those that another process claims first."""
    claimed: list[tuple[Run, Claim]] = []
    for run in ready:
        observed = observations[run.id]
        retried = run.id in chances and run_state.give_up_reason(observed, sweep.max_restarts)
        ended = "" if observed.state == "new" else RETRIED if retried else observed.state
        claim = claims.create(
            sweep.directory(run.id), observed.attempt + 1, sweep.backend, ended, observed.step
        )
        if claim is not None:
            claimed.append((run, claim))
    if not claimed:
        return
    try:
        jobs = sweep.engine.submit(
            [run.command(sweep.config_file, sweep.workdir, claim.attempt) for run, claim in claimed]
        )
    except UserError:
        for run, claim in claimed:
            claims.replace(sweep.directory(run.id), claim, abandoned=True)
        raise
    for (run, claim), job in zip(claimed, jobs, strict=True):
        claims.replace(sweep.directory(run.id), claim, job=job, heartbeat=time.time())


def _can_start(sweep: Sweep, run: Run) -> bool:
    """Returns whether a run can start: a branch needs a checkpoint of its own or of its trunk."""
    return (
        not run.trunk
        or run.config.branch_step in _checkpoints(sweep, run.trunk)
        or bool(_checkpoints(sweep, run.id))
    )


def _out_of_reach(
    sweep: Sweep, run: Run, observations: dict[str, Observed], given_up: dict[str, str]
) -> str:
    """Returns why a branch can never start, or "" if it can.

    Its trunk may have ended without the checkpoint that it needs.
    """
    if _can_start(sweep, run):
        return ""
    if run.trunk in given_up:
        return f"its trunk {run.trunk} was given up before step {run.config.branch_step}"
    if observations[run.trunk].state == "done":
        return (
            f"its trunk {run.trunk} is done and has no checkpoint of step {run.config.branch_step}"
        )
    return ""


def _checkpoints(sweep: Sweep, run: str) -> list[int]:
    return Checkpoints(sweep.directory(run) / "checkpoints", keep=1).steps()


def _note_heartbeat(sweep: Sweep, run: str, observed: Observed):
    """Records in the claim that the scheduler knows the job.

    A later observation may get no answer from the scheduler and then relies on it.
    """
    if (
        observed.claims
        and (claim := observed.claims[-1]).job
        and time.time() - claim.heartbeat > HEARTBEAT_SECONDS
        and sweep.alive(claim)
    ):
        with contextlib.suppress(OSError):  # the next observation records it
            claims.replace(sweep.directory(run), claim, heartbeat=time.time())


def _line(sweep: Sweep, run: Run, observed: Observed, description: str) -> str:
    attempt = f", attempt {observed.attempt}" if observed.attempt > 1 and observed.live else ""
    at = f" at step {observed.step}" if description in ("preempted", "failed", "dead") else ""
    # A refusal states its reason itself; other failures are explained by the last line of the log.
    log_line = ""
    if observed.state in ("failed", "dead") and not observed.refusal:
        log_line = run_state.last_log_line(sweep.directory(run.id))
    name = f"{run.id} {run.label}".rstrip()
    cause = f" ({log_line})" if log_line else ""
    return f"{name}: {description}{at}{attempt}{cause}"
