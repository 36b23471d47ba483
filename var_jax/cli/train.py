"""Trains the stage that the config names, and resumes by itself from the workdir's last checkpoint.

example:
  var-jax train --config configs/digits.py:tokenizer --workdir runs/tokenizer
  var-jax train --config configs/digits.py:d2 --config.tokenizer_dir=runs/tokenizer \\
    --workdir runs/d2

On several hosts, start the same command on every host: TPU pods, SLURM and GKE are recognized.
Elsewhere, add to the I-th of N (counted from 0)
  --coordinator HOST:PORT --num-processes N --process-id I
"""

import argparse
import sys

from etils import epath

from var_jax.cli import next_stage
from var_jax.cli.args import add_config_argument, read_config
from var_jax.cli.exit import leave_group, line_and_code
from var_jax.config.strict import require
from var_jax.errors import USER_ERROR_EXIT_CODE, Preempted, RunFailed, UserError


def add_arguments(parser: argparse.ArgumentParser):
    add_config_argument(parser)
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="directory of the run: checkpoints, metrics, samples",
    )
    parser.add_argument(
        "--profile",
        metavar="STEP:COUNT",
        help="trace COUNT steps from STEP on into DIR/profile, for TensorBoard or Perfetto",
    )
    parser.add_argument(
        "--executable",
        metavar="F",
        help="take the compiled step that `var-jax aot --save F` wrote for these devices, versions "
        "and settings, in place of compiling it; load no file of a writer whom you do not trust: "
        "it is machine code",
    )
    hosts = parser.add_argument_group("several processes")
    hosts.add_argument(
        "--coordinator", metavar="HOST:PORT", help="address at which process 0 listens"
    )
    hosts.add_argument("--num-processes", type=int, metavar="N", help="number of processes")
    hosts.add_argument("--process-id", type=int, metavar="I", help="index of this process, from 0")
    hosts.add_argument(
        "--start-timeout",
        type=int,
        default=300,
        metavar="SECONDS",
        help="time within which all processes must have started (default %(default)s)",
    )
    hosts.add_argument(
        "--peer-timeout",
        type=int,
        default=60,
        metavar="SECONDS",
        help="all processes end when one has not responded for this long (default %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    try:
        return _run(args)
    except Preempted:
        raise  # on every host
    except BaseException as error:
        _note_refusal(error)
        # Not imported yet if the mistake is in the config.
        multihost = sys.modules.get("var_jax.devices.multihost")
        if multihost is not None and multihost.is_multiprocess():
            leave_group(_explained(error))
        raise


def _run(args: argparse.Namespace) -> int:
    # Before the data and the networks, which take long: this is said at once.
    require(
        args.executable is None
        or "://" in args.executable
        or epath.Path(args.executable).is_file(),
        "--executable",
        args.executable,
        "a file that exists, as `var-jax aot --save` writes it",
    )
    config = read_config(args.config, args.overrides)
    window = _window(args.profile) if args.profile else None
    from var_jax.config import idle_keys
    from var_jax.devices import process_group
    from var_jax.train import workdir

    keys = idle_keys.flag_keys(args.overrides)
    begun = workdir.started_with(epath.Path(args.workdir))
    idle_keys.refuse_flags(config, keys, begun)

    process_group.initialize(
        args.coordinator,
        args.num_processes,
        args.process_id,
        start_seconds=args.start_timeout,
        peer_seconds=args.peer_timeout,
    )
    import jax

    from var_jax.devices import multihost
    from var_jax.objectives import registry
    from var_jax.train import goodput, terminal_messages
    from var_jax.train.loop import train

    objective = multihost.run_on_all(lambda: registry.find(config))
    if not begun:  # a run that has begun has its own copy of the tokenizer
        multihost.run_on_all(lambda: registry.with_frozen_sizes(config, keys))
    held_out = train(
        config,
        args.workdir,
        window,
        started=goodput.process_start(),
        command=args.command_line,
        executable=args.executable,
    )
    if jax.process_index() == 0:
        file, flags = args.config, args.overrides
        if not objective.generates:
            file, flags = next_stage.config_flags(config, file, flags)
        print(
            *terminal_messages.closing_lines(
                objective, config, held_out, args.workdir, file, flags
            ),
            sep="\n",
            file=sys.stderr,
        )
    return 0


def _window(text: str) -> tuple[int, int]:
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--profile is {text!r}; it must be STEP:COUNT, such as 100:5")
    return int(parts[0]), int(parts[1])


def _note_refusal(error: BaseException):
    """Writes the line of a user's mistake for the launcher of the run: it must not start again."""
    known = line_and_code(error)
    if known is not None and known[1] == USER_ERROR_EXIT_CODE:
        from var_jax.train import workdir

        workdir.note_refusal(known[0])


def _explained(error: BaseException) -> BaseException:
    """Returns the error of one process of several, or the loss of another process as its cause."""
    from var_jax.devices import lost_process

    if not lost_process.is_lost_process(error):
        return error
    cause = " ".join(str(error).split())[:200]
    return RunFailed(f"{lost_process.LOST} ({cause})")
