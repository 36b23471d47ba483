"""How a run's wall time is divided, over starts that were killed too."""

import json
import signal
import time

import jax
import numpy as np
import pytest
from jax import monitoring

from helpers import processes, small
from helpers.runs import fake_step, signal_in_step
from var_jax.errors import Preempted
from var_jax.io import goodput_record
from var_jax.io.json import read_object
from var_jax.sweep import status
from var_jax.train import step
from var_jax.train.goodput import Goodput, process_start
from var_jax.train.loop import train

PAUSE = 2.0  # seconds between a kill and the next start
COMPILE = "/jax/core/compile/backend_compile_duration"


class Clock:
    """A clock that stands still unless it is set forward."""

    def __init__(self, now: float = 1000.0):
        self.now = now

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float):
        self.now += seconds


def seconds(goodput: Goodput) -> dict[str, float]:
    """Returns the categories that have any time."""
    return {name: value for name, value in goodput.seconds.items() if value}


def stopped_run(clock: Clock) -> dict:
    """The status of a run of 30 steps of a second each, with a checkpoint of step 20, that was
    killed after step 30."""
    goodput = Goodput(clock=clock)
    clock.wait(5)
    goodput.enter("steps")
    clock.wait(20)
    goodput.saved(20)
    with goodput.measure("checkpoints"):
        clock.wait(2)
    clock.wait(10)
    return {"state": "running", goodput_record.KEY: goodput.record()}


def test_goodput_divides_the_wall_time():
    """Each second of a clock goes to the innermost block, and their sum is the time that passed."""
    clock = Clock()
    goodput = Goodput(started=997.0, clock=clock)
    clock.wait(2)
    goodput.enter("steps")
    for _ in range(3):
        with goodput.measure("data"):
            clock.wait(1)
        clock.wait(4)
    with goodput.measure("evaluation"):
        clock.wait(6)
        with goodput.measure("checkpoints"):
            clock.wait(7)
    assert seconds(goodput) == {
        "start": 5,
        "data": 3,
        "steps": 12,
        "evaluation": 6,
        "checkpoints": 7,
    }
    assert sum(goodput.seconds.values()) == clock.now - 997


def test_goodput_takes_compilation_out_of_the_category_that_waits_for_it():
    """JAX's own events count once, where one contains another too, and not beyond the time since
    the category began; other events and those after the clock's end count for nothing."""
    clock = Clock()
    with Goodput(clock=clock) as goodput:
        goodput.enter("steps")
        clock.wait(10)
        for duration in (2, 3, 3, 8):  # the last one contains the others
            monitoring.record_event_duration_secs(COMPILE, duration)
        monitoring.record_event_duration_secs("/jax/other", 9)
        clock.wait(1)
        with goodput.measure("evaluation"):
            clock.wait(2)
            monitoring.record_event_duration_secs(COMPILE, 100)
    monitoring.record_event_duration_secs(COMPILE, 1)
    assert seconds(goodput) == {"steps": 3, "compilation": 10}


def test_goodput_notices_compilation_of_a_real_program():
    """The first call of a program has compilation, a second one has none: JAX still sends the
    events that are listened to."""
    program = jax.jit(lambda x: x * 3 - 1)
    with Goodput() as goodput:
        goodput.enter("steps")
        program(np.ones(3)).block_until_ready()
        first = goodput.seconds["compilation"]
        program(np.ones(3)).block_until_ready()
        assert goodput.seconds["compilation"] == first > 0


def test_follow_after_a_kill_goes_on_with_the_time():
    """The steps after the checkpoint become repeated ones, the time without a process is stopped,
    and the sum is the time since the first start."""
    clock = Clock()
    status = stopped_run(clock)
    clock.wait(100)
    goodput = Goodput(clock=clock)
    clock.wait(4)
    goodput.follow(json.loads(json.dumps(status)), resume_step=20)
    expected = {"start": 9, "steps": 20, "checkpoints": 2, "repeated": 10, "stopped": 100}
    assert seconds(goodput) == expected
    # Killed again at once: nothing more is repeated.
    status = {"state": "running", goodput_record.KEY: goodput.record()}
    again = Goodput(clock=clock)
    again.follow(status, resume_step=20)
    assert seconds(again) == expected
    assert sum(again.seconds.values()) == clock.now - 1000


def test_follow_of_an_older_checkpoint_repeats_more_steps():
    """A run that goes on from an older checkpoint, or from the start, repeats the steps since."""
    clock = Clock()
    status = stopped_run(clock)
    for resume_step, repeated in ((0, 30), (19, 30), (20, 10)):
        goodput = Goodput(clock=clock)
        goodput.follow(status, resume_step=resume_step)
        assert goodput.seconds["repeated"] == repeated


def test_follow_leaves_out_the_time_after_a_run_was_done():
    """A run that was done and is made longer has not been stopped meanwhile."""
    clock = Clock()
    status = stopped_run(clock)
    clock.wait(1e6)
    goodput = Goodput(clock=clock)
    goodput.follow({**status, "state": "done"}, resume_step=30)
    assert goodput.seconds["stopped"] == 0 and sum(goodput.seconds.values()) == 37


def test_follow_counts_an_overlap_once():
    """A start whose clock is behind the last report gives the common time to one of them."""
    clock = Clock()
    status = stopped_run(clock)
    goodput = Goodput(started=clock.now - 3, clock=clock)
    clock.wait(1)
    goodput.follow(status, resume_step=30)
    assert sum(goodput.seconds.values()) == clock.now - 1000


@pytest.mark.parametrize(
    "record",
    [None, 3, {}, {"until": "x", "seconds": {}}, {"until": 1.0, "seconds": {"steps": -1}}],
)
def test_follow_of_a_status_without_valid_seconds_begins_anew(record):
    """A run of an earlier version, or a damaged file, gives no time, and no exception."""
    assert goodput_record.seconds({goodput_record.KEY: record}) == {}
    clock = Clock()
    goodput = Goodput(clock=clock)
    goodput.follow({"state": "running", goodput_record.KEY: record}, resume_step=5)
    assert seconds(goodput) == {}


def test_follow_of_damaged_marks_counts_no_step_as_kept():
    """The rest of the record is still valid."""
    clock = Clock()
    status = stopped_run(clock)
    status[goodput_record.KEY]["marks"] = ["x"]
    goodput = Goodput(clock=clock)
    goodput.follow(status, resume_step=20)
    assert goodput.seconds["repeated"] == 30


def test_line_has_every_share():
    """The shares are of the sum, and those of starts and restarts are summed too."""
    values = dict.fromkeys(goodput_record.CATEGORIES, 0.0) | {
        "steps": 70.0,
        "data": 10.0,
        "start": 5.0,
        "stopped": 15.0,
    }
    assert goodput_record.line(values) == (
        "wall time 0:01:40: 70.0% steps, 10.0% waiting for data, 0.0% evaluation, 0.0% "
        "checkpoints, 0.0% compilation, 20.0% starts and restarts (5.0% start-up, 0.0% repeated "
        "steps, 15.0% stopped)"
    )


def test_process_start_is_before_now():
    """It is that of this process, whose age is not negative and not that of the machine."""
    assert 0 < time.time() - process_start() < time.clock_gettime(time.CLOCK_MONOTONIC)


@pytest.mark.long
@pytest.mark.usefixtures("compiled_once", "unevaluated")
def test_train_reports_the_categories_of_all_starts(configs, tmp_path, monkeypatch):
    """The loop gives time to every category, and after a SIGTERM and a second start they add up to
    the time from the beginning of the first start to the last report: nothing is counted twice or
    left out."""
    monkeypatch.setattr(step, "make_train_step", fake_step())
    started = time.time() - 1
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        signal_in_step(patch, 2)
        train(configs["transformer"], tmp_path, started=started)
    train(configs["transformer"], tmp_path)
    record = read_object(tmp_path / "status.json")[goodput_record.KEY]
    assert sum(record["seconds"].values()) == pytest.approx(record["until"] - started, abs=0.01)
    positive = {name for name, value in record["seconds"].items() if value > 0}
    assert {"start", "compilation", "data", "steps", "checkpoints"} <= positive
    assert record["seconds"]["start"] >= 1


@pytest.mark.slow
def test_train_accounts_for_the_wall_time_of_a_killed_run(tmp_path):
    """Of a real run that is killed before its first checkpoint, then twice after one, and started
    again each time, the seconds of all categories are the time from the start of its first process
    to its last report, within 2 %, and the killed starts' steps after a checkpoint are repeated."""
    (tmp_path / "config.py").write_text(small.CONFIG_FILE)
    arguments = [
        *("--config", f"{tmp_path / 'config.py'}:tokenizer"),
        f"--config.data.data_dir={tmp_path / 'tfds'}",
        *("--config.steps=60", "--config.log_every=1", "--config.checkpoint_every=20"),
        "--config.eval_every=60",
    ]
    workdir, cache = tmp_path / "run", tmp_path / "cache"
    first_start, stopped = time.time(), 0.0
    for kill, at in enumerate((5, 25, 45)):
        with processes.running(arguments, workdir, cache) as run:
            run.until(lambda at=at: max(processes.records(workdir), default=0) >= at, 300)
            if kill:  # checkpoints are written while steps go on
                run.until(lambda: processes.checkpoints(workdir), 60)
            run.send(signal.SIGKILL)
            run.ended(0, 60)
        assert bool(processes.checkpoints(workdir)) == (kill > 0)
        time.sleep(PAUSE)
        stopped += PAUSE
    with processes.running(arguments, workdir, cache) as run:
        assert run.codes(300) == [0], run.output()
        printed = run.output()
    wall = (workdir / "status.json").stat().st_mtime - first_start
    (row,) = status.read(workdir)
    assert sum(row.seconds.values()) == pytest.approx(wall, rel=0.02)
    for name in ("steps", "data", "evaluation", "checkpoints", "compilation", "start", "repeated"):
        assert row.seconds[name] > 0, name
    assert stopped <= row.seconds["stopped"] < stopped + 60
    # The command's last lines and `status` show the same shares.
    assert status.lines([row])[-1] in printed
