"""Prints a training config as `train` resolves it: one line per key with its value, meaning and
default.

Without a file it lists all keys with their defaults. Keys of the tokenizer's section are replaced
by those of `tokenizer_dir` when a transformer's run starts.

example:
  var-jax config configs/digits.py:d2
  var-jax config configs/digits.py:d2 --diff --config.optimizer.base_lr=3e-4
"""

import argparse
from collections.abc import Mapping
from typing import Any

from var_jax.config.strict import plain
from var_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE.py[:ARG]",
        help="the config (default: the defaults alone); --config.KEY=VALUE overrides one key",
    )
    parser.add_argument(
        "--config", metavar="FILE.py[:ARG]", help="the same, as other commands take it"
    )
    parser.add_argument(
        "--diff", action="store_true", help="only the keys whose value is not the default"
    )


def run(args: argparse.Namespace) -> int:
    if args.file and args.config:
        raise UserError(f"both {args.file!r} and --config {args.config!r} are given; give one")
    if args.overrides and not (args.file or args.config):
        raise UserError(f"{args.overrides[0]} has no config to override; give FILE.py[:ARG]")
    from var_jax.cli.args import read_config_dict
    from var_jax.config.train import default_config, from_config_dict

    file = args.file or args.config
    given = read_config_dict(file, args.overrides) if file else default_config()
    resolved = from_config_dict(given)
    print(
        "\n".join(
            lines(
                plain(given.to_dict()),
                plain(resolved),
                plain(default_config().to_dict()),
                args.diff,
            )
        )
    )
    return 0


def lines(given: Mapping, resolved: Mapping, default: Mapping, diff: bool = False) -> list[str]:
    """Returns the lines of nested plain configs: `key = value  # meaning (default ...)`.

    Args:
      given: values as they were written; what differs from the default is told by these.
      resolved: the values that a run has, with those filled in that follow from others.
      diff: whether keys with their default value are left out.
    """
    from var_jax.config.docs import sections

    out: list[str] = []
    for section in sections():
        rows = []
        for key in section.keys:
            written, usual = _at(given, key.path), _at(default, key.path)
            if diff and written == usual:
                continue
            value = _at(resolved, key.path)
            meaning = f"{key.meaning} (default {usual!r}{_others(key.choices, usual)})"
            rows.append(
                f"{f'{key.path} = {written if value is None else value!r}':<44}  # {meaning}"
            )
        if rows:
            out += [*([""] if out else []), f"# {section.name or 'run'}: {section.about}", *rows]
    return out or ["# every key has its default value"]


def _others(choices: tuple, default: Any) -> str:
    others = [repr(choice) for choice in choices if choice != default]
    return f"; or {', '.join(others)}" if others else ""


def _at(config: Mapping, path: str) -> Any:
    """Returns the value at a dotted path; None below a section that is not there."""
    value: Any = config
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
