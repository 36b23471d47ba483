"""What state a run is in, by its own files, its claims and, where it knows, the scheduler."""

import dataclasses
import datetime
import json
import time
from collections.abc import Callable
from typing import Any, Literal

from etils import epath

from var_jax.errors import UserError
from var_jax.sweep import claims
from var_jax.sweep.claims import Claim

STALE_SECONDS = 900.0  # without a word for so long, and the scheduler does not know it either: dead

RETRIED = "retried"  # `after` of a claim that gives a hopeless run another chance

State = Literal["new", "queued", "running", "done", "preempted", "failed", "dead"]
Alive = Callable[[Claim], bool | None]


@dataclasses.dataclass(frozen=True)
class Observed:
    """A run as it is now.

    Attributes:
      state: "new" (never claimed), "queued" (submitted, no word yet) and "running" are as they say;
        the others have ended: "done", "preempted" (everything saved), "failed" (by its own word),
          "dead" (without one).
      step: last step that it told.
      status: its status.json, {} before there is one.
      claims: its attempts.
      refusal: the user's mistake for which the latest attempt ended, or "".
    """

    state: State
    step: int
    status: dict[str, Any]
    claims: tuple[Claim, ...]
    refusal: str = ""

    @property
    def live(self) -> bool:
        return self.state in ("queued", "running")

    @property
    def attempt(self) -> int:
        return len(self.claims)


def observe(
    run: epath.Path,
    alive: Alive,
    stale: float = STALE_SECONDS,
    *,
    may_wait: Callable[[Claim], bool] = lambda _: False,
) -> Observed:
    """The state of a run's directory, which need not exist.

    Args:
      alive: whether a claim's job exists; None where that cannot be known, and then the heartbeats
        decide: the run is live until `stale` seconds after the last of its status.json's `updated`
          and its claim's `heartbeat`.
      may_wait: whether a claim's job, of which nothing is known at present, may be waiting in the
        queue of a scheduler that will answer again: then only a run that spoke and fell silent is
          taken for dead.
    """
    attempts = tuple(claims.read(run))
    # The scheduler is asked before the files are read: a job that ends between has its last word in
    # them.
    exists = _exists(attempts[-1], alive) if attempts else None
    status = read_status(run)
    told, step, heartbeat = status.get("state"), int(status.get("step") or 0), updated(status)
    if told == "done":
        return Observed("done", step, status, attempts)
    now = time.time()
    since = attempts[-1].heartbeat if attempts else 0.0
    if exists is None:
        spoke = told == "running" and now - heartbeat < stale
        waits = (
            bool(attempts)
            and not attempts[-1].abandoned
            and now - since < _patience(attempts[-1], stale)
        )
        exists = (spoke and heartbeat >= _began(attempts)) or (
            waits and not _ended_since(status, attempts)
        )
        if not exists and attempts and attempts[-1].job and may_wait(attempts[-1]):
            exists = told != "running" or heartbeat < _began(attempts)
    if exists:
        begun = told == "running" and heartbeat >= _began(attempts)
        return Observed("running" if begun else "queued", step, status, attempts)
    if attempts and (refusal := claims.refusal(run, attempts[-1].attempt)):
        return Observed("failed", step, status, attempts, refusal)
    if told is None and all(claim.abandoned for claim in attempts):
        return Observed("new", step, status, attempts)
    own = heartbeat >= _began(
        tuple(claim for claim in attempts if not claim.abandoned)
    )  # not of an attempt before
    ended: State = told if told in ("preempted", "failed") and own else "dead"
    return Observed(ended, step, status, attempts)


def require_reachable(directory: epath.PathLike):
    """Raises UserError when the package that reads a bucket of its kind is not installed."""
    try:
        epath.Path(directory).exists()
    except ImportError as error:
        raise UserError(f"cannot reach {directory}: {' '.join(str(error).split())}") from error


def read_status(run: epath.Path) -> dict[str, Any]:
    """status.json, {} when it is not there or not readable."""
    try:
        status = json.loads((run / "status.json").read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def updated(status: dict[str, Any]) -> float:
    """When a status was written, seconds since 1970; 0 when it does not say."""
    try:
        return datetime.datetime.fromisoformat(status["updated"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return 0.0


def give_up_reason(observed: Observed, max_restarts: int) -> str:
    """Why a run that has ended, but is not done, should not be started again; "" when it should.

    A run that ended by the user's mistake would do so again, and one that failed twice at the same
    step, by its own word, would fail there again. Restarts are bounded, except that a preemption
    with progress is no failure of the run and does not count. `sweep --retry` starts the count
    afresh.
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
        state != "preempted" or step <= begin
        for (state, step), begin in zip(ends, begins, strict=False)
    )
    return f"it ended {counted} times without being done" if counted > max_restarts else ""


def never_reported(observed: Observed) -> bool:
    """Whether the latest attempt has not said a word."""
    return updated(observed.status) < _began(observed.claims)


def last_log_line(run: epath.Path) -> str:
    """The last line of what a run printed, where its engine kept it."""
    try:
        lines = (run / "log.txt").read_bytes().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _exists(claim: Claim, alive: Alive) -> bool | None:
    if claim.abandoned:
        return False
    if claim.job:
        return alive(claim)
    return (
        claims.process_alive(claim.host, claim.pid, claim.born) or None
    )  # its submitter is at it, or died there


def _patience(claim: Claim, stale: float) -> float:
    return stale if claim.job else claims.SUBMIT_SECONDS


def _began(attempts: tuple[Claim, ...]) -> float:
    """Words older than this are not of the latest attempt; status.json's times are whole
    seconds."""
    return attempts[-1].created - 1.0 if attempts else 0.0


def _ended_since(status: dict[str, Any], attempts: tuple[Claim, ...]) -> bool:
    return status.get("state") in ("preempted", "failed") and updated(status) >= _began(attempts)
