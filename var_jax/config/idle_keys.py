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
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from var_jax.config import objective_keys
from var_jax.config.model import TokenizerConfig, TransformerConfig
from var_jax.config.strict import plain
from var_jax.config.train import TrainConfig
from var_jax.errors import UserError

TOKENIZER_SECTIONS = ("adversarial", "discriminator_optimizer", "codebook", "progressive")
TRANSFORMER_LOSSES = ("label_smoothing",)
OF_BASE = ("tokenizer_dir", "init_from")  # an adapter's tokenizer and weights are its base's


class Rule(NamedTuple):
    """Keys that have no effect while another key has a value.

    Attributes:
      keys: dotted, or a section's name followed by ".*".
      switch: the key that turns them off.
      off: whether it does.
    """

    keys: tuple[str, ...]
    switch: str
    off: Callable[[TrainConfig], bool]


def _adversarial(config: TrainConfig) -> bool:
    return config.adversarial.weight > 0


def _on_features(config: TrainConfig) -> bool:
    return _adversarial(config) and config.adversarial.discriminator == "features"


def _optimizer_rules(section: str, used: Callable[[TrainConfig], bool]) -> list[Rule]:
    def of(config: TrainConfig):
        return getattr(config, section)

    return [
        Rule(
            (f"{section}.cooldown_steps",),
            f"{section}.schedule",
            lambda c: used(c) and of(c).schedule != "cooldown",
        ),
        Rule(
            (f"{section}.bend",),
            f"{section}.schedule",
            lambda c: used(c) and of(c).schedule != "bent",
        ),
        Rule(
            (f"{section}.final_lr_ratio",),
            f"{section}.schedule",
            lambda c: used(c) and of(c).schedule == "constant",
        ),
        Rule(
            (f"{section}.warmup_from",),
            f"{section}.warmup_steps",
            lambda c: used(c) and of(c).warmup_steps == 0,
        ),
    ]


# Where one key is off because of another that is off, only the outer one has a rule that applies.
RULES = (
    *_optimizer_rules("optimizer", lambda c: True),
    Rule(
        ("transformer.gradient_dtype",),
        "transformer.dtype",
        lambda c: c.stage == "transformer" and c.transformer.dtype == "float32",
    ),
    Rule(
        ("transformer.shared_adaln", "transformer.init_adaln", "transformer.init_adaln_gamma"),
        "transformer.class_conditioning",
        lambda c: c.stage == "transformer" and c.transformer.class_conditioning == "start_token",
    ),
    Rule(("branch_step",), "branch_from", lambda c: not c.branch_from),
    Rule(("init_from",), "branch_from", lambda c: bool(c.branch_from)),
    Rule(("ema_warmup",), "ema", lambda c: c.ema == 0),
    Rule(
        ("adapter.rank", "adapter.alpha", "adapter.targets"),
        "adapter.kind",
        lambda c: c.stage == "adapter" and c.adapter.kind == "class_rows",
    ),
    Rule(("adapter.start",), "adapter.classes", lambda c: not c.adapter.classes),
    Rule(
        ("transformer.progressive_from", "transformer.progressive_warmup"),
        "transformer.progressive",
        lambda c: c.stage == "transformer" and c.transformer.progressive == 0,
    ),
)
TOKENIZER_RULES = (
    Rule(
        ("adversarial.*", "discriminator_optimizer.*"),
        "adversarial.weight",
        lambda c: c.adversarial.weight == 0,
    ),
    Rule(
        ("adversarial.adaptive_lowest", "adversarial.adaptive_highest"),
        "adversarial.adaptive",
        lambda c: _adversarial(c) and not c.adversarial.adaptive,
    ),
    Rule(
        ("adversarial.layers",),
        "adversarial.discriminator",
        lambda c: _adversarial(c) and c.adversarial.discriminator != "patch",
    ),
    Rule(
        (
            "adversarial.kernel",
            *(
                f"adversarial.feature_{name}"
                for name in ("network", "weights", "size", "crops", "readout")
            ),
        ),
        "adversarial.discriminator",
        lambda c: _adversarial(c) and c.adversarial.discriminator != "features",
    ),
    Rule(
        ("adversarial.feature_crops",),
        "adversarial.feature_size",
        lambda c: _on_features(c) and c.adversarial.feature_size == 0,
    ),
    Rule(
        ("adversarial.feature_readout",),
        "adversarial.feature_network",
        lambda c: _on_features(c) and c.adversarial.feature_network != "dino",
    ),
    Rule(
        ("adversarial.cutout",),
        "adversarial.diffaugment",
        lambda c: _adversarial(c) and "cutout" not in c.adversarial.diffaugment,
    ),
    Rule(
        ("adversarial.bcr_diffaugment", "adversarial.bcr_cutout"),
        "adversarial.bcr",
        lambda c: _adversarial(c) and c.adversarial.bcr == 0,
    ),
    Rule(
        ("adversarial.bcr_cutout",),
        "adversarial.bcr_diffaugment",
        lambda c: (
            _adversarial(c)
            and c.adversarial.bcr > 0
            and "cutout" not in c.adversarial.bcr_diffaugment
        ),
    ),
    Rule(
        ("adversarial.diffaugment_probability",),
        "adversarial.diffaugment",
        lambda c: _adversarial(c) and not c.adversarial.diffaugment,
    ),
    Rule(
        ("adversarial.lecam_decay",),
        "adversarial.lecam",
        lambda c: _adversarial(c) and c.adversarial.lecam == 0,
    ),
    Rule(
        ("adversarial.r1_every",),
        "adversarial.r1",
        lambda c: _adversarial(c) and c.adversarial.r1 == 0,
    ),
    *_optimizer_rules("discriminator_optimizer", _adversarial),
    Rule(
        ("loss.perceptual_network", "loss.perceptual_weights", "loss.perceptual_heads"),
        "loss.perceptual",
        lambda c: c.loss.perceptual == 0,
    ),
    Rule(
        ("loss.perceptual_heads",),
        "loss.perceptual_network",
        lambda c: c.loss.perceptual > 0 and c.loss.perceptual_network != "lpips",
    ),
    Rule(
        ("codebook.revive_decay",),
        "codebook.revive_threshold",
        lambda c: c.codebook.revive_threshold == 0,
    ),
    Rule(("codebook.entropy_temperature",), "codebook.entropy", lambda c: c.codebook.entropy == 0),
    Rule(("codebook.init", "tokenizer.init_gain"), "init_from", lambda c: bool(c.init_from)),
    Rule(("codebook.init", "tokenizer.init_gain"), "branch_from", lambda c: bool(c.branch_from)),
    Rule(
        ("tokenizer.gradient_dtype",), "tokenizer.dtype", lambda c: c.tokenizer.dtype == "float32"
    ),
    Rule(("progressive.until",), "progressive.scales", lambda c: not c.progressive.scales),
    Rule(
        ("tokenizer.init_codes",),
        "codebook.init",
        lambda c: c.codebook.init not in ("normal", "uniform"),
    ),
    Rule(
        ("tokenizer.init_codes", "codebook.weight_decay"),
        "tokenizer.codes",
        lambda c: c.tokenizer.codes == "bsq",
    ),
    Rule(
        (
            *(f"tokenizer.{name}" for name in ("vocab_size", "phi", "phi_ratio", "vq_beta")),
            "tokenizer.init_codes",
            "loss.vq",
            "codebook.*",
        ),
        "tokenizer.codes",
        lambda c: not c.tokenizer.quantizes,
    ),
    Rule(("loss.kl",), "tokenizer.codes", lambda c: c.tokenizer.codes != "kl"),
    Rule(
        ("tokenizer.quantizer_dropout_from",),
        "tokenizer.quantizer_dropout",
        lambda c: c.tokenizer.quantizer_dropout == 0,
    ),
)


def other_stage(config: TrainConfig) -> dict[str, Any]:
    """Returns {dotted key: value} of the other stage's keys that are not at their defaults."""
    values, defaults = plain(config), plain(TrainConfig())
    if config.stage == "tokenizer":
        keys = [*(f"loss.{name}" for name in TRANSFORMER_LOSSES), "tokenizer_dir"]
    else:
        keys = [f"{section}.{key}" for section in TOKENIZER_SECTIONS for key in defaults[section]]
        keys += [f"loss.{key}" for key in defaults["loss"] if key not in TRANSFORMER_LOSSES]
    if config.stage == "adapter":
        keys += OF_BASE
    else:
        keys += [f"adapter.{key}" for key in defaults["adapter"]]
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
        _refuse_unused_by_objective(config, config.transformer)


def _refuse_unused_by_objective(config: TrainConfig, transformer: TransformerConfig):
    unused = {
        f"transformer.{key}": value for key, value in objective_keys.unused(transformer).items()
    }
    if transformer.objective == "diffusion" and config.loss.label_smoothing:
        unused["loss.label_smoothing"] = config.loss.label_smoothing
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
