"""`var-jax config`: one line per key, with the value that a run has, its meaning and its
default."""

import json

import pytest

from helpers import small
from var_jax.cli import config
from var_jax.cli.main import main
from var_jax.config.strict import plain
from var_jax.config.train import default_config


@pytest.fixture
def printed(tmp_path, capsys):
    path = tmp_path / "small.py"
    path.write_text(small.CONFIG_FILE)

    def run(arg: str, *args) -> dict[str, str]:
        """{key: the rest of its line}, after `main` has returned 0."""
        assert main(["config", f"{path}{arg}", *args]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert all(line.startswith("#") or " = " in line for line in lines if line)
        return dict(line.split(" = ", 1) for line in lines if " = " in line)

    return run


def test_config_prints_every_key(printed):
    """Values that follow from others are filled in, as in the run: a width of 0 is 64 per block by
    default."""
    keys = printed(":d2", "--config.optimizer.base_lr=0.25", "--config.transformer.width=0")
    assert {
        "steps",
        "data.name",
        "tokenizer.scales",
        "transformer.depth",
        "mesh.data",
    } <= keys.keys()
    assert (
        keys["optimizer.base_lr"].startswith("0.25 ")
        and "(default 0.0001)" in keys["optimizer.base_lr"]
    )
    assert (
        keys["transformer.width"].startswith("128 ") and "(default 0)" in keys["transformer.width"]
    )
    assert (
        "# which of the two models is trained" in keys["stage"] and "'transformer'" in keys["stage"]
    )


def test_config_diff(printed):
    """The command prints only keys that the file sets to another value than the default; values
    that follow from others are left out."""
    keys = printed(
        ":tokenizer",
        "--diff",
        "--config.seed=7",
        "--config.data.resize=crop",
        "--config.transformer.width=0",
    )
    assert keys["seed"].startswith("7 ") and keys["steps"].startswith("2 ")
    assert (
        not {"data.resize", "transformer.width", "transformer.init_std", "mesh.data"} & keys.keys()
    )


def test_config_takes_a_frozen_config(tmp_path, capsys):
    """ml_collections has two kinds of config; a file that returns the immutable one is as right,
    and its keys are overridden as those of the other."""
    path = tmp_path / "small.py"
    path.write_text(
        f"{small.CONFIG_FILE}\n\n_mutable = get_config\n\n\ndef get_config(arg='d2'):\n"
        "    from ml_collections import FrozenConfigDict\n\n"
        "    return FrozenConfigDict(_mutable(arg))\n"
    )
    assert main(["config", f"{path}:d2", "--config.steps=7", "--diff"]) == 0
    assert "steps = 7 " in capsys.readouterr().out


def test_config_without_a_file_prints_every_key(capsys):
    """There are as many lines as keys in the default config, and none differs from its default."""
    assert main(["config"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " = " in line]
    flat = json.dumps(plain(default_config().to_dict()))
    assert len(lines) == flat.count(":") - flat.count("{") + 1
    assert main(["config", "--diff"]) == 0
    assert capsys.readouterr().out == "# every key has its default value\n"


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_lines_wrap_meanings_to_the_terminal(width):
    """No line is wider than the terminal, and the words are those of the unwrapped lines: what is
    wrapped is a comment on every line, and an assignment keeps its first line."""
    values = plain(default_config().to_dict())
    unwrapped = config.lines(values, values, values)
    wrapped = config.lines(values, values, values, width=width)
    assert max(map(len, wrapped)) <= width < max(map(len, unwrapped))
    assert [line.split()[0] for line in wrapped if " = " in line.split("#")[0]] == [
        line.split()[0] for line in unwrapped if " = " in line.split("#")[0]
    ]
    words = [line.replace("#", "").split() for line in (" ".join(wrapped), " ".join(unwrapped))]
    assert words[0] == words[1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["none.py"], "no config file 'none.py'"),
        (["--config", "none.py"], "no config file 'none.py'"),
        (["one.py", "--config", "two.py"], "both 'one.py' and --config 'two.py' are given"),
        (["--config.steps=3"], "--config.steps=3 has no config to override"),
    ],
)
def test_config_names_mistakes(args, words, capsys):
    """One line has the file or the override that is wrong."""
    assert main(["config", *args]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_train_help_points_to_config(capsys):
    """The help of `train` does not list the config's keys, and names the command that does."""
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "var-jax config FILE[:ARG]" in " ".join(capsys.readouterr().out.split())
