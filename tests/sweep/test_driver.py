"""Whole sweeps of stub runs, in processes that are killed on the way."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.processes import wait_for
from sweep import drive
from var_jax.errors import UserError
from var_jax.scaling import table
from var_jax.sweep import claims, driver
from var_jax.train import workdir

DRIVE = str(Path(drive.__file__))


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Sets what the stub does."""

    def tell(**plan):
        monkeypatch.setenv("STUB_PLAN", drive.plan_file(tmp_path / "plan.json", **plan))

    tell()
    return tell


def run(sweep: driver.Sweep, **settings) -> tuple[dict[str, str], list[str]]:
    reports: list[str] = []
    return driver.drive(sweep, interval=0.05, report=reports.append, **settings), reports


def starts(sweep: driver.Sweep) -> list[int]:
    return [len((sweep.directory(r.id) / "starts").read_text().split()) for r in sweep.runs]


def states(sweep: driver.Sweep) -> list[str]:
    return [sweep.observe(r.id).state for r in sweep.runs]


def test_driver_starts_every_run_once(stub, tmp_path):
    """Three trunks and their branches are started once each and done; their table has every run,
    and a second call starts nothing."""
    sweep = drive.sweep(tmp_path / "sweep")
    given_up, said = run(sweep)
    assert given_up == {} and states(sweep) == ["done"] * 6 and starts(sweep) == [1] * 6
    assert sum(line.endswith("done") for line in said) == 6
    runs = table.read(str(tmp_path / "sweep")).finals()
    assert sorted(runs["tokens"]) == [200] * 3 + [400] * 3 and runs.dropped == ()
    assert run(sweep)[0] == {} and starts(sweep) == [1] * 6  # once more: nothing to do


def test_driver_starts_a_branch_while_its_trunk_goes_on(stub, tmp_path):
    """A branch runs as soon as the trunk has the checkpoint that it needs, before the trunk is
    done."""
    sweep = drive.sweep(tmp_path / "sweep", seeds=1)
    trunk, branch = (r.id for r in sweep.runs)
    stub(waits={trunk: branch})  # before its last step, and not for ever
    run(sweep)
    trunk_end, branch_end = (
        os.stat(sweep.directory(run_id) / "status.json").st_mtime for run_id in (trunk, branch)
    )
    assert branch_end <= trunk_end
    assert starts(sweep) == [1, 1]  # the stub refuses a branch whose trunk has not got there


def test_jobs_bounds_the_runs_that_are_live(stub, tmp_path):
    """By the times of claims and ends, never more than two of four runs are live."""
    stub(pause=0.01)
    sweep = drive.sweep(tmp_path / "sweep", jobs=2, branches=False, seeds=4)
    assert run(sweep)[0] == {} and states(sweep) == ["done"] * 4
    (begun,) = zip(
        *([claim.created for claim in claims.read(sweep.directory(r.id))] for r in sweep.runs),
        strict=True,
    )
    done = [os.stat(sweep.directory(r.id) / "status.json").st_mtime for r in sweep.runs]
    assert all(sum(b <= t and t < d for b, d in zip(begun, done, strict=True)) <= 2 for t in begun)


def test_driver_starts_a_killed_run_again(stub, tmp_path):
    """A run whose process vanishes and one that fails are started once more each, and the lines say
    at which step they ended."""
    sweep = drive.sweep(tmp_path / "sweep", seeds=2, branches=False)
    first, second = (r.id for r in sweep.runs)
    stub(wrong={first: {"vanishes_at": 17, "times": 1}, second: {"fails_at": 9, "times": 1}})
    given_up, said = run(sweep)
    assert given_up == {} and starts(sweep) == [2, 2] and states(sweep) == ["done"] * 2
    assert any(line.startswith(f"{first} ") and "dead at step 17" in line for line in said)
    assert any(
        line.startswith(f"{second} ") and "failed at step 9 (loss of step 9 is nan)" in line
        for line in said
    )


def test_steps_that_are_taken_again_have_the_records_of_the_run_that_kept_them(stub, tmp_path):
    """Records up to the last checkpoint are of the first start's process, all later ones of the
    second's, each step once."""
    sweep = drive.sweep(tmp_path / "sweep", seeds=1, branches=False)
    run_dir = sweep.directory(sweep.runs[0].id)
    stub(
        records=True, wrong={run_dir.name: {"vanishes_at": 17, "times": 1}}
    )  # the last checkpoint is of step 15
    assert run(sweep)[0] == {} and starts(sweep) == [2]
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    train = [
        (record["step"], record["process"]) for record in records if record["split"] == "train"
    ]
    killed, resumed = map(int, (run_dir / "starts").read_text().split())
    assert train == [(n, killed if n <= 15 else resumed) for n in range(1, 41)]


def test_driver_ends_a_start_whose_successor_was_claimed(tmp_path, monkeypatch):
    """A job that waited in a queue ends if a later attempt was claimed meanwhile, because its
    submitter died before it noted the job."""
    (planned,) = (sweep := drive.sweep(tmp_path / "sweep", seeds=1, branches=False)).runs
    for attempt in (1, 2):
        claims.create(sweep.directory(planned.id), attempt, "slurm")
    first, second = (
        planned.command("stub.py", sweep.workdir, attempt).environment for attempt in (1, 2)
    )
    for name, value in first.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="given up for 0002.json"):
        workdir.require_newest_start()
    for name, value in second.items():
        monkeypatch.setenv(name, value)
    workdir.require_newest_start()


def test_driver_goes_on_when_a_heartbeat_cannot_be_written(stub, tmp_path, monkeypatch):
    """A full disk refuses every heartbeat, and the run is still done."""

    def full(*args, heartbeat=None, **changes):
        if heartbeat and not changes:
            refused.append(heartbeat)
            raise OSError(28, "No space left on device")
        return replace(*args, **({"heartbeat": heartbeat} if heartbeat else {}), **changes)

    refused, replace = [], claims.replace
    stub(pause=0.05)
    monkeypatch.setattr(driver, "HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(claims, "replace", full)
    sweep = drive.sweep(tmp_path / "sweep", seeds=1, branches=False)
    assert run(sweep)[0] == {} and refused and states(sweep) == ["done"]


def test_driver_gives_up_a_run_that_fails_twice_at_a_step(stub, tmp_path):
    """The reason is given for it and for its branch, which is never started; other runs are done, a
    second call changes nothing, and with `retry` all are done."""
    sweep = drive.sweep(tmp_path / "sweep", seeds=2)
    bad, good, bad_branch, _ = (r.id for r in sweep.runs)
    stub(wrong={bad: {"fails_at": 9}})
    given_up, said = run(sweep)
    assert given_up == {
        bad: "it failed twice at step 9",
        bad_branch: f"its trunk {bad} was given up before step 16",
    }
    assert states(sweep) == ["failed", "done", "new", "done"]
    assert not sweep.directory(bad_branch).exists() and any("given up" in line for line in said)
    assert (
        run(sweep)[0] == given_up and (sweep.directory(bad) / "starts").read_text().count("\n") == 2
    )
    stub()
    assert run(sweep, retry=True)[0] == {} and states(sweep) == ["done"] * 4


def test_drive_gives_up_a_refused_run_at_once(stub, tmp_path):
    """The user's mistake would be the same at every start: one start, the reason said once, the
    rest of the sweep done; with another chance after it was put right, the run is done too."""
    sweep = drive.sweep(tmp_path / "sweep", seeds=2, branches=False)
    bad, _ = (r.id for r in sweep.runs)
    stub(wrong={bad: {"refused": 1}})
    given_up, said = run(sweep)
    assert given_up == {bad: "it was refused: data.name is wrong; it must be right"}
    assert starts(sweep) == [1, 1] and states(sweep) == ["failed", "done"]
    assert "".join(said).count("data.name is wrong") == 1
    assert run(sweep)[0] == given_up and starts(sweep) == [1, 1]
    assert (
        run(sweep, retry=True)[0] == {}
        and starts(sweep) == [2, 1]
        and states(sweep) == ["done"] * 2
    )


def test_restarts_are_bounded(stub, tmp_path):
    """With no restarts allowed, a run that ends is started once and given up with its count."""
    sweep = drive.sweep(tmp_path / "sweep", seeds=1, branches=False, max_restarts=0)
    stub(wrong={sweep.runs[0].id: {"vanishes_at": 7}})
    assert run(sweep)[0] == {sweep.runs[0].id: "it ended 1 times without being done"}
    assert starts(sweep) == [1]


@pytest.mark.long
def test_driver_can_be_killed_and_started_again(stub, tmp_path):
    """Runs outlive the driver; the next one finds those that are live, and starts again only the
    one that was killed."""
    stub(pause=0.1)
    sweep = drive.sweep(tmp_path / "sweep", seeds=2)
    process = subprocess.Popen([sys.executable, DRIVE, sweep.workdir, "0"])
    wait_for(lambda: states(sweep)[:2] == ["running"] * 2)
    process.kill()
    process.wait()
    assert states(sweep)[:2] == ["running"] * 2  # they go on
    killed = int((sweep.directory(sweep.runs[0].id) / "starts").read_text())
    os.kill(killed, signal.SIGKILL)
    given_up, said = run(sweep)
    assert given_up == {} and states(sweep) == ["done"] * 4 and starts(sweep) == [2, 1, 1, 1]
    assert any("running" in line and line.startswith(sweep.runs[1].id) for line in said)


@pytest.mark.long
def test_drivers_at_once_start_no_run_twice(stub, tmp_path):
    """Two drivers in two processes end well, with one start for each run: a claim is one driver's
    alone."""
    stub(pause=0.02)
    sweep = drive.sweep(tmp_path / "sweep")
    both = [
        subprocess.Popen([sys.executable, DRIVE, sweep.workdir, "0"], stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert states(sweep) == ["done"] * 6 and starts(sweep) == [1] * 6


def test_stop_asks_live_runs_to_save_and_the_next_sweep_goes_on(stub, tmp_path):
    """Both live runs end preempted, a second stop finds none, and each needs one more start to be
    done."""
    stub(pause=0.1)
    sweep = drive.sweep(tmp_path / "sweep", seeds=2, branches=False)
    process = subprocess.Popen([sys.executable, DRIVE, sweep.workdir, "0"])
    wait_for(lambda: states(sweep) == ["running"] * 2)
    process.send_signal(signal.SIGINT)
    process.wait()
    assert sorted(driver.stop(sweep)) == sorted(r.id for r in sweep.runs)
    wait_for(lambda: states(sweep) == ["preempted"] * 2)
    assert driver.stop(sweep) == []
    stub()
    assert run(sweep)[0] == {} and starts(sweep) == [2, 2]


def test_driver_leaves_runs_to_be_started_when_the_engine_refuses(stub, tmp_path):
    """However often an engine refuses, no attempt is counted: the run is new, and done by the next
    engine."""

    class Refusing(drive.Stub):
        def submit(self, commands):
            raise UserError("no partition tpu")

    sweep = drive.sweep(tmp_path / "sweep", seeds=1, branches=False)
    for _ in range(3):
        with pytest.raises(UserError, match="no partition tpu"):
            run(dataclasses.replace(sweep, engine=Refusing()))
    assert states(sweep) == ["new"]
    assert run(sweep)[0] == {} and starts(sweep) == [1]


def test_driver_writes_the_whole_plan(stub, tmp_path):
    """sweep.json has the backend, the overrides, and each run's trunk, steps and compute."""
    sweep = drive.sweep(tmp_path / "sweep", seeds=1)
    driver.write_plan(sweep, ["--config.seed=1"])
    plan = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    trunk, branch = plan["runs"]
    assert (plan["backend"], plan["overrides"], branch["trunk"]) == (
        "local",
        ["--config.seed=1"],
        trunk["id"],
    )
    assert (branch["steps"], branch["first_step"], trunk["first_step"]) == (20, 16, 0)
    assert (
        branch["own_compute"] == pytest.approx(branch["compute"] / 5)
        and trunk["params"]["total"] > 0
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the sweep's directory"):
        driver.write_plan(drive.sweep(tmp_path / "file"), [])
