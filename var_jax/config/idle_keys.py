"""Config keys that have no effect in a run, and their refusal by name.

Three kinds are mistakes:

- keys of the other stage, set away from their defaults by whatever file or flag;
- keys of the transformer's section that its objective has no use for (`objective_keys`), set away
  from their defaults by whatever file or flag;
- keys that another key's value turns off, set by a flag (`--config.loss.perceptual_heads=F` with no
  perceptual term). A recipe may hold such keys: `--config.adversarial.weight=0` takes a term out of
  one without its other keys, and a flag is accepted where the key that turns it off is a flag, too.

The sections `tokenizer` and `transformer` describe models, and a file may describe both in either
stage; only a flag for the transformer's section is refused in the tokenizer's stage. Commands that
train both stages pass one set of flags to both, and take the other stage's keys off (`reset`).
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from var_jax.config import objective_keys
from var_jax.config.idle_rules import RULES, TOKENIZER_RULES, Rule
from var_jax.config.model import TokenizerConfig, TransformerConfig
from var_jax.config.strict import plain
from var_jax.config.train import ON_A_BASE, TrainConfig
from var_jax.errors import UserError

TOKENIZER_SECTIONS = (
    "adversarial",
    "alignment",
    "discriminator_optimizer",
    "codebook",
    "progressive",
)
TRANSFORMER_LOSSES = ("label_smoothing",)
# The tokenizer and weights of an adapter or refiner are its base's, and it is all that is trained.
OF_BASE = ("tokenizer_dir", "init_from", "trainable")


def other_stage(config: TrainConfig) -> dict[str, Any]:
    """Returns {dotted key: value} of the other stage's keys that are not at their defaults."""
    values, defaults = plain(config), plain(TrainConfig())
    if config.stage == "tokenizer":
        keys = [*(f"loss.{name}" for name in TRANSFORMER_LOSSES), "tokenizer_dir"]
    else:
        keys = [f"{section}.{key}" for section in TOKENIZER_SECTIONS for key in defaults[section]]
        keys += [f"loss.{key}" for key in defaults["loss"] if key not in TRANSFORMER_LOSSES]
    if config.stage in ON_A_BASE:
        keys += OF_BASE
    others = [stage for stage in ON_A_BASE if stage != config.stage]
    keys += [f"{stage}.{key}" for stage in others for key in defaults[stage]]
    return {key: _at(values, key) for key in keys if _at(values, key) != _at(defaults, key)}


def reset(config: TrainConfig) -> TrainConfig:
    """Returns the run with the other stage's keys at their defaults."""
    defaults = TrainConfig()
    changed: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    for key in other_stage(config):
        section, _, name = key.rpartition(".")
        if section:
            changed.setdefault(section, {})[name] = getattr(getattr(defaults, section), name)
        else:
            top[name] = getattr(defaults, name)
    sections = {
        section: dataclasses.replace(getattr(config, section), **values)
        for section, values in changed.items()
    }
    return dataclasses.replace(config, **sections, **top)


def refuse(config: TrainConfig, started_with: Mapping[str, Any] | None = None):
    """Raises UserError where keys that the run does not use are not at their defaults.

    Such keys belong to the other stage, or to other objectives. The message names each.

    Args:
      started_with: the plain config that a run in the workdir was started with; keys with the same
        values there are accepted, so that a run from before these checks resumes by its own
        command.
    """
    idle = {
        key: value
        for key, value in other_stage(config).items()
        if not _holds(started_with, key, value)
    }
    if idle:
        raise UserError(
            f"{_listed(idle)}: {_no_effect(idle)} in the {config.stage}'s stage; leave "
            f"{'it' if len(idle) == 1 else 'them'} out, or give the other stage's config"
        )
    if config.stage == "transformer":
        refuse_unused_by_objective(config, started_with=started_with)


def refuse_unused_by_objective(
    config: TrainConfig,
    keys: Collection[str] | None = None,
    started_with: Mapping[str, Any] | None = None,
):
    """Raises UserError where the objective of a run has no use for a key that is not the default.

    Args:
      config: a run whose transformer's objective is known.
      keys: of the transformer's section, that are the run's own; None for all.
      started_with: as in `refuse`.
    """
    transformer = config.transformer
    assert transformer is not None  # in a transformer's stage, and with an adapter's base
    unused = {
        f"transformer.{key}": value
        for key, value in objective_keys.unused(transformer).items()
        if keys is None or key in keys
    }
    if transformer.objective == "diffusion" and config.loss.label_smoothing:
        unused["loss.label_smoothing"] = config.loss.label_smoothing
    unused = {key: value for key, value in unused.items() if not _holds(started_with, key, value)}
    if unused:
        raise UserError(
            f"{_listed(unused)}: {_no_effect(unused)} with transformer.objective "
            f"{transformer.objective!r}; leave {'it' if len(unused) == 1 else 'them'} out"
        )


def refuse_flags(
    config: TrainConfig, keys: Collection[str], started_with: Mapping[str, Any] | None = None
):
    """Raises UserError if a key given as a flag has no effect because of another key's value.

    Args:
      keys: dotted, of all flags.
      started_with: as in `refuse`.
    """
    values = plain(config)
    defaults = {**plain(TrainConfig()), "transformer": plain(TransformerConfig())}
    if config.stage == "tokenizer":
        for key in keys:
            if key.startswith("transformer."):
                raise UserError(
                    f"{key} has no effect in the tokenizer's stage; leave it out, or give the "
                    "transformer's config"
                )
    for rule in (*RULES, *(TOKENIZER_RULES if config.stage == "tokenizer" else ())):
        if rule.switch in keys or not rule.off(config):
            continue
        for key in keys:
            if (
                key == rule.switch
                or not _matches(rule, key)
                or _at(values, key) == _at(defaults, key)
            ):
                continue
            if not _holds(started_with, key, _at(values, key)):
                raise UserError(
                    f"{key}={_at(values, key)} has no effect while {rule.switch} is "
                    f"{_at(values, rule.switch)!r}; leave it out, or give {rule.switch}"
                )


def refuse_replaced(
    config: TrainConfig,
    model: TokenizerConfig | TransformerConfig,
    keys: Collection[str],
    directory: str,
):
    """Raises UserError if a flag gives a model a value that the run would not take.

    Where a tokenizer or a base is read, its config replaces the section of its name.

    Args:
      config: the run as its file and flags describe it.
      model: the tokenizer that is read, or the transformer with the run's own keys in it.
      keys: dotted, of all flags.
      directory: the directory that it is read from, for the message.
    """
    part = "tokenizer" if isinstance(model, TokenizerConfig) else "transformer"
    stated, taken = plain(getattr(config, part)), plain(model)
    for key in keys:
        section, _, name = key.partition(".")
        if section != part or key in config.left_to_data or stated[name] == taken[name]:
            continue
        raise UserError(
            f"{key} is {_text(stated[name])}; the {part} in {directory} has "
            f"{_text(taken[name])}: leave the flag out, or give a {part} that has that value"
        )


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def flag_keys(overrides: Collection[str]) -> list[str]:
    """Returns the dotted keys of `--config.KEY=VALUE` flags."""
    return [
        text.removeprefix("--config.").partition("=")[0]
        for text in overrides
        if text.startswith("--config.")
    ]


def _matches(rule: Rule, key: str) -> bool:
    return any(key == one or one.endswith(".*") and key.startswith(one[:-1]) for one in rule.keys)


def _at(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _holds(started_with: Mapping[str, Any] | None, key: str, value: Any) -> bool:
    return started_with is not None and _at(started_with, key) == value


def _listed(keys: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in keys.items())


def _no_effect(keys: Mapping[str, Any]) -> str:
    return "the key has no effect" if len(keys) == 1 else "these keys have no effect"
