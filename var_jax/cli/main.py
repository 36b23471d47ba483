"""The `var-jax` command: runs a command's module, and reports mistakes in one line."""

import argparse
import importlib
import os
import shlex
import sys
import warnings
from collections.abc import Sequence

from var_jax.cli import allocator, compilation_cache, log, models
from var_jax.cli.divided_work import refuse_several
from var_jax.cli.exit import report
from var_jax.errors import Parser, Preempted, UserError, did_you_mean, require_path
from var_jax.io import storage_messages

# Each is a module of var_jax.cli with `add_arguments(parser)`, `run(args) -> int` and a docstring
# that is its help.
COMMANDS = {
    "train": "train the stage that a config names; resumes by itself",
    "config": "every key of a config with its value, meaning and default",
    "sample": "grid of sampled images with class titles, from a trained model",
    "reconstruct": "originals next to their reconstructions, scale by scale",
    "edit": "zero-shot in-painting, out-painting and class-conditional editing",
    "demo": "local web page that generates and edits",
    "convert": "published PyTorch weights to a model directory, or back",
    "download": "released weights from the Hugging Face hub to a model directory",
    "publish": "a model and its card to the Hugging Face hub",
    "merge": "A + W (B - A) of the weights of two models, for any number W",
    "tokenize": "token cache of a data set, so that training reads no images; resumable",
    "generate": "evaluation-size sample set as .npz or PNGs; resumable",
    "evaluate": "Fréchet distance, IS, precision, recall, KID of samples; or reconstructions",
    "quickstart": "both stages of a config, samples and a short report, in one go",
    "bench": "time of sampling or training, compared with the time of its FLOPs",
    "sweep": "a family of runs on this machine, SLURM or Kubernetes: submits, polls, resumes",
    "status": "progress of a sweep or of a run",
    "plan": "memory, FLOPs, hours, disk and expected losses of a run before it starts",
    "aot": "memory, collectives, MFU bound of a step compiled for a TPU slice that is elsewhere",
    "fit": "power-law fits of a table of runs, with intervals, plots and predictions",
    "compare": "quality of objectives against compute, FLOPs and seconds per image, with laws",
}


def command_line() -> int:
    """Runs the command of the process's own command line (`main`), and returns its exit code.

    Where another allocator setting suits the command better, the process is replaced by the same
    command with it.
    """
    allocator.restart_with_tunables(sys.argv[1:])
    return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
      0 done, 2 the user's mistake (one line on stderr), 75 preempted with everything saved, 1
      anything else.
    """
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # as in `var-jax status D | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        code = report(error)
        if code is None:
            raise
        if isinstance(error, Preempted):
            _leave_compilations(code)
        return code


def _leave_compilations(code: int):
    """Ends a preempted process that has abandoned a compilation.

    The usual exit would wait minutes for it.
    """
    preemption = sys.modules.get("var_jax.devices.preemption")
    if preemption is not None and preemption.is_compiling():
        from var_jax.devices import lost_process

        sys.stdout.flush()
        lost_process.leave(code)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
        print(
            "usage: var-jax COMMAND [options]",
            *lines,
            "var-jax COMMAND --help lists the options of a command, with an example.",
            sep="\n",
        )
        return 0
    if argv[0] == "--version":
        from var_jax import __version__

        print(f"var-jax {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}{did_you_mean(name, COMMANDS)}")
    _require_paths(rest)
    log.show()
    storage_messages.silence()
    # Warnings of large images, and of damaged EXIF blocks: such images are read all the same.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if (
        name != "sweep"
    ):  # whose jobs inherit its environment, and keep programs where all of their hosts see them
        # Before the import: JAX reads its settings when it is imported, and some commands import it
        compilation_cache.keep_programs()
    module = importlib.import_module(f"var_jax.cli.{name}")
    parser = Parser(
        prog=f"var-jax {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    args, rest = parser.parse_known_args(rest)
    args.overrides = rest
    args.command_line = shlex.join(["var-jax", *argv])
    if rest and not ("config" in args and rest[0].startswith("--config.")):
        parser.error(f"unrecognized argument {rest[0]}")
    refuse_several(name)
    return module.run(args)


def _require_paths(argv: Sequence[str]):
    """Raises UserError for a URL of a kind that no command reads, before a command begins."""
    for before, text in zip(["", *argv], argv, strict=False):
        flag = before if before.startswith("--") else "the argument"
        if text.startswith("--"):
            flag, _, text = text.partition("=")
        if flag == "--to":  # a repository, which the command itself checks
            continue
        require_path(text, flag, on_hub=models.takes_model(flag))
