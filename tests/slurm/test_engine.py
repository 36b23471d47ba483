"""The engine `slurm` on a real SLURM, with commands that end as training does, but at once."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from var_jax.errors import UserError
from var_jax.sweep.backend import RunCommand
from var_jax.sweep.slurm import Slurm

pytestmark = pytest.mark.slurm

# At SIGTERM it takes a second to save, notes it, and exits as training does. Once saved, the next
# start is done.
SAVES_AT_SIGTERM = """
import signal, sys, time
from pathlib import Path

notes = Path("notes.txt" if len(sys.argv) < 2 else sys.argv[1])
saved = notes.exists() and "saved" in notes.read_text()

def note(word):
    with notes.open("a") as file:
        file.write(word + "\\n")

def save(*_):
    note("sigterm")
    time.sleep(1)
    note("saved")
    sys.exit(75)

signal.signal(signal.SIGTERM, save)
note("start")
time.sleep(0 if saved else 100)
"""
PREEMPTED_ONCE = ["start", "sigterm", "saved", "start"]


@pytest.fixture
def saver(tmp_path):
    script = tmp_path / "saver.py"
    script.write_text(SAVES_AT_SIGTERM)

    def command(name: str) -> RunCommand:
        directory = tmp_path / "sweep" / name
        directory.mkdir(parents=True)
        return RunCommand(
            name, str(directory), (sys.executable, str(script), str(directory / "notes.txt"))
        )

    return command


def notes(command: RunCommand) -> list[str]:
    file = Path(command.directory) / "notes.txt"
    return file.read_text().split() if file.exists() else []


def await_start(*commands: RunCommand):
    until = time.monotonic() + 60
    while not all(notes(command) for command in commands):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_engine_resumes_what_is_requeued_and_not_what_is_stopped(cluster, saver):
    """Two runs of one array: the requeued one counts as alive all the while and ends with its work
    done, the stopped one saves and ends."""
    engine, runs = Slurm(), [saver("requeued"), saver("stopped")]
    requeued, stopped = engine.submit(runs)
    assert requeued.endswith("_0") and stopped.endswith("_1")  # one array
    await_start(*runs)
    assert engine.alive(requeued) and engine.alive(stopped)
    cluster.run("scontrol", "requeue", requeued)
    engine.stop(stopped)
    assert cluster.wait(stopped, "CANCELLED", "COMPLETED", "FAILED") == "CANCELLED"
    while cluster.state(requeued) != "COMPLETED":
        assert engine.alive(requeued)  # all the while, under the same id
        time.sleep(0.5)
    assert engine.alive(requeued) is engine.alive(stopped) is False
    assert notes(runs[0]) == PREEMPTED_ONCE
    assert notes(runs[1]) == ["start", "sigterm", "saved"]


@pytest.mark.parametrize("how", ["time limit", "own notice"])
def test_engine_requeues_a_run_that_saved_itself(cluster, saver, how):
    """SLURM did not preempt the run itself: without a requeue from within, the job would be
    over."""
    run = saver("run")
    # SLURM sends the signal up to a minute early, so here it comes soon.
    engine = Slurm(minutes=1, save_seconds=40) if how == "time limit" else Slurm()
    [job] = engine.submit([run])
    await_start(run)
    if how == "own notice":  # as a host's agent may send it, to the run alone
        [pid] = subprocess.run(
            ["pgrep", "-f", f"saver.py {run.directory}"], capture_output=True, text=True
        ).stdout.split()
        os.kill(int(pid), 15)
    assert cluster.wait(job, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED") == "COMPLETED"
    assert notes(run) == PREEMPTED_ONCE


def test_engine_gives_every_process_the_command(cluster, tmp_path):
    """Two tasks write their own logs with the environment that was given, and an exit code is the
    job's."""
    run = RunCommand(
        "two",
        str(tmp_path / "two"),
        (
            sys.executable,
            "-c",
            "import os, sys; print(*map(os.environ.get, ('SLURM_PROCID', 'FENCE'))); sys.exit(3)",
        ),
        environment={"FENCE": "a/0001.json"},
    )
    Path(run.directory).mkdir()
    [job] = Slurm(
        tasks=2, memory_gb=0.5, flags="comment=hello,exclusive", setup="export NODE_SETUP=1"
    ).submit([run])
    cluster.wait(job, "FAILED", "COMPLETED")
    assert Path(run.directory, "log.txt").read_text() == "0 a/0001.json\n"
    assert Path(run.directory, "log_1.txt").read_text() == "1 a/0001.json\n"
    shown = cluster.run("scontrol", "show", "job", job)
    assert "JobState=FAILED" in shown and "ExitCode=3:0" in shown and "Comment=hello" in shown


def test_engine_names_what_sbatch_refuses_and_starts_nothing(cluster, saver, capfd):
    """SLURM's own message is in one line, and no job waits or runs."""
    run = saver("run")
    with pytest.raises(
        UserError, match="^sbatch refuses: invalid partition.*Invalid partition"
    ) as caught:
        Slurm(partition="gpu").submit([run, saver("other")])
    assert "\n" not in str(caught.value) and capfd.readouterr().err == ""
    assert cluster.run("squeue", "--noheader", "--states=PENDING,RUNNING") == ""


def test_engine_answers_for_a_job_that_slurm_does_not_know(cluster):
    """A job that SLURM does not know is not alive, and stopping it does nothing."""
    assert Slurm().alive("99999") is False
    Slurm().stop("99999")
