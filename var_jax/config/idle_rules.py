"""Keys of a config that another key's value turns off (`idle_keys` refuses them by name)."""

from collections.abc import Callable
from typing import NamedTuple

from var_jax.config.train import ON_A_BASE, TrainConfig


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


def _in_float32(config: TrainConfig) -> bool:
    """Whether a transformer, or an adapter or refiner of one, is trained in float32."""
    transformer = config.transformer if config.stage in ("transformer", *ON_A_BASE) else None
    return transformer is not None and transformer.dtype == "float32"


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
        ("optimizer.skip_spikes_window",),
        "optimizer.skip_spikes",
        lambda c: c.optimizer.skip_spikes == 0,
    ),
    Rule(("transformer.gradient_dtype",), "transformer.dtype", _in_float32),
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
    Rule(
        (
            "loss.label_smoothing",
            "transformer.class_dropout",
            "transformer.progressive",
            "transformer.scale_weights",
            "transformer.flip_share",
        ),
        "adapter.cfg",
        lambda c: c.stage == "adapter" and bool(c.adapter.cfg),
    ),
    Rule(
        (
            "transformer.progressive",
            "transformer.progressive_from",
            "transformer.progressive_warmup",
            "transformer.scale_weights",
            "transformer.flip_share",
        ),
        "stage",
        lambda c: c.stage == "refiner",
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
    Rule(("alignment.*",), "alignment.weight", lambda c: c.alignment.weight == 0),
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
