"""The engine `slurm`, which submits runs as a job array by submitit.

Progress is read from the runs' files, never from `sacct`, which some clusters lack; `squeue` is
asked only whether a job still exists.
"""

import contextlib
import dataclasses
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import submitit
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

from var_jax.errors import PREEMPTED_EXIT_CODE, UserError
from var_jax.sweep.backend import RunCommand, shared_programs

CPUS_PER_GPU = 8  # the usual default of one CPU decodes images too slowly for a GPU
SCHEDULER_SECONDS = 60  # time limit of SLURM's commands


@dataclasses.dataclass(frozen=True)
class Slurm:
    """Submits the commands of each `submit` as one job array.

    SLURM requeues preempted tasks under the same ids. Output goes to `log.txt` in the run's
    directory, and that of processes after the first to `log_RANK.txt`; if the directory is a
    bucket, it goes to the logs in `folder`. Job ids are SLURM's: ARRAY_INDEX, or a number for a
    single command.

    Attributes:
      partition, account: those of SLURM; "" for the user's default.
      minutes: time limit of one start. A run that needs longer saves before it and is requeued.
      save_seconds: seconds before the time limit at which SIGTERM is sent.
      nodes: number of nodes per run.
      tasks: number of processes per node; 0 for one per GPU, or one on nodes without GPUs. JAX
        gives each process one GPU.
      gpus: number of GPUs per node.
      cpus: number of CPUs per process; 0 for 8 with GPUs, to decode their images, and otherwise for
        the partition's default.
      memory_gb: memory per node; 0 for the partition's default.
      flags: additional options of sbatch, such as "qos=high,constraint=h100".
      setup: shell line that the job runs first on every node, such as "module load cuda".
      folder: directory of submitit's job scripts and logs, on a file system that the nodes share;
        "" for `.slurm` next to the runs.
    """

    max_live_runs: ClassVar[int] = 0
    may_wait: ClassVar[bool] = True

    partition: str = ""
    account: str = ""
    minutes: int = 1440
    save_seconds: int = 120
    nodes: int = 1
    tasks: int = 0
    gpus: int = 0
    cpus: int = 0
    memory_gb: float = 0.0
    flags: str = ""
    setup: str = ""
    folder: str = ""

    def __post_init__(self):
        for name, least in (
            ("minutes", 1),
            ("save_seconds", 0),
            ("nodes", 1),
            ("tasks", 0),
            ("gpus", 0),
            ("cpus", 0),
            ("memory_gb", 0),
        ):
            if getattr(self, name) < least:
                raise UserError(
                    f"--option {name}={getattr(self, name)}: it must be at least {least}"
                )
        self._flags()

    def check(self, workdir: str) -> None:
        pass

    def submit(self, commands: Sequence[RunCommand]) -> list[str]:
        if not commands:
            return []
        for program in ("sbatch", "srun"):
            if shutil.which(program) is None:
                raise UserError(
                    f"backend slurm needs {program}, which is not on PATH; "
                    "run the sweep on a login node of the cluster"
                )
        folder = Path(self._folder(commands))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            executor = SlurmExecutor(folder=folder / "%j")
            executor.update_parameters(**self._parameters(commands))
            # submitit prints sbatch's complaint before it raises it
            with contextlib.redirect_stderr(io.StringIO()), executor.batch():
                jobs = [executor.submit(Attempt(command)) for command in commands]
        except FailedJobError as error:
            raise UserError(f"sbatch refuses: {_complaint(str(error))}") from error
        except OSError as error:
            raise UserError(f"cannot write in {folder}: {error.strerror or error}") from error
        return [job.job_id for job in jobs]

    def alive(self, job: str) -> bool | None:
        state = job_state(job)
        return None if state is None else bool(state)

    def stop(self, job: str) -> None:
        """Sends SIGTERM and, after the cluster's KillWait, SIGKILL; the job is not requeued."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                ["scancel", "--quiet", job], capture_output=True, timeout=SCHEDULER_SECONDS
            )

    def render(self, commands: Sequence[RunCommand]) -> str:
        if not commands:
            return ""
        folder = f"{self._folder(commands)}/%j"
        worker = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", folder])
        parameters = self._parameters(commands)
        if len(commands) > 1:
            parameters["map_count"] = len(commands)
        script = _make_sbatch_string(command=worker, folder=folder, **parameters)
        tasks = [f"# {i}: {shlex.join(command.argv)}" for i, command in enumerate(commands)]
        return "\n".join(
            [script.rstrip(), "", "# what the worker starts, by array index", *tasks, ""]
        )

    def _parameters(self, commands: Sequence[RunCommand]) -> dict[str, Any]:
        """Returns the job's parameters as submitit names them."""
        tasks = self.tasks or max(self.gpus, 1)
        cpus = self.cpus or (CPUS_PER_GPU if self.gpus else 0)
        # srun does not inherit cpus-per-task from sbatch. A process that saves and exits must not
        # end the others.
        srun = ["--kill-on-bad-exit=0", *([f"--cpus-per-task={cpus}"] if cpus else [])]
        parameters = {
            "partition": self.partition,
            "account": self.account,
            "gpus_per_node": self.gpus,
            "cpus_per_task": cpus,
            "setup": [self.setup] if self.setup else [],
        }
        memory = {"mem": f"{round(self.memory_gb * 1024)}M"} if self.memory_gb else {}
        return {
            "job_name": f"var-jax-{Path(commands[0].directory).parent.name}",
            "time": self.minutes,
            "signal_delay_s": self.save_seconds,
            "nodes": self.nodes,
            "ntasks_per_node": tasks,
            "srun_args": srun,
            "array_parallelism": len(commands),
            "stderr_to_stdout": True,
            "wckey": None,
            "additional_parameters": {"requeue": True, **memory, **self._flags()},
            **{name: value for name, value in parameters.items() if value},
        }

    def _flags(self) -> dict[str, str | bool]:
        flags: dict[str, str | bool] = {}
        for flag in filter(None, self.flags.split(",")):
            name, equals, value = flag.lstrip("-").partition("=")
            if not name or not name.replace("-", "").isalnum():
                raise UserError(
                    f"--option flags={self.flags}: {flag!r} is no option of sbatch; "
                    "give them as qos=high,exclusive"
                )
            flags[name] = value if equals else True
        return flags

    def _folder(self, commands: Sequence[RunCommand]) -> str:
        if self.folder:
            return str(Path(self.folder).absolute())
        if "://" in commands[0].directory:
            raise UserError(
                "backend slurm keeps its job scripts on a file system, which "
                f"{commands[0].directory} is not; name a shared directory with --option folder=DIR"
            )
        return str(Path(commands[0].directory).absolute().parent / ".slurm")


class Attempt:
    """Runs the command on every process of a job, and requeues the job after a preemption.

    SLURM itself sends SIGTERM to the command at a preemption, requeue or scancel; a second one
    would end it at once. The signal before the time limit is passed to the command as SIGTERM.
    """

    def __init__(self, command: RunCommand):
        self.argv, self.directory, self.environment = (
            command.argv,
            command.directory,
            dict(command.environment),
        )

    def __call__(self):
        rank = submitit.JobEnvironment().global_rank
        name = f"log_{rank}.txt" if rank else "log.txt"
        log = None
        if "://" not in self.directory:
            log = open(Path(self.directory, name), "ab")  # noqa: SIM115 - the child's
        limit = signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]
        # Until the handler is set, submitit would handle the limit's signal without the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, {limit})
        child = subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**shared_programs(self.directory), **os.environ, **self.environment},
            preexec_fn=lambda: _ignore(limit),
        )
        signal.signal(limit, lambda *_: os.kill(child.pid, signal.SIGTERM))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {limit})
        code = child.wait()
        if code == PREEMPTED_EXIT_CODE and rank == 0:
            requeue(submitit.JobEnvironment().job_id)
        if code:
            sys.exit(code if code > 0 else 128 - code)


def requeue(job: str):
    """Requeues a job, unless SLURM is ending it and decides itself whether to start it again."""
    if job_state(job) == "RUNNING":
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=SCHEDULER_SECONDS)


def job_state(job: str) -> str | None:
    """Returns SLURM's name for the state of a job that is pending, running or completing.

    "" if there is no such job, None if SLURM does not answer.
    """
    try:
        result = subprocess.run(
            ["squeue", "--noheader", f"--jobs={job}", "--format=%T"],
            capture_output=True,
            text=True,
            timeout=SCHEDULER_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if result.returncode:
        return "" if "Invalid job id" in result.stderr else None
    return result.stdout.strip()


def _ignore(limit: signal.Signals):
    """Ignores the limit's signal in the child; SLURM sends it to every process of a job."""
    signal.signal(limit, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {limit})


def _complaint(text: str) -> str:
    lines = [
        line.strip().removeprefix("sbatch: error: ") for line in text.splitlines() if line.strip()
    ]
    return "; ".join(lines) or "it does not say why"
