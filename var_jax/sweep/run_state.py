"""Determines the state of a run from its files, its claims and, if it answers, the scheduler."""

import dataclasses
import datetime
import time
from collections.abc import Callable
from typing import Any, Literal, get_args

from etils import epath

from var_jax.errors import UserError
from var_jax.io.json import is_finite_number, read_object_if_exists
from var_jax.io.run_records import ReportedState
from var_jax.sweep import claims
from var_jax.sweep.claims import Claim

# A run that has not reported for this long, and that no scheduler knows of, is dead.
STALE_SECONDS = 900.0

RETRIED = "retried"  # `after` of a claim that gives another chance to a run that was given up

# Of status.json: keys whose values are counts, those that are numbers or null, and the states.
STATUS_COUNTS = ("step", "steps", "restarts")
STATUS_NUMBERS = ("loss", "held_out_loss", "images_per_s", "eta_s")
STATUS_STATES = get_args(ReportedState)

State = Literal["new", "queued", "running", "done", "preempted", "failed", "dead"]
Alive = Callable[[Claim], bool | None]


@dataclasses.dataclass(frozen=True)
class Observed:
    """The present state of a run.

    Attributes:
      state: "new" (never claimed), "queued" (submitted, nothing reported yet), "running", or one of
        the final states: "done", "preempted" (everything saved), "failed" (as the run itself
        reported) and "dead" (ended without a report).
      step: the last step that the run reported.
      status: the content of status.json; {} before there is one.
      claims: the claims of its attempts.
      refusal: the user's mistake for which the latest attempt ended, or "".
    """

    state: State
    step: int
    status: dict[str, Any]
    claims: tuple[Claim, ...]
    refusal: str = ""

    @property
    def live(self) -> bool:
        """Whether the run is queued or running."""
        return self.state in ("queued", "running")

    @property
    def attempt(self) -> int:
        """The number of the latest attempt; 0 if there was none."""
        return len(self.claims)


def observe(
    run: epath.Path,
    alive: Alive,
    stale: float = STALE_SECONDS,
    *,
    may_wait: Callable[[Claim], bool] = lambda _: False,
) -> Observed:
    """Returns the state of the run in a directory, which need not exist.

    Args:
      alive: returns whether a claim's job exists, or None if that cannot be known. In that case
        the run is live until `stale` seconds after the later of its status.json's `updated` and its
        claim's `heartbeat`.
      stale: seconds without a report.
      may_wait: returns whether a claim's job may be waiting in the queue of a scheduler that does
        not answer at present. Such a run is dead only if it has reported and then stopped.
    """
    attempts = tuple(claims.read(run))
    # The scheduler is asked before the files are read, so that they have the last report of a job
    # that ends in between.
    exists = _job_exists(attempts[-1], alive) if attempts else None
    status = read_status(run)
    reported_state, step, heartbeat = (
        status.get("state"),
        int(status.get("step") or 0),
        updated(status),
    )
    if reported_state == "done":
        return Observed("done", step, status, attempts)
    now = time.time()
    claim_heartbeat = attempts[-1].heartbeat if attempts else 0.0
    if exists is None:
        recently_running = reported_state == "running" and now - heartbeat < stale
        may_still_start = (
            bool(attempts)
            and not attempts[-1].abandoned
            and now - claim_heartbeat < _grace_seconds(attempts[-1], stale)
        )
        exists = (recently_running and heartbeat >= _attempt_start(attempts)) or (
            may_still_start and not _ended_since(status, attempts)
        )
        if not exists and attempts and attempts[-1].job and may_wait(attempts[-1]):
            exists = reported_state != "running" or heartbeat < _attempt_start(attempts)
    if exists:
        has_begun = reported_state == "running" and heartbeat >= _attempt_start(attempts)
        return Observed("running" if has_begun else "queued", step, status, attempts)
    if attempts and (refusal := claims.refusal(run, attempts[-1].attempt)):
        return Observed("failed", step, status, attempts, refusal)
    if reported_state is None and all(claim.abandoned for claim in attempts):
        return Observed("new", step, status, attempts)
    is_from_latest = heartbeat >= _attempt_start(
        tuple(claim for claim in attempts if not claim.abandoned)
    )  # not of an attempt before
    ended: State = (
        reported_state if reported_state in ("preempted", "failed") and is_from_latest else "dead"
    )
    return Observed(ended, step, status, attempts)


def require_reachable(directory: epath.PathLike):
    """Raises UserError if the package that reads this kind of bucket is not installed."""
    try:
        epath.Path(directory).exists()
    except ImportError as error:
        raise UserError(f"cannot reach {directory}: {' '.join(str(error).split())}") from error


def read_status(run: epath.Path) -> dict[str, Any]:
    """Returns status.json without invalid values; {} if it is missing or unreadable."""
    status, _ = _read_status(run)
    return status


def status_problem(run: epath.Path) -> str:
    """Returns why status.json is no valid status of a run; "" if it is valid or missing."""
    _, problem = _read_status(run)
    return problem


def _read_status(run: epath.Path) -> tuple[dict[str, Any], str]:
    path = run / "status.json"
    try:
        status = read_object_if_exists(path) or {}
    except UserError as error:
        return {}, str(error)
    bad = {key: value for key, value in status.items() if not _is_status_value(key, value)}
    problem = ""
    if bad:
        key, value = next(iter(bad.items()))
        problem = f"{path}: {key} is {value!r:.60}, which no run writes"
    return {key: value for key, value in status.items() if key not in bad}, problem


def _is_status_value(key: str, value: Any) -> bool:
    if key in STATUS_COUNTS:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if key in STATUS_NUMBERS:
        return value is None or is_finite_number(value)
    return key != "state" or value in STATUS_STATES


def updated(status: dict[str, Any]) -> float:
    """Returns when a status was written, in seconds since 1970; 0 if it does not say."""
    try:
        return datetime.datetime.fromisoformat(status["updated"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return 0.0


def give_up_reason(observed: Observed, max_restarts: int) -> str:
    """Returns why a run that ended before it was done should not be restarted; "" if it should.

    A run is given up if it ended by the user's mistake, if it reported a failure twice at the same
    step, or after `max_restarts` restarts. A preemption with progress does not count. `sweep
    --retry` starts the count again.
    """
    if observed.refusal:
        return f"it was refused: {observed.refusal}"
    history = [claim for claim in observed.claims if not claim.abandoned]
    history = history[
        max((i for i, claim in enumerate(history) if claim.after == RETRIED), default=0) :
    ]
    if not history:
        return ""
    ends = [(claim.after, claim.reached) for claim in history[1:]] + [
        (observed.state, observed.step)
    ]
    if len(ends) > 1 and ends[-1] == ends[-2] == ("failed", ends[-1][1]):
        return f"it failed twice at step {ends[-1][1]}"
    begins = [history[0].reached, *(step for _, step in ends)]
    counted = sum(
        state != "preempted" or step <= first_step
        for (state, step), first_step in zip(ends, begins, strict=False)
    )
    return f"it ended {counted} times without being done" if counted > max_restarts else ""


def never_reported(observed: Observed) -> bool:
    """Returns whether the latest attempt has not reported anything."""
    return updated(observed.status) < _attempt_start(observed.claims)


def last_log_line(run: epath.Path) -> str:
    """Returns the last line of a run's log, or "" if there is none."""
    try:
        lines = (run / "log.txt").read_bytes().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _job_exists(claim: Claim, alive: Alive) -> bool | None:
    if claim.abandoned:
        return False
    if claim.job:
        return alive(claim)
    # Its submitter is submitting it, or died meanwhile.
    return claims.process_alive(claim.host, claim.pid, claim.born) or None


def _grace_seconds(claim: Claim, stale: float) -> float:
    return stale if claim.job else claims.SUBMIT_SECONDS


def _attempt_start(attempts: tuple[Claim, ...]) -> float:
    """Returns the time before which reports are of earlier attempts.

    A second is subtracted because status.json has times in whole seconds.
    """
    return attempts[-1].created - 1.0 if attempts else 0.0


def _ended_since(status: dict[str, Any], attempts: tuple[Claim, ...]) -> bool:
    return status.get("state") in ("preempted", "failed") and updated(status) >= _attempt_start(
        attempts
    )
