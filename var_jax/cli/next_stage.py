"""Finds the config that trains a transformer on the tokenizer of a run that is done."""

from collections.abc import Iterator, Sequence

from var_jax.cli.args import read_config
from var_jax.config.train import TrainConfig
from var_jax.config.transformer_config import ONE_MAP
from var_jax.errors import UserError

DATA = "--config.data."  # the flags of a tokenizer's run that serve its transformer, too
PREFIX = "tokenizer_"  # of a config's argument that has the objective's name behind it


def config_flags(config: TrainConfig, file: str, overrides: Sequence[str]) -> tuple[str, list[str]]:
    """Returns FILE[:ARG] and the flags of a run that can learn the tokens of a tokenizer.

    The file is that of the tokenizer's run. Its default comes first; where that is for tokens of
    another kind, the objective for this kind as the file's argument, or as a flag.

    Args:
      config: the tokenizer's run.
      file: FILE[:ARG], as on the command line.
      overrides: each `--config.KEY=VALUE` of the command line.
    """
    name, _, arg = file.partition(":")
    flags = [flag for flag in overrides if flag.startswith(DATA)]
    for argument, more in _candidates(config, arg):
        candidate = f"{name}:{argument}" if argument else name
        if _can_learn(config, candidate, [*flags, *more]):
            return candidate, [*flags, *more]
    return name, flags


def _candidates(config: TrainConfig, arg: str) -> Iterator[tuple[str, list[str]]]:
    """Yields arguments of the config file, each with further flags."""
    objectives = _objectives(config)
    named = arg.removeprefix(PREFIX)
    if named in objectives:
        yield named, []
    yield "", []
    for objective in objectives:
        yield objective, []
    scales = f"--config.tokenizer.scales={config.tokenizer.scales}"
    for objective in objectives:  # the file's own scales may not go with it
        yield "", [f"--config.transformer.objective={objective}", scales]


def _objectives(config: TrainConfig) -> tuple[str, ...]:
    """Returns the objectives that make sense with a tokenizer, the usual one first."""
    if not config.tokenizer.quantizes:
        return ("diffusion",)
    if len(config.tokenizer.scales) == 1:
        return (*ONE_MAP, "diffusion")
    return ("next_scale", "diffusion")


def _can_learn(config: TrainConfig, file: str, flags: Sequence[str]) -> bool:
    """Returns whether a config file describes a transformer for a tokenizer's tokens."""
    from var_jax.objectives import registry

    try:
        run = read_config(file, flags).with_tokenizer(config.tokenizer)
        generates = registry.leaves_generator(run)
    except UserError:  # the file has no such argument, or a key does not fit
        return False
    return (
        generates
        and run.transformer is not None
        and run.transformer.objective in _objectives(config)
    )
