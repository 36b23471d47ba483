"""launch/tpu_vm.sh with a stub of gcloud."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "tpu_vm.sh"
# Notes its arguments and answers with the next line of its subcommand's plan: an exit code and a
# text.
GCLOUD = """#!{python}
import json, sys
from pathlib import Path
here = Path(__file__).parent
with open(here / "calls.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
plan = json.loads((here / "plan.json").read_text())
answers = plan[sys.argv[4]]
code, text = answers.pop(0) if len(answers) > 1 else answers[0]
(here / "plan.json").write_text(json.dumps(plan))
print(text)
sys.exit(code)
"""
READY, GONE = (0, "READY"), (1, "")


@pytest.fixture
def launch(tmp_path):
    """(exit code, gcloud's argument lists after `compute tpus tpu-vm`, stderr) of the script under
    a plan."""
    stub = tmp_path / "gcloud"
    stub.write_text(GCLOUD.format(python=sys.executable))
    stub.chmod(0o755)

    def run(*args: str, plan: dict, **environment):
        (tmp_path / "plan.json").write_text(
            json.dumps({"create": [(0, "")], "delete": [(0, "")], **plan})
        )
        done = subprocess.run(
            ["bash", str(SCRIPT), *args],
            capture_output=True,
            text=True,
            timeout=30,
            env={
                "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
                "ZONE": "us-west4-a",
                "POLL": "0",
                **environment,
            },
        )
        file = tmp_path / "calls.jsonl"
        calls = (
            [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        )
        assert all(
            call[:3] == ["compute", "tpus", "tpu-vm"] and call[4] == "slice" for call in calls
        )
        assert all("--zone=us-west4-a" in call for call in calls)
        return done.returncode, [[call[3], *call[5:]] for call in calls], done.stderr

    return run


TRAIN = (
    "slice",
    "--config",
    "configs/imagenet256.py:d16",
    "--workdir",
    "gs://bucket/d 16",
    "--config.data.name=a'b",
)


def started(calls) -> list[str]:
    return [
        word.removeprefix("--command=")
        for call in calls
        if call[0] == "ssh"
        for word in call
        if "var_jax train" in word
    ]


def test_script_gives_every_worker_the_command(launch, tmp_path):
    """A worker's shell unpacks the same arguments, spaces included, with the shared compilation
    cache."""
    code, calls, _ = launch(
        *TRAIN, plan={"describe": [READY], "ssh": [(0, "")]}, DIRECTORY=str(tmp_path / "code")
    )
    assert code == 0
    [ssh] = [call for call in calls if call[0] == "ssh"]
    assert "--worker=all" in ssh
    [command] = started(calls)
    # What a worker's shell makes of it, with a Python that tells its arguments.
    (tmp_path / "code" / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "code" / ".venv" / "bin" / "activate").write_text(f"PATH={tmp_path}/python:$PATH")
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "python").write_text(
        f"#!/bin/sh\nexec {sys.executable} -c "
        '"import json, os, sys; print(json.dumps([*sys.argv[1:], '
        'os.environ[\'JAX_COMPILATION_CACHE_DIR\']]))" "$@"\n'
    )
    (tmp_path / "python" / "python").chmod(0o755)
    output = subprocess.run(
        ["bash", "-c", command], check=True, capture_output=True, text=True, timeout=30
    ).stdout
    # And where it finds the programs that another host, or an earlier slice, has compiled.
    assert json.loads(output) == ["-m", "var_jax", "train", *TRAIN[1:], "gs://bucket/d 16/xla"]


def test_script_starts_again_after_a_preemption_only(launch):
    """The same command is started again after each of two exits with code 75, and not after exit
    code 0."""
    code, calls, _ = launch(
        *TRAIN, plan={"describe": [READY], "ssh": [(75, ""), (75, ""), (0, "")]}
    )
    assert code == 0 and len(started(calls)) == 3 and len(set(started(calls))) == 1


@pytest.mark.parametrize("code", [1, 2, 130])
def test_script_hands_a_failure_on(launch, code):
    """The exit code is the run's, and it is not started again."""
    result, calls, _ = launch(*TRAIN, plan={"describe": [READY], "ssh": [(code, ""), (0, "")]})
    assert result == code and len(started(calls)) == 1


def test_script_makes_a_slice_anew_that_was_taken_away(launch):
    """The slice is deleted, created and set up, and the command is started again, in this order."""
    plan = {
        "describe": [READY, (0, "PREEMPTED"), (0, "PREEMPTED"), (0, "CREATING"), READY],
        "ssh": [(255, ""), (0, "installed"), (0, "")],
    }
    code, calls, stderr = launch(
        *TRAIN, plan=plan, CREATE="--accelerator-type=v5litepod-16 --spot", SETUP="install it"
    )
    assert code == 0 and "is gone" in stderr
    assert [call[0] for call in calls if call[0] != "describe"] == [
        "ssh",
        "delete",
        "create",
        "ssh",
        "ssh",
    ]
    [create] = [call for call in calls if call[0] == "create"]
    assert create[-2:] == ["--accelerator-type=v5litepod-16", "--spot"]
    [setup] = [call for call in calls if "--command=install it" in call]
    assert "--worker=all" in setup
    assert len(started(calls)) == 2


def test_script_asks_again_without_capacity(launch):
    """A refused creation is repeated, and nothing is deleted."""
    plan = {"describe": [GONE, GONE, READY], "ssh": [(0, "")], "create": [(1, ""), (0, "")]}
    code, calls, _ = launch(*TRAIN, plan=plan, CREATE="--spot")
    assert code == 0 and [call[0] for call in calls].count("create") == 2
    assert not [call for call in calls if call[0] == "delete"]  # there is nothing to delete


def test_script_names_a_slice_that_is_not_there(launch):
    """A slice that does not exist ends the script with exit code 1 and a hint at CREATE, and no
    command is started."""
    code, calls, stderr = launch(*TRAIN, plan={"describe": [GONE], "ssh": [(0, "")]})
    assert code == 1 and "slice is GONE; CREATE" in stderr and not started(calls)


@pytest.mark.parametrize("args", [(), ("slice",), ("slice", "--config")])
def test_script_prints_its_usage(launch, args):
    """Without a slice, or without a config and a workdir, the script prints its usage, ends with
    exit code 2 and calls nothing."""
    code, calls, stderr = launch(*args, plan={})
    assert code == 2 and stderr.startswith("usage:") and not calls
