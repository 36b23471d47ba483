"""Sweeps of objectives: equal compute, the recipes of single runs, and tokenizers of their kind."""

from pathlib import Path

import pytest

from helpers.scripts import load_module
from var_jax.config.strict import plain
from var_jax.config.train import from_config_dict
from var_jax.models import flops

CONFIGS = Path(__file__).parents[2] / "configs"
RIVALS, IMAGENET = (load_module(CONFIGS / f"{n}.py") for n in ("rivals", "imagenet256_rivals"))


def runs(module, arg):
    """Returns the sweep's runs: its base with the overrides of each."""
    configs = []
    for overrides in module.get_sweep(arg):
        config = module.get_config(arg)
        config.update_from_flattened_dict(overrides)
        configs.append(from_config_dict(config))
    return configs


def compute(config):
    return flops.train_flops_per_image(config.transformer) * config.batch_size * config.steps


@pytest.mark.parametrize(("name", "factors"), [("rivals_fashion", 1), ("rivals_fashion_lr", 5)])
def test_fashion_sweeps_have_equal_compute(name, factors):
    """Every run has the sweep's FLOPs but for half a step, and every objective of the file is there
    at each learning rate."""
    configs = runs(RIVALS, name)
    goal = RIVALS.SWEEP_FLOPS * (1 if factors == 1 else RIVALS.LR_SHARE)
    for config in configs:
        assert compute(config) == pytest.approx(goal, abs=0.51 * compute(config) / config.steps)
    kinds = [(c.transformer.objective, c.transformer.order) for c in configs]
    rates = {(kind, c.optimizer.base_lr) for kind, c in zip(kinds, configs, strict=True)}
    assert len(configs) == len(rates) == factors * len(RIVALS.OBJECTIVES)


def test_fashion_sweep_differs_from_single_runs_in_length_alone():
    """A run of the sweep is the file's run of its objective, but for steps, warm-up and the time of
    its evaluation, so that what holds of the one holds of the other."""
    for name, config in zip(RIVALS.OBJECTIVES, runs(RIVALS, "rivals_fashion"), strict=True):
        single = plain(from_config_dict(RIVALS.get_config(name)))
        swept = plain(config)
        for values in (single, swept):
            del values["steps"], values["eval_every"], values["optimizer"]["warmup_steps"]
        assert swept == single


def test_sweeps_name_the_tokenizer_of_each_objective():
    """Below the directory of the argument, single maps have one tokenizer and all others that of
    next-scale prediction; on ImageNet each recipe has its own. The base has none."""
    configs = runs(RIVALS, "rivals_fashion:gs://bucket/t/")
    kinds = {(str(c.tokenizer.scales), c.tokenizer_dir) for c in configs}
    assert kinds == {
        ("8", "gs://bucket/t/tokenizer_next_token"),
        ("1,2,3,4,6,8", "gs://bucket/t/tokenizer_next_scale"),
    }
    names = [c.tokenizer_dir.rpartition("/tokenizer_")[2] for c in runs(IMAGENET, "rivals:t")]
    assert names == ["next_scale"] * 4 + list(IMAGENET.ARGUMENTS)
    assert RIVALS.get_config("rivals_fashion:t").tokenizer_dir == ""


def test_imagenet_sweep_has_the_published_recipes():
    """A run of the sweep is the run of its argument; those of next-scale prediction are the runs of
    configs/imagenet256.py."""
    configs = [plain(config) for config in runs(IMAGENET, "rivals")]
    own = load_module(CONFIGS / "imagenet256.py")
    singles = [own.get_config(f"d{depth}") for depth in IMAGENET.NEXT_SCALE_DEPTHS]
    singles += [IMAGENET.get_config(name) for name in IMAGENET.ARGUMENTS]
    assert configs == [plain(from_config_dict(single)) for single in singles]
