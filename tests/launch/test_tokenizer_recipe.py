"""The comparison of tokenizer recipes: its variants are runs that train accepts, and its table has
the rows that there are."""

import json
from pathlib import Path

import pytest

from helpers.scripts import load_script
from var_jax.cli.args import read_config
from var_jax.config import idle_keys

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    return load_script("tokenizer_recipe")


def test_variants_are_runs_of_equal_length_that_differ_in_their_parts_alone(script):
    """Every flag is a key that has an effect; "all" is the two other sets of keys together."""
    variants = script.variants(400)
    assert variants["full"] == {}
    assert variants["all"] == {**variants["autoencoder"], **variants["discriminator"]}
    file = str(ROOT / script.CONFIG)
    for changes in variants.values():
        flags = [f"--config.{key}={value}" for key, value in changes.items()]
        config = read_config(file, ["--config.steps=400", *flags])
        idle_keys.refuse_flags(config, idle_keys.flag_keys(flags))
        assert config.steps == 400 and config.adversarial.start == 0.3
    assert config.discriminator_optimizer.warmup_steps == config.steps_of(config.adversarial.warmup)
    assert config.steps_of(config.adversarial.blur_fade) == 2 * config.steps_of(
        config.adversarial.warmup
    )


def test_table_has_the_mean_and_every_value_of_the_rows_there_are(script, tmp_path):
    """Two runs of one variant are averaged, and each value stands beside it."""
    for name, psnr in (("full_0", 20.0), ("full_1", 22.0), ("all_0", 23.0)):
        metrics = {"psnr": psnr, "ssim": 0.5, "perceptual": 0.1, "frechet_distance": 150.0}
        row = {
            "metrics": {key: {"value": value} for key, value in metrics.items()},
            "usage": {"scales": [{"used": 7}, {"used": 9}], "all": {"used": 1000}},
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(row))
    lines = script.table(tmp_path).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| full | 21.00 (20.00, 22.00) | 0.5000 (0.5000, 0.5000) |")
    assert lines[3].startswith("| all | 23.00 (23.00) |")
    assert lines[3].endswith("| 150.0 (150.0) | 7 (7) | 1000 (1000) |")
