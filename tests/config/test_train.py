"""Configs of runs: ranges, keys that depend on each other, and reading them back."""

import dataclasses
import json

import pytest

from helpers import small
from var_jax.config.model import TokenizerConfig, TransformerConfig
from var_jax.config.scales import Scales
from var_jax.config.strict import build, plain
from var_jax.config.tokenizer_training import AdversarialConfig, CodebookConfig, ProgressiveConfig
from var_jax.config.train import (
    DataConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
    default_config,
    from_config_dict,
)
from var_jax.errors import UserError


def test_train_config_of_defaults_is_a_run():
    """The default data set's name tells its channels and classes, which are left to the data."""
    config = from_config_dict(default_config())
    assert config.tokenizer == TokenizerConfig(in_channels=1) and config.left_to_data == []
    assert config.transformer == TransformerConfig(num_classes=10)
    assert config.optimizer == OptimizerConfig() and config.stage == "tokenizer"


def test_default_config_has_no_list():
    """Flags can override a tuple and not a list: every key with several values is a tuple."""

    def leaves(values):
        for value in values.values():
            yield from leaves(value) if isinstance(value, dict) else [value]

    kinds = {type(leaf) for leaf in leaves(default_config().to_dict())}
    assert tuple in kinds and list not in kinds


def test_transformer_config_takes_the_tokenizers_sizes():
    """Codes and scales come from the tokenizer's section, and giving them again is refused."""
    settings = default_config()
    settings.tokenizer.update({"vocab_size": 64, "z_channels": 8, "scales": "1,2"})
    config = from_config_dict(settings)
    assert (config.transformer.vocab_size, config.transformer.z_channels) == (64, 8)
    assert config.transformer.scales == Scales.parse("1,2")
    with settings.unlocked():
        settings.transformer.vocab_size = 64
    with pytest.raises(
        UserError, match=r"config.transformer.vocab_size follows config.tokenizer.vocab_size"
    ):
        from_config_dict(settings)


def test_train_config_refuses_codebook_terms_without_a_codebook():
    """Initial codes and revival need codes that are learned; the entropy term does not."""
    bits = TokenizerConfig(codes="bsq", z_channels=6, vocab_size=64)
    with pytest.raises(UserError, match=r"codebook.init and revive_threshold .* have no codebook"):
        TrainConfig(tokenizer=bits, codebook=CodebookConfig(revive_threshold=0.1))
    assert TrainConfig(tokenizer=bits, codebook=CodebookConfig(entropy=0.1)).codebook.entropy


def test_train_config_keeps_room_for_quantizer_dropout():
    """Dropout keeps three scales, so that a progressive start needs four."""
    tokenizer, progressive = TokenizerConfig(quantizer_dropout=0.1), ProgressiveConfig("1,2,4")
    with pytest.raises(
        UserError,
        match="progressive.scales is 1,2,4; it must be of more than 3 scales, because quant",
    ):
        TrainConfig(tokenizer=tokenizer, progressive=progressive)
    assert TrainConfig(
        tokenizer=tokenizer, progressive=ProgressiveConfig("1,2,3,4")
    ).progressive.scales


def test_steps_of_reads_steps_or_shares_of_the_run():
    """0.2 of 500 steps is step 100, and 7 is step 7."""
    config = TrainConfig(steps=500, adversarial=AdversarialConfig(weight=0.4, start=0.2, warmup=7))
    adversarial = config.adversarial
    times = [config.steps_of(value) for value in (adversarial.start, adversarial.warmup)]
    assert times == [100, 7]


def test_train_config_of_a_tokenizer_has_no_transformer():
    """A config file may set `transformer` to None, and the run's config then has no transformer."""
    config = default_config()
    config.transformer = None
    assert from_config_dict(config).transformer is None


def test_config_dict_takes_no_new_keys():
    """A misspelled key in a config file is an error and no new key."""
    with pytest.raises((KeyError, AttributeError)):
        default_config().batchsize = 3


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("", "steps", 0, "steps is 0; it must be at least 1"),
        ("", "ema", 1.0, "ema is 1.0"),
        ("", "seed", -1, "seed is -1; it must be from 0 to 4294967295"),
        ("", "seed", 10**20, "seed is 100000000000000000000; it must be from 0 to 4294967295"),
        ("", "sample_classes", 0, "sample_classes is 0; it must be at least 1"),
        ("", "eval_images", -5, "eval_images is -5; it must be 0 or more"),
        ("", "branch_step", -1, "branch_step is -1; it must be 0 or more"),
        ("", "keep_steps", (5, -1), r"keep_steps is \(5, -1\); it must be steps from 0 on"),
        ("", "stage", "both", "config.stage is 'both'; it must be 'tokenizer' or 'transformer'"),
        ("optimizer", "base_lr", -1.0, "optimizer.base_lr is -1.0; it must be positive"),
        ("optimizer", "b2", 1.0, "optimizer.b1 and b2"),
        ("optimizer", "warmup_steps", -1, "optimizer.warmup_steps is -1"),
        ("optimizer", "warmup_from", 1.5, "optimizer.warmup_from is 1.5; it must be from 0 to 1"),
        ("optimizer", "warmup_from", -0.1, "optimizer.warmup_from is -0.1"),
        ("optimizer", "clip", -1.0, "optimizer.clip is -1.0; it must be 0 or more"),
        ("optimizer", "weight_decay", -0.1, "optimizer.weight_decay is -0.1"),
        ("optimizer", "final_weight_decay", -0.1, "optimizer.final_weight_decay is -0.1"),
        ("optimizer", "final_lr_ratio", -0.1, "optimizer.final_lr_ratio is -0.1"),
        ("optimizer", "schedule", "step", "config.optimizer.schedule is 'step'"),
        ("loss", "label_smoothing", 1.0, "loss.label_smoothing is 1.0"),
        ("loss", "perceptual", -1.0, "loss.perceptual is -1.0; it must be 0 or more"),
        (
            "loss",
            "perceptual_network",
            "vgg",
            "perceptual_network is 'vgg'; it must be 'efficientnet' or 'lpips'",
        ),
        ("adversarial", "weight", -0.1, "adversarial.weight is -0.1; it must be 0 or more"),
        (
            "adversarial",
            "adaptive_highest",
            0.01,
            "adversarial.adaptive_highest is 0.01; it must be at least",
        ),
        ("adversarial", "start", -1.0, "adversarial.start is -1.0"),
        ("adversarial", "warmup", -1.0, "adversarial.warmup is -1.0"),
        ("adversarial", "discriminator", "pixels", "'patch' or 'features'"),
        ("adversarial", "channels", 12, "adversarial.channels is 12; it must be a multiple of 8"),
        ("adversarial", "layers", 0, "adversarial.layers is 0; it must be at least 1"),
        (
            "adversarial",
            "diffaugment",
            "colour",
            "adversarial.diffaugment names 'colour'; did you mean 'color'",
        ),
        (
            "adversarial",
            "diffaugment_probability",
            1.5,
            "adversarial.diffaugment_probability is 1.5",
        ),
        (
            "adversarial",
            "lecam_decay",
            1.0,
            "adversarial.lecam_decay is 1.0; it must be from 0 to below 1",
        ),
        ("adversarial", "r1_every", 0, "adversarial.r1_every is 0"),
        (
            "discriminator_optimizer",
            "base_lr",
            0.0,
            "discriminator_optimizer.base_lr is 0.0; it must be positive",
        ),
        ("codebook", "init", "zeros", "'normal' or 'uniform' or 'sampled' or 'kmeans' or 'equal'"),
        ("codebook", "revive_threshold", -1.0, "codebook.revive_threshold is -1.0"),
        (
            "codebook",
            "revive_decay",
            1.0,
            "codebook.revive_decay is 1.0; it must be from 0 to below 1",
        ),
        (
            "codebook",
            "entropy_temperature",
            0.0,
            "codebook.entropy_temperature is 0.0; it must be positive",
        ),
        ("codebook", "collapse_share", 2.0, "codebook.collapse_share is 2.0"),
        (
            "progressive",
            "scales",
            "1,2,32",
            "progressive.scales is 1,2,32; it must be no larger than tokenizer.scales",
        ),
        (
            "progressive",
            "scales",
            "1,1x2,2,3,4,5,6,7,8,9,10",
            "no more scales than tokenizer.scales, 10",
        ),
        ("progressive", "until", -0.5, "progressive.until is -0.5"),
        (
            "data",
            "resize",
            "squash",
            "config.data.resize is 'squash'; it must be 'crop' or 'stretch' or 'pad'$",
        ),
        (
            "data",
            "workers",
            -1,
            "data.workers is -1; it must be 0, for threads, or the number of processes",
        ),
        ("mesh", "model", 0, "mesh.model is 0"),
        ("mesh", "slices", 0, "mesh.slices is 0; it must be at least 1"),
        ("mesh", "replicated_share", 1.1, "mesh.replicated_share is 1.1; it must be from 0 to 1"),
        ("mesh", "replicated_share", -0.1, "mesh.replicated_share is -0.1"),
        ("tokenizer", "scales", "1,4,2", "scale 2x2 follows 4x4"),
        (
            "transformer",
            "heads",
            3,
            "transformer.heads is 3; it must be a divisor of the width 1024",
        ),
    ],
)
def test_train_config_names_values_out_of_range(section, key, value, message):
    """The error has the key, the value and the range."""
    config = default_config()
    setattr(config[section] if section else config, key, value)
    with pytest.raises(UserError, match=message):
        from_config_dict(config)


def test_whole_numbers_beyond_64_bits_are_named():
    """No array, checkpoint or reader of JSON holds them, so they would end a run later."""
    for value in (2**63, 10**400):
        settings = default_config()
        settings.batch_size = value
        with pytest.raises(UserError, match=r"config.batch_size is \d{1,40}; it must be at most"):
            from_config_dict(settings)


def test_configs_name_settings_that_do_not_go_together():
    """The error has both settings."""
    with pytest.raises(UserError, match="microbatches is 3; it must be a divisor of batch_size 8"):
        TrainConfig(batch_size=8, microbatches=3)
    with pytest.raises(UserError, match="mesh is -1 x -1"):
        MeshConfig(-1, -1)
    with pytest.raises(UserError, match="transformer is None; it must be a section of keys"):
        TrainConfig(stage="transformer")


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_train_config_is_read_back_from_json(stage):
    """A run's config.json gives the config that wrote it."""
    config = small.train_config(
        stage, "somewhere", mesh=MeshConfig(4, 2), loss=LossConfig(label_smoothing=0.1)
    )
    assert build(TrainConfig, json.loads(json.dumps(plain(config)))) == config


def test_train_config_takes_the_sizes_of_another_tokenizer():
    """Codes and scales follow the tokenizer, and the transformer's own width stays."""
    other = dataclasses.replace(small.TOKENIZER, vocab_size=99, scales=Scales.parse("1,3"))
    config = small.train_config("transformer", "").with_tokenizer(other)
    assert config.tokenizer == other and config.transformer.vocab_size == 99
    assert config.transformer.scales == other.scales and config.transformer.width == 16
    assert small.train_config("tokenizer", "").with_tokenizer(other).transformer is None


def test_data_defaults_to_the_digits():
    """The defaults train without any data of the user's."""
    assert DataConfig().name == "digits"


def test_data_config_takes_the_older_name_of_stretch():
    """Configs, flags and the workdirs of earlier versions have "whole": it is the same run as one
    that says "stretch", and every message says "stretch"."""
    assert DataConfig(resize="whole") == DataConfig(resize="stretch")
    assert DataConfig(resize="whole").resize == "stretch"
    config = default_config()
    config.data.resize = "whole"
    assert from_config_dict(config).data.resize == "stretch"
    values = plain(TrainConfig()) | {"data": {"resize": "whole"}}
    assert plain(build(TrainConfig, values))["data"]["resize"] == "stretch"
