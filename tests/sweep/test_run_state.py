import dataclasses
import datetime
import json
import time

import pytest
from etils import epath

from var_jax.sweep import claims, run_state


def status(run, state: str, step: int = 5, ago: float = 0.0):
    when = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ago)
    run.mkdir(parents=True, exist_ok=True)
    (run / "status.json").write_text(
        json.dumps({"state": state, "step": step, "updated": when.isoformat()})
    )


def claim(run, attempt: int = 1, ago: float = 0.0, **changes):
    made = claims.create(
        run, attempt, "local", **{k: changes.pop(k) for k in ("after", "reached") if k in changes}
    )
    claims.replace(
        run,
        made,
        **{"job": "j", "created": time.time() - ago, "heartbeat": time.time() - ago, **changes},
    )


def seen(run, exists: bool | None, may_wait: bool = False) -> run_state.Observed:
    return run_state.observe(run, lambda _: exists, may_wait=lambda _: may_wait)


@pytest.fixture
def run(tmp_path) -> epath.Path:
    return epath.Path(tmp_path / "run")


def test_observe_takes_a_missing_directory_as_a_new_run(run):
    """A run whose directory does not exist is new, and an observation does not create the
    directory."""
    assert seen(run, None).state == "new" and not run.exists()


@pytest.mark.parametrize(
    ("message", "exists", "state"),
    [
        (None, True, "queued"),
        (None, False, "dead"),
        ("running", True, "running"),
        ("running", False, "dead"),
        ("failed", False, "failed"),
        ("preempted", False, "preempted"),
        ("preempted", True, "queued"),
        ("done", True, "done"),
        ("done", False, "done"),
        ("done", None, "done"),
    ],
)
def test_observe_state_from_the_scheduler(run, message, exists, state):
    """The scheduler's answer decides whether a run is live, and the run's last report says whether
    it has begun or how it ended. A run that reported "done" is done whatever the scheduler
    answers."""
    claim(run, ago=10)
    if message:
        status(run, message)
    result = seen(run, exists)
    assert result.state == state and result.live == (state in ("queued", "running"))
    assert result.step == (5 if message else 0)


@pytest.mark.parametrize(
    ("message", "ago", "claimed", "state"),
    [
        ("running", 10, 5000, "running"),  # a fresh heartbeat, however old the claim
        ("running", 2000, 5000, "dead"),
        (None, 0, 10, "queued"),
        (None, 0, 5000, "dead"),
        ("failed", 5, 10, "failed"),  # the run's own word counts before patience does
        ("preempted", 500, 10, "queued"),  # the word of the attempt before
        ("running", 500, 10, "queued"),
    ],
)
def test_observe_state_from_heartbeats_alone(run, message, ago, claimed, state):
    """Without an answer of a scheduler, a run is live while its report or its claim is recent, and
    dead later. A report of an earlier attempt does not count, and a failure that this attempt
    reported ends it at once."""
    claim(run, ago=claimed)
    if message:
        status(run, message, ago=ago)
    assert seen(run, None).state == state


@pytest.mark.parametrize(
    ("message", "ago", "state"),
    [
        (None, 0, "queued"),
        ("preempted", 9000, "queued"),
        ("running", 9000, "queued"),  # none a word of this attempt
        ("preempted", 1000, "queued"),  # SLURM starts it again under its id
        ("running", 10, "running"),
        ("running", 1000, "dead"),
    ],
)
def test_observe_keeps_a_pending_job_live_while_its_scheduler_is_silent(run, message, ago, state):
    """A job that may wait in the queue of a silent scheduler stays live, however old its claim is,
    unless it has reported and then stopped. If the scheduler answers that the job is gone, the run
    is not live."""
    claim(run, ago=5000)
    if message:
        status(run, message, ago=ago)
    assert seen(run, None, may_wait=True).state == state
    assert not seen(run, False, may_wait=True).live  # the scheduler positively says that it is gone


@pytest.mark.parametrize("message", ["failed", "preempted"])
def test_observe_ignores_the_report_of_an_earlier_attempt(run, message):
    """A report from before the latest attempt does not say how that attempt ended, so the run is
    dead. The report counts again once the latest attempt is abandoned."""
    claim(run, ago=5000)
    claim(run, 2, ago=1000)
    status(run, message, ago=2000)
    assert seen(run, False).state == "dead"
    claims.replace(run, claims.read(run)[1], abandoned=True)
    assert seen(run, False).state == message


def test_observe_takes_a_reporting_run_without_a_claim_as_live(run):
    """A run that was started by hand has no claim: it is live while it reports, and dead when its
    last report is old."""
    status(run, "running")
    assert seen(run, None).live
    status(run, "running", ago=2000)
    assert seen(run, None).state == "dead"


def test_observe_waits_for_a_live_or_recently_dead_submitter(run):
    """A claim without a job is of a submission under way. The run is queued while the submitter
    lives, or cannot be known and may still be at it, and dead later; a recent report shows that the
    job did start."""
    claim(run, job="")
    assert seen(run, False).state == "queued"  # this process
    claim(run, 2, job="", host="elsewhere")
    assert seen(run, False).state == "queued"
    claim(run, 3, job="", host="elsewhere", ago=260)  # kubectl takes up to 240 s for its two calls
    assert seen(run, False, may_wait=True).state == "queued"
    claim(run, 4, job="", pid=2**22 + 1, ago=260)  # of this host, and dead
    assert seen(run, False, may_wait=True).state == "queued"
    claim(run, 5, job="", host="elsewhere", ago=1000)
    assert seen(run, False, may_wait=True).state == "dead"
    status(run, "running", ago=50)  # it had been started after all
    assert seen(run, False).state == "running"


def test_observe_ignores_a_failed_submission(run):
    """An abandoned claim is no attempt: the run is still new, and it is not given up even if no
    restarts are allowed."""
    claim(run, job="", abandoned=True)
    assert seen(run, True).state == "new" and seen(run, None).state == "new"
    assert run_state.give_up_reason(seen(run, None), 0) == ""


def ended(run, *ends: tuple[str, int], **last) -> run_state.Observed:
    """A run whose attempts ended so."""
    for i, (after, reached) in enumerate([("", 0), *ends[:-1]], start=1):
        if not (run / "claims" / f"{i:04d}.json").exists():
            claim(run, i, ago=100, after=after, reached=reached)
    return dataclasses.replace(seen(run, False), state=ends[-1][0], step=ends[-1][1], **last)


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        ([("failed", 5)], ""),
        ([("failed", 5), ("failed", 5)], "it failed twice at step 5"),
        (
            [("dead", 0), ("dead", 0)],
            "",
        ),  # killed from without, twice within one interval of its words
        ([("failed", 5), ("dead", 5)], ""),
        ([("dead", 0)] * 4, "it ended 4 times without being done"),
        ([("failed", 5), ("failed", 7)], ""),
        ([("failed", 5), ("preempted", 5), ("failed", 5)], ""),
        ([("preempted", 5), ("preempted", 5)], ""),
        ([("preempted", step) for step in range(1, 20)], ""),
        ([("preempted", 5)] * 5, "it ended 4 times without being done"),
        ([("failed", step) for step in range(1, 5)], "it ended 4 times without being done"),
    ],
)
def test_give_up_reason_counts_ends_without_progress(run, ends, reason):
    """With three restarts, a run is given up if it reports two failures in a row at one step, or at
    its fourth end. Preemptions with progress do not count as ends."""
    assert run_state.give_up_reason(ended(run, *ends), max_restarts=3) == reason


def test_give_up_reason_counts_anew_after_a_retry(run):
    """A retry starts the count again: one failure before it and one after it, at the same step, are
    not two, and a second one after it is."""
    observed = ended(run, ("failed", 5), (run_state.RETRIED, 5), ("failed", 5))
    assert run_state.give_up_reason(observed, max_restarts=3) == ""
    observed = ended(run, ("failed", 5), (run_state.RETRIED, 5), ("failed", 5), ("failed", 5))
    assert run_state.give_up_reason(observed, max_restarts=3) == "it failed twice at step 5"


def test_observe_refusal_is_of_the_latest_attempt(run):
    """What an earlier attempt was refused for has been put right since, and a job that lives is not
    refused yet."""
    claim(run)
    (run / "claims" / "0001.refused").write_text("steps is 0")
    assert seen(run, True).refusal == "" and seen(run, True).live
    assert (seen(run, False).state, seen(run, False).refusal) == ("failed", "steps is 0")
    claim(run, 2)
    assert (seen(run, False).state, seen(run, False).refusal) == ("dead", "")


def test_last_log_line_skips_blank_lines(run):
    """The last line that is not blank is returned, and an empty text if there is no log."""
    assert run_state.last_log_line(run) == ""
    run.mkdir()
    (run / "log.txt").write_text("one\nValueError: two\n\n")
    assert run_state.last_log_line(run) == "ValueError: two"
