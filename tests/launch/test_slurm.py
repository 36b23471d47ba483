"""launch/slurm.sbatch with stub commands; tests/slurm submits it to a real SLURM."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm.sbatch"
STUB = """#!{python}
import json, os, sys, time
from pathlib import Path
here, name = Path(__file__).parent, Path(__file__).name
with open(here / "calls.jsonl", "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
with open(here / "environment.jsonl", "a") as file:
    file.write(json.dumps(dict(os.environ)) + "\\n")
if name == "squeue":
    print(os.environ["STATE"])
if name == "srun":
    time.sleep(float(os.environ.get("TAKES", 0)))
    sys.exit(int(os.environ["CODE"]))
"""


@pytest.fixture
def stubs(tmp_path):
    for name in ("srun", "squeue", "scontrol"):
        (tmp_path / name).write_text(STUB.format(python=sys.executable))
        (tmp_path / name).chmod(0o755)
    return tmp_path


def start(
    stubs: Path,
    code: int,
    state: str = "RUNNING",
    takes: float = 0,
    workdir: tuple = ("--workdir", "a b"),
    **environment: str,
) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", str(SCRIPT), "--config", "c.py:d16", *workdir],
        cwd=stubs,
        env={
            "PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "CODE": str(code),
            "STATE": state,
            "TAKES": str(takes),
            "VIRTUAL_ENV": sys.prefix,
            **environment,
        },
    )


def calls(stubs: Path) -> list[list[str]]:
    return [json.loads(line) for line in (stubs / "calls.jsonl").read_text().splitlines()]


def requeued(stubs: Path) -> bool:
    return ["scontrol", "requeue", "7"] in calls(stubs)


def test_script_gives_every_task_the_command(stubs):
    """Arguments with spaces reach srun as they are."""
    assert start(stubs, 0).wait(20) == 0
    assert calls(stubs) == [
        [
            "srun",
            "--kill-on-bad-exit=0",
            "--cpus-per-task=1",
            "python",
            "-m",
            "var_jax",
            "train",
            "--config",
            "c.py:d16",
            "--workdir",
            "a b",
        ]
    ]


def test_slurm_script_asks_for_cpus_of_each_task(stubs):
    """srun has to be given the number that sbatch was given: since SLURM 22.05 it does not inherit
    it."""
    asked = [
        line
        for line in SCRIPT.read_text().splitlines()
        if line.startswith("#SBATCH --cpus-per-task=")
    ]
    assert len(asked) == 1 and int(asked[0].rpartition("=")[2]) > 1
    assert start(stubs, 0, SLURM_CPUS_PER_TASK="12").wait(20) == 0
    assert "--cpus-per-task=12" in calls(stubs)[0]


@pytest.mark.parametrize(
    ("workdir", "values", "expected"),
    [
        (("--workdir", "a b/"), {}, "a b/xla"),
        (("--workdir=gs://bucket/d16",), {}, "gs://bucket/d16/xla"),
        (("--workdir", "a"), {"JAX_COMPILATION_CACHE_DIR": "/fast"}, "/fast"),
    ],
)
def test_slurm_script_keeps_compiled_programs_where_all_tasks_see_them(
    stubs, workdir, values, expected
):
    """A home directory is not shared by all hosts, and JAX writes programs on process 0 alone."""
    assert start(stubs, 0, workdir=workdir, **values).wait(20) == 0
    [environment] = [
        json.loads(line) for line in (stubs / "environment.jsonl").read_text().splitlines()
    ]
    assert environment["JAX_COMPILATION_CACHE_DIR"] == expected


@pytest.mark.parametrize(
    ("code", "state", "again"),
    [
        (75, "RUNNING", True),
        (75, "COMPLETING", False),
        (75, "", False),
        (1, "RUNNING", False),
        (2, "RUNNING", False),
    ],
)
def test_script_requeues_a_run_that_saved_itself(stubs, code, state, again):
    """Exit code 75 is requeued while the job runs, and other codes or a job that ends are not."""
    assert start(stubs, code, state).wait(20) == code
    assert requeued(stubs) is again


@pytest.mark.long
def test_script_outlives_the_signal_that_its_run_saves_at(stubs):
    """After SIGTERM the script waits for the run's exit code and requeues."""
    shell = start(stubs, 75, takes=3)
    until = time.monotonic() + 20
    while not (stubs / "calls.jsonl").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    shell.send_signal(signal.SIGTERM)
    assert shell.wait(20) == 75 and requeued(stubs)


def test_script_asks_slurm_to_signal_ahead_and_to_requeue():
    """The script's directives let SLURM send SIGTERM two minutes before the end, requeue the job,
    and append to its log."""
    directives = [
        line.removeprefix("#SBATCH ")
        for line in SCRIPT.read_text().splitlines()
        if "#SBATCH" in line
    ]
    assert {"--requeue", "--signal=TERM@120", "--open-mode=append"} <= set(directives)
