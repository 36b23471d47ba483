"""Commands whose work several processes divide, and those that a single process must do."""

import argparse
import os
from collections.abc import Callable

from var_jax.config.strict import require
from var_jax.errors import UserError

# The first host to finish waits for the last one, however long that is at work.
LONGEST_WORK_SECONDS = 7 * 24 * 3600
DIVIDED = ("train", "generate", "tokenize")
READING = ("status",)  # any number of processes may look at the same files


def add_host_arguments(parser: argparse.ArgumentParser):
    """Adds the options of a command whose processes share only files, without a connection."""
    hosts = parser.add_argument_group("several processes")
    hosts.add_argument("--num-processes", type=int, metavar="N", help="number of processes")
    hosts.add_argument("--process-id", type=int, metavar="I", help="index of this process, from 0")


def check_host_arguments(args: argparse.Namespace) -> bool:
    """Returns whether the command line gives this process's index and the number of processes.

    Raises:
      UserError: it gives only one of the two, or an index that is out of range.
    """
    by_hand = args.num_processes is not None
    if by_hand != (args.process_id is not None):
        raise UserError("--num-processes and --process-id go together")
    if by_hand:
        require(args.num_processes >= 1, "--num-processes", args.num_processes, "at least 1")
        require(
            0 <= args.process_id < args.num_processes,
            "--process-id",
            args.process_id,
            f"from 0 to {args.num_processes - 1}, as there are {args.num_processes} processes",
        )
    return by_hand


def divided(args: argparse.Namespace, work: Callable[[], int]) -> int:
    """Runs a process's part of some work, and returns its exit code.

    If the command line does not give this process's index, the processes form JAX's process group
    on clusters that it knows, and `jax.process_index()` is the index.
    """
    if check_host_arguments(args):
        return work()
    from var_jax.cli.exit import leave_group
    from var_jax.devices import multihost, process_group

    process_group.initialize(shutdown_seconds=LONGEST_WORK_SECONDS)
    try:
        return work()
    except BaseException as error:
        if not multihost.is_multiprocess():
            raise
        leave_group(error)
        raise


def refuse_several(command: str):
    """Refuses a command for a single process if a launcher has started several.

    Raises:
      UserError: each of them would do all of the work, and write the same files at the same time.
    """
    if command in (*DIVIDED, *READING):
        return
    for launcher, tasks, single in (
        ("SLURM step", _slurm_tasks(), "srun --ntasks=1"),
        ("mpirun", _number("OMPI_COMM_WORLD_SIZE"), "mpirun -n 1"),
    ):
        if tasks > 1:
            raise UserError(
                f"var-jax {command} is the work of one process, and this {launcher} "
                f"has {tasks}, which would write the same files; start it by {single} "
                f"(what divides its work: {', '.join(DIVIDED)})"
            )


def _slurm_tasks() -> int:
    """Returns the number of tasks of this process's SLURM job step.

    It is 1 outside of a step, as in a batch script, whatever the job has requested.
    """
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        return _number("SLURM_STEP_NUM_TASKS")
    return _number("SLURM_NTASKS") if "SLURM_STEP_NODELIST" in os.environ else 1


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else 1
