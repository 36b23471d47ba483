"""Which commands several processes may be started for at once."""

import pytest

from var_jax.cli import divided_work
from var_jax.cli.main import COMMANDS, main
from var_jax.errors import UserError

ALONE = sorted(set(COMMANDS) - {"train", "generate", "tokenize", "status"})
STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
}
LAUNCHERS = {
    "slurm": STEP,
    "slurm_step_smaller_than_job": {**STEP, "SLURM_NTASKS": "16", "SLURM_STEP_NUM_TASKS": "2"},
    "mpi": {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in {name for variables in LAUNCHERS.values() for name in variables}:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("command", ALONE)
def test_refuse_several_names_the_command_and_its_tasks(command, launcher, monkeypatch):
    """Each task would do all of the work and write the same files: none may begin."""
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{command} .* has 2.*(--ntasks=1|-n 1)") as caught:
        divided_work.refuse_several(command)
    assert "\n" not in str(caught.value)


def test_refuse_several_ends_a_command_before_it_writes(model_dir, tmp_path, monkeypatch, capsys):
    """`sample` in a SLURM step of two processes would write one file twice."""
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "samples.png"
    assert main(["sample", "--model", str(model_dir), "--labels", "0", "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert "SLURM step has 2" in printed.err and printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "variables",
    [
        {
            "SLURM_JOB_ID": "7",
            "SLURM_NTASKS": "16",
            "SLURM_PROCID": "0",
        },  # a batch script, not srun
        {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "16"},  # srun --ntasks=1 in it
        {},
    ],
)
def test_refuse_several_lets_one_process_work(variables, monkeypatch):
    """A batch script, a step of one task and a shell without SLURM are each one process."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for command in COMMANDS:
        divided_work.refuse_several(command)


def test_refuse_several_leaves_commands_that_divide_their_work(monkeypatch):
    """Several processes may run a command that divides its work among them or only reads: nothing
    is raised where other commands are refused."""
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    for command in ("train", "generate", "tokenize", "status"):
        divided_work.refuse_several(command)
