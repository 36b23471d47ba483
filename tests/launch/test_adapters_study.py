"""The comparison of ways to teach a new class: its runs are such as train accepts, and the rate is
chosen by the new class alone."""

import json
from pathlib import Path

import pytest

from helpers.scripts import load_script
from var_jax.cli.args import read_config
from var_jax.config import idle_keys

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    return load_script("adapters_study")


def write_row(out: Path, method: str, rate: float, seed: int, distance: float):
    metrics = {"agreement": {"value": 0.5}, "frechet_distance": {"value": distance}}
    row = {
        "base_lr": rate,
        "rate": rate / 32,
        "seed": seed,
        "steps": 200,
        "cpu_seconds_of_training": 30.0,
        "bytes": 1000,
        "new": metrics,
        "others": metrics,
    }
    (out / f"{method}_{rate:g}_{seed}.json").write_text(json.dumps(row))


def test_train_method_gives_flags_that_have_an_effect(script, monkeypatch, tmp_path):
    """All methods take as many steps of as many images at constant rates, with the same average,
    from the model of nine classes or from the same with a row more."""
    configs = {}

    def record(argv: list[str]) -> int:
        _, _, config, *flags, _, workdir = argv
        configs[Path(workdir).name] = read_config(str(ROOT / config), flags)
        idle_keys.refuse_flags(configs[Path(workdir).name], idle_keys.flag_keys(flags))
        return 0

    monkeypatch.setattr(script.cli, "main", record)
    for method, rates in script.RATES.items():
        script.train_method(tmp_path, method, rates[0], 1, steps=200)
    assert set(configs) == {f"{method}_{rates[0]:g}_1" for method, rates in script.RATES.items()}
    compared = [
        (
            config.steps,
            config.batch_size,
            config.ema,
            config.seed,
            config.data,
            config.optimizer.clip,
        )
        for config in configs.values()
    ]
    assert compared == [compared[0]] * 3
    for config in configs.values():
        assert config.optimizer.schedule == "constant"
        assert config.init_from == str(tmp_path / "grown") or (
            config.adapter.base == str(tmp_path / "base") and config.adapter.classes == script.NEW
        )


def test_new_class_is_the_last_of_a_folder(script):
    """Labels of a folder of all classes are then those of the model with a row for the new one."""
    assert sorted(script.CLASSES) == [*script.OTHERS, script.NEW]


def test_best_rate_has_the_nearest_samples_with_the_first_seed(script, tmp_path):
    """Later seeds do not choose; the table has a line for each rate, with the mean over seeds."""
    for rate, seed, distance in ((0.064, 0, 300.0), (0.256, 0, 250.0), (0.064, 1, 100.0)):
        write_row(tmp_path, "lora", rate, seed, distance)
    assert script.best_rate(tmp_path, "lora") == 0.256
    lines = script.table(tmp_path).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| LoRA | 0.002 | 0.500 (0.500, 0.500) | 200 (300, 100) |")
    assert "| LoRA | 0.008 | 0.500 | 250 |" in lines[3]
