"""Config files against the recipes that scripts share, and as files that users copy."""

import shutil
from pathlib import Path

import pytest

from helpers.scripts import load_module
from var_jax.config import objective_keys, recipes
from var_jax.config.strict import differences, plain
from var_jax.config.train import from_config_dict

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
FILES = {file.stem: file for file in CONFIGS}


@pytest.mark.parametrize("depth", [1, 16, 19, 20, 24, 30, 36, 64])
@pytest.mark.parametrize("name", ["imagenet256", "imagenet512", "openimages"])
def test_imagenet_transformers_written_out_equal_the_shared_recipe(name, depth):
    """A value that is edited in a config file alone would make its runs differ from a sweep's."""
    config = load_module(FILES[name]).get_config(f"d{depth}")
    shared = recipes.imagenet_config()
    recipes.imagenet_transformer(shared, depth)
    shared.data.name = config.data.name
    shared.tokenizer.scales = config.tokenizer.scales
    shared.transformer.num_classes = 1 if name == "openimages" else 1000
    shared.transformer.shared_adaln = name == "imagenet512"
    assert from_config_dict(config) == from_config_dict(shared)


@pytest.mark.parametrize("name", ["imagenet256", "imagenet512", "openimages", "scaling"])
def test_imagenet_tokenizers_written_out_equal_the_shared_recipe(name):
    config = load_module(FILES[name]).get_config("tokenizer")
    shared = recipes.imagenet_config()
    recipes.imagenet_tokenizer(shared)
    shared.data.name = config.data.name
    shared.tokenizer.scales = config.tokenizer.scales
    assert from_config_dict(config) == from_config_dict(shared)


@pytest.mark.parametrize("depth", [6, 16, 18, 20, 24, 30])
def test_paper_sweep_written_out_equals_the_shared_recipe(depth):
    """The sweep's base with the overrides of a depth is the recipe that scripts apply."""
    file = load_module(FILES["scaling"])
    (overrides,) = (o for o in file.get_sweep("paper") if o["transformer.depth"] == depth)
    config = file.get_config("paper")
    config.update_from_flattened_dict(overrides)
    shared = recipes.imagenet_config()
    recipes.imagenet_transformer(shared, depth)
    assert from_config_dict(config) == from_config_dict(shared)


def test_small_recipes_are_those_of_fashion_mnist():
    """Scripts that build their config from the small recipes train what the config file trains."""
    file = load_module(FILES["fashion_mnist"])
    for arg in ("tokenizer", "d3"):
        expected = file.get_config(arg)
        config = recipes.small_gray_config()
        if arg == "tokenizer":
            recipes.small_tokenizer(config)
        else:
            recipes.small_transformer(config, 3)
            config.optimizer.base_lr = 6e-3
            config.optimizer.warmup_steps = 100
        config.data = expected.data
        for key in ("scales", "channels", "multipliers", "vocab_size"):
            config.tokenizer[key] = expected.tokenizer[key]
        for key in ("steps", "ema", "eval_every", "eval_images"):
            config[key] = expected[key]
        assert from_config_dict(config) == from_config_dict(expected)


def test_small_gray_config_keeps_its_older_name():
    assert recipes.small_grey_config is recipes.small_gray_config


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_config_file_copied_elsewhere_gives_the_same_run(file, tmp_path):
    """Users copy a config to edit it, so that it may need no file beside it."""
    copied = load_module(Path(shutil.copy(file, tmp_path)))
    original = load_module(file)
    for arg in ("tokenizer", "d2", *getattr(original, "PRESETS", ())):
        assert from_config_dict(copied.get_config(arg)) == from_config_dict(
            original.get_config(arg)
        )


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_config_file_names_its_command_cost_and_expected_figure(file):
    """Each figure is measured, a bound or published, and says which."""
    text = load_module(file).__doc__
    for word in (f"--config configs/{file.name}", "cost", "expected"):
        assert word in text
    assert "measured" in text.lower() or "published" in text


def test_rivals_differ_from_fashion_mnist_in_their_objective_alone():
    """A comparison of objectives is one where all else is the same: next-scale prediction is the
    run of fashion_mnist.py, and each rival differs from it in its token maps and its own keys."""
    rivals, fashion = load_module(FILES["rivals"]), load_module(FILES["fashion_mnist"])
    for arg, expected in (("next_scale", "d3"), ("next_scale_d2", "d2"), ("tokenizer",) * 2):
        config = from_config_dict(rivals.get_config(arg))
        assert config == from_config_dict(fashion.get_config(expected))
    base = plain(from_config_dict(fashion.get_config("d3")))
    for name in rivals.OBJECTIVES:
        config = plain(from_config_dict(rivals.get_config(name)))
        different = {line.partition(":")[0] for line in differences(base, config)}
        assert different <= {"tokenizer.scales", "transformer.scales"} | {
            f"transformer.{key}" for key in ("objective", *objective_keys.USED_BY)
        }
        tokenizer = from_config_dict(rivals.get_config(f"tokenizer_{name}"))
        assert plain(tokenizer.tokenizer) == config["tokenizer"]
