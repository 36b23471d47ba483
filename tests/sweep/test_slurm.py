import os
import shlex
import subprocess
import sys

import pytest

from var_jax.errors import UserError
from var_jax.sweep import slurm
from var_jax.sweep.backend import RunCommand, make
from var_jax.sweep.slurm import Slurm


def command(run="a", directory="runs/sweep/a") -> RunCommand:
    return RunCommand(
        run, directory, (sys.executable, "-m", "var_jax", "train", "--workdir", directory)
    )


def directives(script: str) -> dict[str, str]:
    pairs = [
        line.removeprefix("#SBATCH --").partition("=")
        for line in script.splitlines()
        if "#SBATCH" in line
    ]
    return {key: value for key, _, value in pairs}


def test_slurm_writes_the_script_that_sbatch_gets():
    """The script has a directive for every option and none of submitit's default `wckey`, runs the
    set-up, starts the ranks by srun, and lists the command of each index of the array."""
    engine = Slurm(
        partition="tpu",
        account="lab",
        minutes=90,
        save_seconds=60,
        nodes=2,
        gpus=8,
        cpus=12,
        memory_gb=100,
        flags="qos=high,exclusive",
        setup="module load cuda",
    )
    script = engine.render(
        [command("a"), command("b", "runs/sweep/b"), command("c", "runs/sweep/c")]
    )
    result = directives(script)
    assert {
        "array": "0-2%3",
        "partition": "tpu",
        "account": "lab",
        "time": "90",
        "signal": "USR2@60",
        "nodes": "2",
        "ntasks-per-node": "8",
        "gpus-per-node": "8",
        "cpus-per-task": "12",
        "mem": "102400M",
        "qos": "high",
        "job-name": "var-jax-sweep",
        "open-mode": "append",
    }.items() <= result.items()
    assert "requeue" in result and "exclusive" in result and "wckey" not in result
    assert "\nmodule load cuda\n" in script
    [srun] = [line for line in script.splitlines() if line.startswith("srun")]
    assert "--cpus-per-task=12" in srun and "--kill-on-bad-exit=0" in srun
    assert "# 1: " + shlex.join(command("b", "runs/sweep/b").argv) in script


def test_slurm_asks_for_cpus_where_a_process_has_a_gpu():
    """Images are decoded by CPUs; a partition's default is mostly one of them."""
    assert int(directives(Slurm(gpus=8).render([command()]))["cpus-per-task"]) >= 8
    assert directives(Slurm(gpus=8, cpus=3).render([command()]))["cpus-per-task"] == "3"
    assert "cpus-per-task" not in directives(Slurm().render([command()]))


def test_slurm_attempt_keeps_compiled_programs_in_the_runs_directory(tmp_path, monkeypatch):
    """All tasks of a run see its directory; a place that the user named comes first."""
    script = "import os; print(os.environ['JAX_COMPILATION_CACHE_DIR'])"
    monkeypatch.setattr(slurm.submitit, "JobEnvironment", lambda: type("E", (), {"global_rank": 0}))
    monkeypatch.setattr(slurm.submitit.JobEnvironment, "USR_SIG", "USR2", raising=False)
    for place in (None, "/fast"):
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        if place:
            monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", place)
        slurm.Attempt(RunCommand("a", str(tmp_path), (sys.executable, "-c", script)))()
    assert (tmp_path / "log.txt").read_text().split() == [f"{tmp_path}/xla", "/fast"]


def test_render_quotes_what_a_shell_would_split():
    """Whoever copies a line of the dry run gets the very arguments back, with spaces, brackets and
    quotes in them."""
    argv = (
        "/opt/my python/bin/python",
        "-m",
        "var_jax",
        "--config.data.source_dir=/data/my images",
        "--config.keep_steps=(1, 2)",
        "--config.data.train_split=train[:10%]",
        "it's",
        "$HOME",
        "a;b",
        "*",
    )
    script = Slurm(folder="/home/a b/jobs").render(
        [RunCommand("a", "runs/a", argv), RunCommand("b", "runs/b", argv)]
    )
    lines = [line for line in script.splitlines() if line.startswith(("# 0: ", "# 1: "))]
    assert [tuple(shlex.split(line[5:])) for line in lines] == [argv, argv]
    [srun] = [line for line in script.splitlines() if line.startswith("srun")]
    assert shlex.split(srun)[-1] == "/home/a b/jobs/%j"


def test_slurm_submits_one_command_without_an_array():
    """A single run is an ordinary job, and without runs the script and the list of jobs are
    empty."""
    assert "array" not in directives(Slurm().render([command()]))
    assert Slurm().render([]) == "" and Slurm().submit([]) == []


def test_render_needs_no_slurm_and_writes_nothing(monkeypatch, tmp_path):
    """The script is rendered on a machine without SLURM, and no file or folder is left behind."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path / "runs/sweep/.slurm") in Slurm().render([command()])
    assert list(tmp_path.iterdir()) == []


def test_slurm_names_what_is_missing_without_slurm(monkeypatch, tmp_path):
    """Without sbatch nothing can be submitted: the error names sbatch, and no file is written.
    `alive` gives None, and `stop` raises nothing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs sbatch, which is not on PATH"):
        Slurm().submit([command(directory=str(tmp_path / "sweep" / "a"))])
    assert list(tmp_path.iterdir()) == []
    assert Slurm().alive("1") is None
    Slurm().stop("1")


def test_slurm_takes_a_hanging_controller_for_no_answer(monkeypatch, tmp_path):
    """A call of SLURM that does not return within the time limit is no answer: `alive` gives None,
    and `stop` returns."""
    monkeypatch.setattr(slurm, "SCHEDULER_SECONDS", 0.2)
    for name in ("squeue", "scancel"):
        (tmp_path / name).write_text("#!/bin/sh\nexec sleep 5\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    Slurm().stop("12_3")
    assert Slurm().alive("12_3") is None


@pytest.mark.parametrize(
    ("answer", "code", "alive"),
    [
        ("echo RUNNING", 0, True),
        ("echo PENDING", 0, True),
        ("true", 0, False),
        ("echo slurm_load_jobs error: Invalid job id specified >&2", 1, False),
        ("echo slurm_load_jobs error: Unable to contact slurm controller >&2", 1, None),
    ],
)
def test_alive_by_what_squeue_says(monkeypatch, tmp_path, answer, code, alive):
    """A job that squeue lists is alive, and a missing or unknown job is not; if the controller
    cannot be reached, the answer is None. The stub fails unless it is asked for this one job."""
    stub = tmp_path / "squeue"
    stub.write_text(
        "#!/bin/sh\n[ \"$*\" = '--noheader --jobs=12_3 --format=%T' ] || exit 9\n"
        f"{answer}\nexit {code}\n"
    )
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert Slurm().alive("12_3") is alive


def test_slurm_names_the_extra_without_submitit():
    """Without submitit the engine is refused, and the message has the pip command that installs
    it."""
    code = (
        "import sys; sys.modules['submitit'] = None\n"
        "from var_jax.sweep.backend import make\n"
        "try: make('slurm', {})\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("UserError") and "pip install 'var-jax[slurm]'" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partitoin": "a"}, "did you mean 'partition'"),
        ({"minutes": "0"}, "minutes=0: it must be at least 1"),
        ({"nodes": "two"}, "whole number"),
        ({"flags": "qos=high,=3"}, "'=3' is no option of sbatch"),
    ],
)
def test_make_names_mistakes_in_options(options, message):
    """A wrong option is refused in one line that names the option and the right value."""
    with pytest.raises(UserError, match=message) as caught:
        make("slurm", options)
    assert "\n" not in str(caught.value)


def test_slurm_asks_for_a_scripts_folder_where_runs_lie_in_a_bucket():
    """SLURM cannot write its logs to a bucket: runs there are refused without `--option folder`,
    and with it the script writes below that folder."""
    run = command(directory="gs://bucket/sweep/a")
    with pytest.raises(UserError, match="--option folder=DIR"):
        Slurm().render([run])
    assert "/shared/slurm/%j" in Slurm(folder="/shared/slurm").render([run])
