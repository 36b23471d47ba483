"""A user's mistake is one line on stderr that names it, exit code 2, and nothing is written:
commands, configs, data and places to write."""

import builtins
import errno
import os
import sys

import pytest


def test_main_names_commands_and_arguments_that_it_does_not_know(refused):
    """An unknown command comes with the closest one, and missing or unknown arguments are named."""
    assert "unknown command 'smaple'; did you mean 'sample'?" in refused("smaple")
    assert "the following arguments are required: --model, --labels, --out" in refused("sample")
    sample = ("sample", "--model", "m", "--labels", "1", "--out", "o")
    assert "unrecognized argument --colour" in refused(*sample, "--colour")
    assert "--cfg: invalid float value: 'much'" in refused(*sample, "--cfg", "much")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.transformer.dept=3", "unknown key 'dept'; did you mean \"depth\""),
        ("--config.optimizr.base_lr=3", "unknown key 'optimizr'; did you mean \"optimizer\""),
        ("--config.xyzzy=3", "unknown key 'xyzzy'"),
        ("--config.steps=many", "--config.steps=many: invalid literal"),
        ("--config.steps=0", "steps is 0; it must be at least 1"),
        ("--config.data.name=digist", "unknown data set 'digist'; did you mean 'digits'"),
        ("--config.stage=both", "config.stage is 'both'"),
        ("--steps=3", "unrecognized argument --steps=3"),
    ],
)
def test_train_refuses_config_keys_by_name(refused, config_file, digits_dir, override, message):
    """The line has the key, what is wrong with its value and what would be right."""
    line = refused(
        "train",
        "--config",
        f"{config_file}:tokenizer",
        "--workdir",
        "{out}",
        *([f"--config.data.data_dir={digits_dir}"] * (override != "--steps=3")),
        override,
    )
    assert message in line


@pytest.mark.parametrize(
    ("source", "arg", "words"),
    [
        (
            "def get_config(arg=''):\n    return 1 / 0\n",
            "",
            ["line 2", "ZeroDivisionError: division by zero"],
        ),
        (
            "def get_config(arg=''):\n    raise ValueError('a\\nb')\n",
            "",
            ["line 2", "ValueError: a b"],
        ),
        ("def get_config(:\n", "", ["SyntaxError", "line 1"]),
        ("import not_a_module\n", "", ["line 1", "No module named 'not_a_module'"]),
        ("x = 1\n", "", ["has no get_config()"]),
        ("get_config = 3\n", "", ["has int as its get_config()"]),
        ("import sys\nsys.exit(3)\n", "", ["line 2", "SystemExit: 3"]),
        ("def get_config(arg=''):\n    return {}['steps']\n", "", ["line 2", "KeyError: 'steps'"]),
        ("def get_config():\n    return None\n", ":d2", ["get_config('d2')", "TypeError"]),
        (
            "def get_config(arg=''):\n    config = {}\n",
            "",
            ["get_config returns NoneType; it must return a ConfigDict"],
        ),
        (
            "from var_jax.config.train import default_config\ndef get_config(arg=''):\n"
            "    config = default_config()\n"
            "    config.stepz = 3\n",
            "",
            ["line 4", "unknown key 'stepz'"],
        ),
        (
            "from var_jax.config import recipes\ndef get_config(arg=''):\n"
            "    recipes.depth_of(arg)\n",
            ":depht=3",
            ["config argument 'depht=3'", "--config.depht=3"],
        ),
        (
            "from var_jax.config.train import default_config\ndef get_config(arg=''):\n"
            "    config = default_config()\n"
            "    config.branch_from = 'hf://owner/name'\n    return config\n",
            "",
            ["branch_from is 'hf://owner/name'"],
        ),
    ],
    ids=range(13),
)
def test_train_names_the_line_of_a_config_file_that_does_not_run(
    refused, tmp_path, source, arg, words
):
    """One line of moderate length with the file, the place and the error, and no stack trace
    inside."""
    broken = tmp_path / "broken.py"
    broken.write_text(source)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    line = refused("train", "--config", f"{broken}{arg}", "--workdir", "{out}")
    sys.dont_write_bytecode = before
    assert all(word in line for word in words) and "Traceback" not in line and len(line) < 400
    assert "broken.py" in line or "branch_from" in line


def test_train_names_a_config_file_that_is_not_there(refused, tmp_path, monkeypatch):
    """The line names a close name beside it, or how a config that comes with the package is
    given."""
    (tmp_path / "digits.py").write_text("")
    train = ("train", "--workdir", "{out}", "--config")
    assert f"no config file '{tmp_path}/digit.py'; did you mean '{tmp_path}/digits.py'?" in refused(
        *train, tmp_path / "digit.py"
    )
    monkeypatch.chdir(tmp_path)
    assert "given without a path, as 'fashion_mnist'" in refused(*train, "a/fashion_mnist.py:d2")
    assert "did you mean 'fashion_mnist'?" in refused(*train, "fashion_mnis")


def test_train_names_data_that_is_not_there(refused, config_file, tmp_path):
    """The line has the path of the data set's source."""
    for name in ("image_folder", "fashion_mnist_idx"):
        assert str(tmp_path / "none") in refused(
            "train",
            "--config",
            f"{config_file}:tokenizer",
            "--workdir",
            "{out}",
            f"--config.data.name={name}",
            f"--config.data.source_dir={tmp_path / 'none'}",
            f"--config.data.data_dir={tmp_path}",
        )


def test_train_asks_for_the_tokenizer_of_a_transformer(refused, config_file, digits_dir, tmp_path):
    """The line has the key of the tokenizer's directory, whether it is empty or names none."""
    train = (
        "train",
        "--config",
        config_file,
        "--workdir",
        "{out}",
        f"--config.data.data_dir={digits_dir}",
    )
    assert "tokenizer_dir is ''; it must be the model directory" in refused(*train)
    assert "no model directory" in refused(*train, f"--config.tokenizer_dir={tmp_path / 'none'}")


@pytest.mark.long
def test_commands_name_places_that_cannot_be_written(
    refused, model_dir, weights, config_file, digits_dir, image, tmp_path
):
    """A file where a directory should be is named by every command that writes, and is left as it
    was."""
    (tmp_path / "file").write_text("mine")
    inside = tmp_path / "file" / "out"
    assert "cannot write" in refused(
        "sample", "--model", model_dir, "--labels", "1", "--out", f"{inside}.png"
    )
    assert "cannot write" in refused(
        "reconstruct", "--model", model_dir, "--images", image, "--out", f"{inside}.png"
    )
    convert = (
        "convert",
        "--tokenizer",
        weights / "tokenizer.safetensors",
        "--scales",
        "1,2,3,4",
        "--out",
    )
    assert "cannot write" in refused(*convert, inside)
    assert "cannot write" in refused(*convert, tmp_path / "file")
    assert "cannot write" in refused(
        "convert", "--to-torch", "--model", model_dir, "--out", tmp_path / "file"
    )
    train = (
        "train",
        "--config",
        f"{config_file}:tokenizer",
        f"--config.data.data_dir={digits_dir}",
        f"--config.init_from={model_dir}",
        "--workdir",
    )
    assert "cannot write" in refused(*train, tmp_path / "file")
    assert "cannot write" in refused(*train, inside)
    assert (tmp_path / "file").read_text() == "mine"


def test_commands_name_the_library_that_a_bucket_needs(
    refused, model_dir, config_file, digits_dir, monkeypatch
):
    """Without gcsfs, a path in a bucket gives the command that installs it."""
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for command in (
        ("sample", "--model", "gs://bucket/model", "--labels", "1", "--out", "{out}.png"),
        ("sample", "--model", model_dir, "--labels", "1", "--out", "gs://bucket/a.png"),
        (
            "train",
            "--config",
            f"{config_file}:tokenizer",
            f"--config.data.data_dir={digits_dir}",
            "--workdir",
            "gs://bucket/run",
        ),
    ):
        assert "needs the package gcsfs; install it by pip install 'var-jax[gcs]'" in refused(
            *command
        )


def test_commands_refuse_a_directory_as_a_picture(refused, image, tmp_path, monkeypatch):
    """A directory is refused as a picture before any work: there is not even a model."""
    monkeypatch.chdir(tmp_path)
    edit = ("edit", "--image", image, "--box", "0,0,1,1")  # for which a directory is fine
    for command in (("sample", "--labels", "1"), edit, ("reconstruct", "--images", image)):
        for out in ("",) if command is edit else ("", ".", "..", tmp_path):
            line = refused(*command, "--model", "none", "--out", out)
            assert "cannot write the picture" in line and "it is a directory; name a file" in line


@pytest.mark.long
def test_train_refuses_a_read_only_workdir(
    refused, config_file, digits_dir, model_dir, tmp_path, monkeypatch
):
    """The file system is replaced in this process, because root may write anywhere: files below the
    workdir can be neither created nor opened."""
    there = tmp_path / "there"
    there.mkdir()

    def guarded(function, writes):
        def call(path, *args, **kwargs):
            if isinstance(path, str | os.PathLike) and writes(*args, **kwargs):
                for workdir in (tmp_path / "new", there):
                    if str(path).startswith(str(workdir)) and str(path) != str(there):
                        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return function(path, *args, **kwargs)

        return call

    monkeypatch.setattr(os, "mkdir", guarded(os.mkdir, lambda *args, **kwargs: True))
    monkeypatch.setattr(
        builtins, "open", guarded(open, lambda mode="r", *args, **kwargs: mode[0] in "wax")
    )
    for workdir in ("new", "there"):
        line = refused(
            "train",
            "--config",
            f"{config_file}:tokenizer",
            f"--config.data.data_dir={digits_dir}",
            f"--config.init_from={model_dir}",
            "--workdir",
            tmp_path / workdir,
        )
        assert f"cannot write the workdir {tmp_path / workdir}: Read-only file system" in line


def test_train_refuses_a_malformed_profile_window(refused, config_file):
    """The line has the form that --profile takes."""
    train = ("train", "--config", config_file, "--workdir", "{out}", "--profile")
    for window in ("5", "0:3", "a:b", "3:"):
        assert "it must be STEP:COUNT, such as 100:5" in refused(*train, window)
