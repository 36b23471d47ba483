"""Prints a training config as `train` resolves it: each key's value, meaning and default.

Without a file it lists all keys with their defaults. Keys of the tokenizer's section are replaced
by those of `tokenizer_dir` when a transformer's run starts. On a terminal, meanings are wrapped; in
a pipe or a file there is one line per key.

example:
  var-jax config configs/digits.py:d2
  var-jax config configs/digits.py:d2 --diff --config.optimizer.base_lr=3e-4
"""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

from var_jax.cli.args import CONFIG_HELP, CONFIG_METAVAR, read_config_dict
from var_jax.config.strict import plain
from var_jax.errors import UserError

MEANING_COLUMN = 44  # characters to the left of a key's meaning
NARROWEST_MEANING = 40  # least width in characters to wrap a meaning to


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "file",
        nargs="?",
        metavar=CONFIG_METAVAR,
        help=f"{CONFIG_HELP} (default: show the defaults); --config.KEY=VALUE overrides one key",
    )
    parser.add_argument(
        "--config", metavar=CONFIG_METAVAR, help="the same as the positional argument"
    )
    parser.add_argument(
        "--diff", action="store_true", help="show only keys whose value is not the default"
    )


def run(args: argparse.Namespace) -> int:
    if args.file and args.config:
        raise UserError(f"both {args.file!r} and --config {args.config!r} are given; give one")
    if args.overrides and not (args.file or args.config):
        raise UserError(f"{args.overrides[0]} has no config to override; give {CONFIG_METAVAR}")
    from var_jax.config.train import default_config, from_config_dict

    file = args.file or args.config
    config = read_config_dict(file, args.overrides) if file else default_config()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    config_lines = lines(
        plain(config.to_dict()),
        plain(from_config_dict(config)),
        plain(default_config().to_dict()),
        diff=args.diff,
        width=width,
    )
    print("\n".join(config_lines))
    return 0


def lines(
    written: Mapping,
    resolved: Mapping,
    default: Mapping,
    *,
    diff: bool = False,
    width: int | None = None,
) -> list[str]:
    """Returns the lines of nested plain configs: `key = value  # meaning (default ...)`.

    Args:
      written: values as the file has them; they decide what differs from the default.
      resolved: the values that a run has, with those filled in that follow from others.
      diff: whether keys with their default value are left out.
      width: columns to wrap meanings to, on lines that begin with `#`; None gives one line per key.
    """
    from var_jax.config.docs import sections

    out: list[str] = []
    for section in sections():
        rows = []
        for key in section.keys:
            value_written, usual = _at(written, key.path), _at(default, key.path)
            if diff and value_written == usual:
                continue
            value = _at(resolved, key.path)
            assignment = f"{key.path} = {value_written if value is None else value!r}"
            meaning = f"{key.meaning} (default {usual!r}{_others(key.choices, usual)})"
            rows += _commented(assignment, meaning, width)
        if rows:
            heading = f"{section.name or 'run'}: {section.about}"
            out += [*([""] if out else []), *_commented("", heading, width), *rows]
    return out or ["# every key has its default value"]


def _commented(assignment: str, comment: str, width: int | None) -> list[str]:
    """Returns an assignment with its comment to the right, wrapped to a width if one is given."""
    start = f"{assignment:<{MEANING_COLUMN}}  # " if assignment else "# "
    if width is None or len(start) + len(comment) <= width:
        return [start + comment]
    indent = len(start) - 2 if assignment else 0
    if indent > MEANING_COLUMN + 2 or width - indent < NARROWEST_MEANING:
        # Next to a long value, or in a narrow terminal, no room is left: the meaning goes below.
        below = textwrap.wrap(comment, max(width - 6, NARROWEST_MEANING), break_on_hyphens=False)
        return [assignment, *(f"    # {line}" for line in below)]
    first, *others = textwrap.wrap(comment, width - indent - 2, break_on_hyphens=False)
    return [start + first, *(f"{'':{indent}}# {line}" for line in others)]


def _others(choices: tuple, default: Any) -> str:
    others = [repr(choice) for choice in choices if choice != default]
    return f"; or {', '.join(others)}" if others else ""


def _at(config: Mapping, path: str) -> Any:
    """Returns the value at a dotted path; None below a section that is not there."""
    value: Any = config
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
