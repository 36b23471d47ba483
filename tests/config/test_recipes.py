"""Config files against the recipes that scripts share, and as files that users copy."""

import dataclasses
import itertools
import shutil
from pathlib import Path

import jax
import pytest

from helpers.scripts import load_module
from var_jax.config import objective_keys, recipes
from var_jax.config.strict import differences, plain
from var_jax.config.train import from_config_dict
from var_jax.models import flops, init

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
    """The numbers of the file are those of the recipe that scripts use, but for the data's name and
    the scales."""
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
    """Scripts of users may call it by the name of earlier versions."""
    assert recipes.small_grey_config is recipes.small_gray_config


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_config_file_copied_elsewhere_gives_the_same_run(file, tmp_path):
    """Users copy a config to edit it, so that it may need no file beside it."""
    copied = load_module(Path(shutil.copy(file, tmp_path)))
    original = load_module(file)
    if file.stem == "refiner":  # of a model that is there already, without arguments
        assert from_config_dict(copied.get_config()) == from_config_dict(original.get_config())
        return
    # Those of adapters are kinds: their model is there already; one file has sweeps alone.
    both_stages = () if file.stem == "scaling_fashion" else ("tokenizer", "d2")
    arguments = getattr(original, "KINDS", getattr(original, "ARGUMENTS", both_stages))
    for arg in (*arguments, *getattr(original, "PRESETS", ())):
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


def test_ablation_changes_one_thing_per_rung():
    """From each rung to the next either one thing of the config differs or one of the sampling, by
    the whole plain configs: the first step is that of the token maps and their prediction, the last
    that of the size. The rung of QK-norm is the run of fashion_mnist.py, but shorter."""
    file = load_module(FILES["ablation"])
    changes = {
        "next_scale": {"tokenizer.scales", "transformer.scales", "transformer.objective"},
        "adaln": {"transformer.class_conditioning"},
        "top_k": {"sampling.top_k"},
        "cfg": {"sampling.cfg"},
        "qk_norm": {"transformer.qk_norm"},
        "larger": {f"transformer.{name}" for name in ("depth", "width", "heads", "init_std")},
    }
    rungs = {
        name: {
            **plain(from_config_dict(file.get_config(rung.argument))),
            "sampling": rung.sampling,
        }
        for name, rung in file.LADDER.items()
    }
    assert [*rungs] == ["next_token", *changes]
    for (_, before), (name, after) in itertools.pairwise(rungs.items()):
        different = {line.partition(":")[0] for line in differences(before, after)}
        assert different == changes[name], name
    fashion = load_module(FILES["fashion_mnist"])
    for arg, own in (("d2", "qk_norm"), ("d3", "qk_norm_d3"), ("tokenizer", "tokenizer")):
        expected = from_config_dict(fashion.get_config(arg))
        changed = {} if arg == "tokenizer" else {"steps": 600, "eval_every": 600}
        assert from_config_dict(file.get_config(own)) == dataclasses.replace(expected, **changed)
    single = from_config_dict(file.get_config("tokenizer_next_token"))
    assert plain(single.tokenizer) == rungs["next_token"]["tokenizer"]


@pytest.mark.parametrize(
    ("name", "total"), [("llamagen_xxl", "1,412,121,088"), ("dit_xl_2", "674,834,728")]
)
def test_published_rivals_have_the_sizes_of_their_docstring(name, total):
    """The network's shapes are counted; DiT's own number has 256 fixed places of width 1152 more
    and no statistics of the latents' four channels."""
    file = load_module(FILES["imagenet256_rivals"])
    shapes = init.param_shapes(from_config_dict(file.get_config(name)).transformer)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert f"{count:,}" == total and total in file.__doc__
    assert name != "dit_xl_2" or count + 256 * 1152 - 2 * 4 == 675_129_632


def test_published_maskgit_differs_by_named_parts():
    """MaskGIT has no AdaLN, and normalizes with a learned scale and shift twice in a block, before
    the blocks and in its head, which has a linear of its own before the tied table; its table has
    the classes beside the codes, and its keys have biases. Its place for the class is as large as
    our row for "no class". The 227M that the paper states are 54.5M more than its released config
    has, and are not explained by it: the config's docstring says so."""
    file = load_module(FILES["imagenet256_rivals"])
    config = from_config_dict(file.get_config("maskgit")).transformer
    w, depth, codes, classes = config.width, config.depth, 1024, 1000
    block = 4 * (w**2 + w) + (2 * 4 * w**2 + 4 * w + w) + 2 * 2 * w
    table = codes + classes + 1
    maskgit = table * w + 257 * w + 2 * w + depth * block + (w**2 + w + 2 * w) + table
    assert maskgit == 172_457_193 and f"{maskgit:,}" in file.__doc__

    adaln = depth * 6 * (w**2 + w) + 2 * (w**2 + w)
    norms = 2 * 2 * w * depth + 2 * w + 2 * w
    head = (w**2 + w + table) - (w + 1) * codes
    key_biases = depth * w
    changed = flops.param_count(config)["total"] - adaln + norms + head + key_biases
    assert changed == maskgit


def test_digits_rivals_are_the_objectives_of_their_arguments():
    """All learn the same digits; next-token and masked prediction have a tokenizer of one map."""
    digits = load_module(FILES["digits"])
    for name in digits.RIVALS:
        config = from_config_dict(digits.get_config(name))
        tokenizer = "tokenizer" if name == "diffusion" else "tokenizer_map"
        assert config.transformer.objective == name
        assert config.tokenizer == from_config_dict(digits.get_config(tokenizer)).tokenizer
        assert config.data == from_config_dict(digits.get_config("d2")).data
