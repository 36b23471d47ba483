"""Configs as commands read them: files, flags, and the sizes of the models and data they name."""

from pathlib import Path

import pytest

from helpers import small
from var_jax.cli.args import read_config, read_sized_config
from var_jax.errors import UserError


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(small.CONFIG_FILE)
    return str(path)


def test_sized_config_has_the_tokenizer_that_it_reads(config_file, model_dir):
    """A file that describes another tokenizer than `tokenizer_dir` holds does not count: `aot` and
    `bench` would report on a model that `train` never makes."""
    changed = small.CONFIG_FILE.replace("vocab_size=16", "vocab_size=8")
    assert changed != small.CONFIG_FILE
    Path(config_file).write_text(changed)
    flags = [f"--config.tokenizer_dir={model_dir}"]
    assert read_config(config_file, flags).tokenizer.vocab_size == 8
    sized = read_sized_config(config_file, flags)
    assert sized.tokenizer == small.TOKENIZER and sized.transformer.vocab_size == 16
    assert read_sized_config(config_file).transformer.vocab_size == 8


@pytest.mark.parametrize("value", ["scales=1,2", "vocab_size=8", "dtype=bfloat16"])
def test_sized_config_refuses_flags_that_the_tokenizer_overrules(config_file, model_dir, value):
    """The tokenizer's sizes replace these keys, so that without the refusal a flag would be ignored
    silently."""
    flags = [f"--config.tokenizer_dir={model_dir}", f"--config.tokenizer.{value}"]
    with pytest.raises(UserError, match=f"tokenizer.{value.replace('=', ' is ')}; the tokenizer"):
        read_sized_config(config_file, flags)
    same = [flags[0], f"--config.tokenizer.vocab_size={small.TOKENIZER.vocab_size}"]
    assert read_sized_config(config_file, same).tokenizer == small.TOKENIZER
