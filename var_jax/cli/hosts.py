"""Commands whose work several processes divide, and those that one process has to do alone."""

import argparse
import os
from collections.abc import Callable

from var_jax.config.strict import require
from var_jax.errors import UserError

# The first host to finish waits for the last one, however long that is at work.
SHUTDOWN_SECONDS = 7 * 24 * 3600
DIVIDED = ("train", "generate", "tokenize")
READING = ("status",)  # any number of processes may look at the same files


def add_host_arguments(parser: argparse.ArgumentParser):
    """The options of a command whose processes share files alone, and need not reach each other."""
    hosts = parser.add_argument_group("several processes")
    hosts.add_argument("--num-processes", type=int, metavar="N", help="number of processes")
    hosts.add_argument("--process-id", type=int, metavar="I", help="index of this process, from 0")


def check_host_arguments(args: argparse.Namespace) -> bool:
    """Whether the command line says which of how many processes this is.

    Raises:
      UserError: it says only one of the two, or a place that there is not.
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

    Where the command line does not say which of how many processes this is, they form JAX's process
    group on clusters that it knows: what `jax.process_index()` then says is the place.
    """
    if check_host_arguments(args):
        return work()
    from var_jax.cli.exit import leave_group
    from var_jax.devices import multihost, process_group

    process_group.initialize(shutdown_seconds=SHUTDOWN_SECONDS)
    try:
        return work()
    except BaseException as error:
        if not multihost.is_multiprocess():
            raise
        leave_group(error)
        raise


def refuse_several(command: str):
    """Refuses a command that one process does alone where a launcher has started several.

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
    """The number of tasks of the job step that this process is one of; 1 outside of a step, as in a
    batch script, whatever the job has asked for."""
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        return _number("SLURM_STEP_NUM_TASKS")
    return _number("SLURM_NTASKS") if "SLURM_STEP_NODELIST" in os.environ else 1


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else 1
