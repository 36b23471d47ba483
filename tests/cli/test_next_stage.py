"""The config of the transformer that a finished tokenizer's run proposes."""

import pytest

from var_jax.cli.args import read_config
from var_jax.cli.next_stage import config_flags

MAP = "--config.tokenizer.scales=8"
NEXT_TOKEN = "--config.transformer.objective=next_token"
KL = "--config.tokenizer.codes=kl"
OWN = """
from var_jax.config.train import default_config

def get_config(arg="d4"):
    config = default_config()
    config.stage = arg if arg == "tokenizer" else "transformer"
    config.transformer.depth = 2 if arg == "tokenizer" else int(arg.removeprefix("d"))
    return config
"""


@pytest.mark.parametrize(
    ("file", "flags", "following", "more"),
    [
        ("digits:tokenizer", [], "digits", []),
        ("digits:tokenizer_map", [], "digits:next_token", []),
        ("digits:tokenizer_map", [KL], "digits:diffusion", []),
        ("rivals:tokenizer", [], "rivals", []),
        ("rivals:tokenizer_next_scale", [], "rivals:next_scale", []),
        ("rivals:tokenizer_next_token", [], "rivals:next_token", []),
        ("rivals:tokenizer_masked", [], "rivals:masked", []),
        ("rivals:tokenizer_diffusion", [], "rivals:diffusion", []),
        ("ablation:tokenizer", [], "ablation", []),
        ("ablation:tokenizer_next_token", [], "ablation:next_token", []),
        ("fashion_mnist:tokenizer1024_full", [], "fashion_mnist", []),
        ("fashion_mnist:tokenizer", [MAP], "fashion_mnist", [NEXT_TOKEN, MAP]),
        ("emoji:tokenizer", [], "emoji", []),
        ("imagenet256:tokenizer", [], "imagenet256", []),
        ("imagenet512:tokenizer", [], "imagenet512", []),
        ("openimages:tokenizer", [], "openimages", []),
        ("scaling:tokenizer", [], "scaling", []),
    ],
)
def test_config_flags_of_the_configs(file, flags, following, more):
    """The proposed config is a transformer's, for tokens of the tokenizer's kind: one map goes to
    an objective over one map, features without codes to diffusion."""
    config = read_config(file, flags)
    assert config_flags(config, file, flags) == (following, more)
    run = read_config(following, more).with_tokenizer(config.tokenizer)
    assert run.stage == "transformer"


def test_config_flags_of_a_file_of_ones_own(tmp_path):
    """Flags of the data stay, others go. What stands behind "tokenizer_" is not read as an argument
    unless it names an objective: here it would be a depth of 64."""
    file = tmp_path / "own.py"
    file.write_text(OWN)
    flags = ["--config.data.resize=stretch", "--config.steps=3"]
    config = read_config(f"{file}:tokenizer", flags)
    assert config_flags(config, f"{file}:tokenizer_64", flags) == (str(file), flags[:1])


def test_config_flags_of_a_file_that_is_gone(tmp_path):
    """A run that is done says so although its config file was removed meanwhile."""
    config = read_config("digits:tokenizer")
    file = str(tmp_path / "gone.py")
    assert config_flags(config, f"{file}:tokenizer", []) == (file, [])
