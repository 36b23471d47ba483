import os
import signal
import subprocess
import sys

import pytest

from helpers.processes import wait_for
from var_jax.errors import UserError
from var_jax.sweep.backend import RunCommand
from var_jax.sweep.local import Local

WAITS = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
    "print('on', flush=True); "
    "time.sleep(60)"
)


def command(tmp_path, code: str) -> RunCommand:
    return RunCommand("r", str(tmp_path), (sys.executable, "-c", code))


def test_alive_until_stopped(tmp_path):
    """A submitted process is alive until `stop` ends it. A second `stop` raises nothing, and no
    zombie keeps the process's number."""
    engine = Local()
    (job,) = engine.submit([command(tmp_path, WAITS)])
    assert engine.alive(job)
    wait_for(lambda: (tmp_path / "log.txt").read_text() == "on\n")
    engine.stop(job)
    wait_for(lambda: engine.alive(job) is False)
    engine.stop(job)  # nothing to stop, nothing to say
    with pytest.raises(ProcessLookupError):  # no zombie is left
        os.kill(int(job.split(":")[1]), 0)


def test_alive_ignores_other_hosts_and_earlier_processes():
    """A job of another host cannot be known, and a job with another start time is over even though
    a process has its number. That process is the test's own, and `stop` leaves it running."""
    host, pid = os.uname().nodename, os.getpid()
    assert Local().alive(f"elsewhere:{pid}:1.0") is None
    assert Local().alive(f"{host}:{pid}:1.0") is False
    Local().stop(f"{host}:{pid}:1.0")  # would end this very process


def test_jobs_outlive_their_submitter_and_its_ctrl_c(tmp_path):
    """A run continues after Ctrl-C has ended its submitter: the signal goes to the submitter's
    whole process group, and the run is still alive when the submitter is gone."""
    code = f"""
import sys, time
from var_jax.sweep.backend import RunCommand
from var_jax.sweep.local import Local
command = RunCommand("r", {str(tmp_path)!r}, (sys.executable, "-c", {WAITS!r}))
print(*Local().submit([command]), flush=True)
time.sleep(60)
"""
    submitter = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    job = submitter.stdout.readline().strip()
    wait_for(lambda: (tmp_path / "log.txt").read_text() == "on\n")
    os.killpg(submitter.pid, signal.SIGINT)  # what a terminal does
    assert submitter.wait(timeout=20) != 0 and Local().alive(job)
    Local().stop(job)
    wait_for(lambda: not Local().alive(job))


def test_submit_adds_the_commands_environment(tmp_path, monkeypatch):
    """A run's process has the submitter's environment and the variables of its command; it prints
    one variable of each into its log."""
    monkeypatch.setenv("MINE", "kept")
    code = "import os; print(os.environ['MINE'], os.environ['FENCE'], flush=True)"
    (job,) = Local().submit(
        [RunCommand("r", str(tmp_path), (sys.executable, "-c", code), environment={"FENCE": "7"})]
    )
    wait_for(lambda: Local().alive(job) is False)
    assert (tmp_path / "log.txt").read_text() == "kept 7\n"


def test_submit_names_what_cannot_be_started(tmp_path):
    """A program that does not exist is refused with the run and the program in the message."""
    with pytest.raises(
        UserError, match="cannot start run r: No such file or directory: /no/python"
    ):
        Local().submit([RunCommand("r", str(tmp_path), ("/no/python",))])
