"""Configs of models: values, sizes that follow from others, and the config files of both stages."""

import dataclasses
import json
from pathlib import Path

import pytest

from helpers import small
from helpers.scripts import load_module
from var_jax.config.model import ModelConfig, TokenizerConfig, TransformerConfig
from var_jax.config.scales import SCALES_512, Scales
from var_jax.config.strict import build, differences, plain
from var_jax.config.train import from_config_dict
from var_jax.errors import UserError
from var_jax.io.tokenizer_fingerprint import TRAINING_ONLY

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


def refused(cls, mapping) -> str:
    with pytest.raises(UserError) as caught:
        build(cls, mapping)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_build_names_an_unknown_key_and_the_closest_one():
    """An unknown key is named by its full path, also in a nested section, with the closest known
    key; if no key is close, the message lists the known ones."""
    assert (
        refused(TransformerConfig, {"dept": 3}) == "unknown key config.dept; did you mean 'depth'?"
    )
    nested = refused(ModelConfig, {"tokenizer": {"vocabsize": 3}})
    assert nested == "unknown key config.tokenizer.vocabsize; did you mean 'vocab_size'?"
    assert "known: attention, blocks" in refused(TokenizerConfig, {"xyzzy": 1})


@pytest.mark.parametrize(
    ("cls", "mapping", "message"),
    [
        (TransformerConfig, {"depth": 2.5}, "config.depth is 2.5; it must be a whole number"),
        (TransformerConfig, {"depth": True}, "config.depth is True; it must be a whole number"),
        (TransformerConfig, {"depth": "2"}, "config.depth is '2'; it must be a whole number"),
        (TransformerConfig, {"mlp_ratio": "4"}, "config.mlp_ratio is '4'; it must be a number"),
        (
            TransformerConfig,
            {"shared_adaln": 1},
            "config.shared_adaln is 1; it must be True or False",
        ),
        (
            TransformerConfig,
            {"dtype": "float16"},
            "config.dtype is 'float16'; it must be 'float32' or 'bfloat16'",
        ),
        (TokenizerConfig, {"multipliers": 3}, "config.multipliers is 3; it must be a list"),
        (
            TokenizerConfig,
            {"multipliers": [1, "2"]},
            "config.multipliers is '2'; it must be a whole number",
        ),
        (TokenizerConfig, {"scales": "1,b"}, "config.scales: scale 'b' is not a size"),
        (TokenizerConfig, {"scales": ""}, "config.scales: scale '' is not a size"),
        (TokenizerConfig, {"scales": "2,1"}, "config.scales: scale 1x1 follows 2x2"),
        (ModelConfig, {"tokenizer": 3}, "config.tokenizer is 3; it must be a section of keys"),
    ],
)
def test_build_names_values_of_the_wrong_kind(cls, mapping, message):
    """The error has the key, the value and the kind that it must be, and True is no number."""
    assert refused(cls, mapping).startswith(message)


@pytest.mark.parametrize(
    ("cls", "mapping", "message"),
    [
        (TokenizerConfig, {"in_channels": 2}, "tokenizer.in_channels is 2; it must be 1 or 3"),
        (TokenizerConfig, {"multipliers": []}, "tokenizer.multipliers"),
        (
            TokenizerConfig,
            {"multipliers": [1, -1]},
            "tokenizer.multipliers is (1, -1); it must be at least one level",
        ),
        (TokenizerConfig, {"multipliers": [1, 0]}, "tokenizer.multipliers is (1, 0)"),
        (
            TokenizerConfig,
            {"norm_groups": 7},
            "tokenizer.norm_groups is 7; it must be a divisor of every level's width",
        ),
        (TokenizerConfig, {"phi": -1}, "tokenizer.phi is -1"),
        (TransformerConfig, {"depth": 0}, "transformer.depth is 0; it must be at least 1"),
        (
            TransformerConfig,
            {"heads": 7},
            "transformer.heads is 7; it must be a divisor of the width 1024",
        ),
        (
            TransformerConfig,
            {"heads": -2},
            "transformer.heads is -2; it must be 0 (by depth) or more",
        ),
        (
            TransformerConfig,
            {"width": -64},
            "transformer.width is -64; it must be 0 (by depth) or more",
        ),
        (
            TransformerConfig,
            {"mlp_ratio": -1},
            "transformer.mlp_ratio is -1.0; it must be positive",
        ),
        (TransformerConfig, {"mlp_ratio": 1e-6}, "transformer.mlp_ratio is 1e-06"),
        (
            TransformerConfig,
            {"mlp_ratio": float("nan")},
            "config.mlp_ratio is nan; it must be a finite number",
        ),
        (TransformerConfig, {"drop_path": 1.0}, "transformer.drop_path is 1.0; it must be below 1"),
        (TransformerConfig, {"class_dropout": -0.1}, "transformer.class_dropout"),
    ],
)
def test_build_names_sizes_that_cannot_be(cls, mapping, message):
    """A size that no model can have is refused by a message that begins with its key and its
    value."""
    assert refused(cls, mapping).startswith(message)


def test_transformer_config_takes_sizes_from_the_depth():
    """Width 64 d, d heads and drop path 0.1 d / 24 are the paper's; values that are given win."""
    config = TransformerConfig(depth=24)
    assert (config.width, config.heads, config.head_dim, config.hidden) == (1536, 24, 64, 6144)
    assert config.drop_path == pytest.approx(0.1) and config.init_std == pytest.approx(
        (1 / 4608) ** 0.5
    )
    settings = TransformerConfig(
        depth=24, width=96, heads=3, drop_path=0.0, init_std=0.5, mlp_ratio=2
    )
    assert (
        settings.width,
        settings.heads,
        settings.drop_path,
        settings.init_std,
        settings.hidden,
    ) == (
        96,
        3,
        0.0,
        0.5,
        192,
    )


def test_tokenizer_config_takes_sizes_from_its_levels():
    """Each level halves the image, so that three levels make 8 x 12 pixels of 2 x 3 tokens."""
    config = TokenizerConfig(
        scales=Scales.parse("1,2x3"), channels=32, multipliers=(1, 2, 4), in_channels=1, phi=0
    )
    assert (
        config.image_shape == (8, 12, 1)
        and config.widths == (32, 64, 128)
        and config.phi_count == 2
    )
    assert TokenizerConfig(scales=Scales.parse(SCALES_512)).image_shape == (512, 512, 3)


def test_tokenizer_config_refuses_more_convolutions_than_scales():
    """Published tokenizers have four; three scales take the first, the third and the last."""
    assert TokenizerConfig(scales=Scales.parse("1,2,3"), phi=4).phi_count == 4


def test_model_config_refuses_parts_that_do_not_fit():
    """A transformer of other codes or scales than the tokenizer's is named by the key."""
    for name, value in (("vocab_size", 99), ("z_channels", 5), ("scales", Scales.parse("1,2"))):
        with pytest.raises(
            UserError, match=f"transformer.{name} is .*; it must be the tokenizer's"
        ):
            ModelConfig(small.TOKENIZER, dataclasses.replace(small.TRANSFORMER, **{name: value}))


@pytest.mark.parametrize(
    "config", [small.MODEL, ModelConfig(TokenizerConfig(scales=Scales.parse(SCALES_512)))]
)
def test_plain_values_are_json_and_build_reads_them_back(config):
    """A config that is written as JSON and read back equals the config that was written."""
    assert build(ModelConfig, json.loads(json.dumps(plain(config)))) == config


def test_differences_name_leaves():
    """Each difference is a key with both values, in nested sections as well."""
    actual, expected = plain(small.MODEL), plain(small.MODEL)
    assert differences(actual, expected) == []
    expected["transformer"]["depth"] = 4
    expected["tokenizer"]["scales"] = "1,2"
    assert differences(actual, expected) == [
        "tokenizer.scales: 1,2,3x4 here, 1,2 there",
        "transformer.depth: 2 here, 4 there",
    ]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_config_files_are_runs_of_both_stages(file):
    """Each file gives a tokenizer and transformers of that tokenizer, its docstring has a command,
    and an argument that is neither is named."""
    module = load_module(file)
    if hasattr(module, "RUNGS"):  # whose tokenizers are two: compared with its neighbors elsewhere
        assert all(name in module.__doc__ for name in module.RUNGS)
        return
    if hasattr(module, "KINDS"):  # of adapters, whose model is there already
        for kind in module.KINDS:
            run = from_config_dict(module.get_config(kind))
            assert (run.stage, run.adapter.kind) == ("adapter", kind)
        assert f"configs/{file.name}" in module.__doc__
        with pytest.raises(UserError, match=module.KINDS[0]):
            module.get_config("tokenizer")
        return
    if file.stem == "refiner":  # of a model that is there already
        assert from_config_dict(module.get_config()).stage == "refiner"
        assert f"configs/{file.name}" in module.__doc__
        return
    if file.stem == "scaling_fashion":  # sweeps of transformers alone, on another file's tokenizer
        fashion = load_module(file.with_stem("fashion_mnist"))
        tokenizer = from_config_dict(fashion.get_config("tokenizer1024_full"))
        for preset in module.PRESETS:
            _assert_tokenizer_of(from_config_dict(module.get_config(preset)), tokenizer)
        with pytest.raises(UserError, match=module.PRESETS[0]):
            module.get_config("tokenizer")
        return
    if hasattr(module, "ARGUMENTS"):
        _assert_named_runs_of_both_stages(file, module)
        return
    assert from_config_dict(module.get_config("tokenizer")).stage == "tokenizer"
    default = from_config_dict(module.get_config())
    deeper = from_config_dict(module.get_config("d6"))
    assert default.stage == deeper.stage == "transformer" and deeper.transformer.depth == 6
    _assert_tokenizer_of(default, from_config_dict(module.get_config("tokenizer")))
    assert (
        f"configs/{file.name}:tokenizer" in module.__doc__
        or f"configs/{file.name}:d" in module.__doc__
    )
    for wrong in ("xl", "d", "d0", "d-1"):
        with pytest.raises(UserError, match="is neither 'tokenizer' nor a depth"):
            module.get_config(wrong)


def _assert_tokenizer_of(run, trained):
    """What only its training uses may differ: a transformer takes its tokenizer's from its
    directory."""
    only_training = {name: getattr(run.tokenizer, name) for name in ("dtype", *TRAINING_ONLY)}
    assert run.tokenizer == dataclasses.replace(trained.tokenizer, **only_training)


def _assert_named_runs_of_both_stages(file, module):
    """A config of several published models: each by its name, and its tokenizer by "tokenizer_"."""
    for name in module.ARGUMENTS:
        trained = from_config_dict(module.get_config(f"tokenizer_{name}"))
        run = from_config_dict(module.get_config(name))
        assert trained.stage == "tokenizer" and run.stage == "transformer"
        _assert_tokenizer_of(run, trained)
        assert name in module.__doc__
    assert f"configs/{file.name}:tokenizer_" in module.__doc__
    for wrong in ("tokenizer", "d6", "xl"):
        with pytest.raises(UserError, match=module.ARGUMENTS[0]):
            module.get_config(wrong)


def test_imagenet_tokenizer_has_the_published_recipe():
    """Each value is compared with the default of vaex's argument of that name; its learning rates
    are for batch 768, ours for 256."""
    (file,) = (file for file in CONFIGS if file.stem == "imagenet256")
    module = load_module(file)
    config = from_config_dict(module.get_config("tokenizer"))
    t, a, d = config.tokenizer, config.adversarial, config.discriminator_optimizer
    result = {
        "bs": config.batch_size,
        "ep": config.steps * config.batch_size // 1_281_167 + 1,
        "ema": config.ema,
        "drop_out": t.dropout,
        "vae_init": -t.init_gain,
        "vocab_init": config.codebook.init,
        "vae_wd": config.optimizer.weight_decay,
        "disc_wd": d.weight_decay,
        "wp0": d.warmup_from,
        "grad_clip": (config.optimizer.clip, d.clip),
        "sche_end": (config.optimizer.final_lr_ratio, d.final_lr_ratio),
        "disc_start_ep": a.start,
        "disc_warmup_ep": a.warmup,
        "warm": d.warmup_steps / config.steps,
        "fade_blur": a.blur_fade,
        "ld": a.weight,
        "bcr": a.bcr,
        "bcr_cut": a.bcr_cutout,
        "cutout": a.cutout,
        "dcrit": a.hinge,
        "gada": (a.adaptive_lowest, a.adaptive_highest),
        "img": (a.feature_size, a.feature_crops),
        "ks": a.kernel,
        "readout": a.feature_readout,
        "codebook decays": config.codebook.weight_decay,
    }
    assert result == {
        "bs": 768,
        "ep": 250,
        "ema": 0.9999,
        "drop_out": 0.05,
        "vae_init": -0.5,
        "vocab_init": "uniform",
        "vae_wd": 0.005,
        "disc_wd": 0.0005,
        "wp0": 0.005,
        "grad_clip": (10.0, 10.0),
        "sche_end": (0.3, 0.3),
        "disc_start_ep": 0.2,
        "disc_warmup_ep": 0.02,
        "warm": pytest.approx(0.02, rel=1e-3),
        "fade_blur": 0.04,
        "ld": 0.4,
        "bcr": 4.0,
        "bcr_cut": 0.2,
        "cutout": 0.2,
        "dcrit": "sum",
        "gada": (0.015, 1e4),
        "img": (224, 0.5),
        "ks": 9,
        "readout": "patch_and_class",
        "codebook decays": False,
    }
    assert t.init_codes == pytest.approx(t.z_channels**-0.5 / 36, abs=5e-5)
    assert 3 * config.optimizer.base_lr == 3 * d.base_lr == pytest.approx(3e-4)


def test_imagenet_transformers_have_the_published_recipes():
    """Batch size, learning rate, gamma and drop path of d16 to d36, and a warmup of a fiftieth of
    the run."""
    by_name = {file.stem: file for file in CONFIGS}
    for name, depth, batch, rate, gamma in (
        ("imagenet256", 16, 768, 1e-4, 1e-3),
        ("imagenet256", 24, 768, 8e-5, 1e-4),
        ("imagenet256", 30, 1024, 8e-5, 1e-5),
        ("imagenet512", 36, 768, 8e-5, 5e-6),
    ):
        module = load_module(by_name[name])
        config = from_config_dict(module.get_config(f"d{depth}"))
        assert (config.batch_size, config.optimizer.base_lr) == (batch, rate)
        assert config.transformer.init_adaln_gamma == gamma and config.transformer.shared_adaln == (
            depth == 36
        )
        assert config.transformer.drop_path == pytest.approx(0.1 * depth / 24)
        assert config.steps // 50 == config.optimizer.warmup_steps
