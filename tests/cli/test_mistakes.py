"""A user's mistake is one line on stderr that names it, exit code 2, and nothing is written."""

import builtins
import errno
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from helpers import small
from reference import torch_writer
from var_jax.cli.main import main
from var_jax.io.torch_convert import write_torch

NOT_A_MODEL = "model directory"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Published files of a reference case: tokenizer.safetensors and transformer.safetensors."""
    directory = tmp_path_factory.mktemp("weights")
    write_torch(directory, *small.reference(small.CASES[0])[0].to_torch())
    return directory


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "small_run.py"
    file.write_text(small.CONFIG_FILE)
    return file


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Runs a command and gives its one line on stderr; `{out}` is where nothing may be written."""
    monkeypatch.setenv(
        "SLURM_NTASKS", "1"
    )  # alone: this process has used JAX, and cannot join others any more

    def run(*argv) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        code = main([str(a).replace("{out}", str(tmp_path / "out")) for a in argv])
        printed = capsys.readouterr()
        assert code == 2 and printed.out == ""
        assert printed.err.startswith("var-jax: ") and printed.err.count("\n") == 1, printed.err
        assert sorted(tmp_path.rglob("*")) == before
        return printed.err

    return run


def test_commands(refused):
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
def test_config_keys(refused, config_file, digits_dir, override, message):
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
            "from var_jax.config.train import default_config\ndef get_config(arg=''):\n    config = default_config()\n"
            "    config.stepz = 3\n",
            "",
            ["line 4", "unknown key 'stepz'"],
        ),
        (
            "from var_jax.config import recipes\ndef get_config(arg=''):\n    recipes.depth_of(arg)\n",
            ":depht=3",
            ["config argument 'depht=3'", "--config.depht=3"],
        ),
        (
            "from var_jax.config.train import default_config\ndef get_config(arg=''):\n    config = default_config()\n"
            "    config.init_from = 'hf://owner/name'\n    return config\n",
            "",
            ["init_from is 'hf://owner/name'"],
        ),
    ],
    ids=range(13),
)
def test_config_file_that_does_not_run(refused, tmp_path, source, arg, words):
    """One line of moderate length with the file, the place and the error, and no stack trace
    inside."""
    broken = tmp_path / "broken.py"
    broken.write_text(source)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    line = refused("train", "--config", f"{broken}{arg}", "--workdir", "{out}")
    sys.dont_write_bytecode = before
    assert all(word in line for word in words) and "Traceback" not in line and len(line) < 400
    assert "broken.py" in line or "init_from" in line


def test_config_file_that_is_not_there(refused, tmp_path, monkeypatch):
    """The line says where configs are: beside it under a close name, in the checkout that runs, or
    in a checkout."""
    (tmp_path / "digits.py").write_text("")
    train = ("train", "--workdir", "{out}", "--config")
    assert f"no config file '{tmp_path}/digit.py'; did you mean '{tmp_path}/digits.py'?" in refused(
        *train, tmp_path / "digit.py"
    )
    monkeypatch.chdir(tmp_path)
    assert "no config file 'configs/digits.py'; there is " in refused(*train, "configs/digits.py")
    monkeypatch.setattr("var_jax.cli.args.CHECKOUT", tmp_path)
    for command in (train, ("quickstart", *train[1:]), ("sweep", *train[1:])):
        line = refused(*command, "configs/digits.py")
        assert (
            "no config file 'configs/digits.py'" in line
            and "folder configs/ of var_jax's source checkout" in line
        )


def test_data_that_is_not_there(refused, config_file, tmp_path):
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


def test_a_transformer_needs_a_tokenizer(refused, config_file, digits_dir, tmp_path):
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


def test_scales_of_other_weights(refused, weights):
    convert = (
        "convert",
        "--tokenizer",
        weights / "tokenizer.safetensors",
        "--transformer",
        weights / "transformer.safetensors",
        "--out",
        "{out}",
        "--scales",
    )
    assert "scales is 1,2,3 (3 sizes); it must be 4 sizes" in refused(*convert, "1,2,3")
    assert "scales is 1,2,3,5 (39 tokens in all); it must be 30 tokens in all" in refused(
        *convert, "1,2,3,5"
    )
    assert "scale 2x2 follows 3x3" in refused(*convert, "1,3,2")
    assert "scale 'x' is not a size" in refused(*convert, "1,x")


def test_conversions_that_miss_something(refused, weights, model_dir):
    assert "--tokenizer and --scales is missing; it must be given" in refused(
        "convert", "--out", "{out}"
    )
    assert "--model is None" in refused("convert", "--to-torch", "--out", "{out}")
    assert "no such file" in refused(
        "convert", "--tokenizer", "none.pth", "--scales", "1,2", "--out", "{out}"
    )
    assert "misses encoder.conv_in.weight" in refused(
        "convert",
        "--tokenizer",
        weights / "transformer.safetensors",
        "--scales",
        "1,2,3,4",
        "--out",
        "{out}",
    )
    assert NOT_A_MODEL in refused(
        "convert", "--to-torch", "--model", weights / "none", "--out", "{out}"
    )


def test_a_pickle_that_would_run_code(refused, tmp_path):
    hostile, witness = tmp_path / "hostile.pth", tmp_path / "witness"
    torch_writer.write_zip(
        hostile, b"cos\nsystem\n(" + torch_writer.text(f"touch {witness}") + b"tR", {}
    )
    assert "os.system" in refused(
        "convert", "--tokenizer", hostile, "--scales", "1,2", "--out", "{out}"
    )
    assert not witness.exists()


def test_a_checkpoint_cut_short(refused, tmp_path, model_dir):
    whole, short = tmp_path / "whole.pth", tmp_path / "short.pth"
    torch_writer.save(whole, small.reference(small.CASES[0])[0].to_torch()[0])
    short.write_bytes(whole.read_bytes()[:5000])
    assert "short.pth" in refused(
        "convert", "--tokenizer", short, "--scales", "1,2,3,4", "--out", "{out}"
    )
    for name, size in (
        ("transformer.safetensors", 3000),
        ("tokenizer.safetensors", 5),
        ("model.json", 40),
    ):
        damaged = tmp_path / name.partition(".")[0]
        shutil.copytree(model_dir, damaged)
        (damaged / name).write_bytes((damaged / name).read_bytes()[:size])
        assert name in refused("sample", "--model", damaged, "--labels", "1", "--out", "{out}.png")
    (damaged / "model.json").write_text('{"format": 1, "tokenizer": {"chanels": 3}}')
    assert "model.tokenizer.chanels; did you mean 'channels'" in refused(
        "sample", "--model", damaged, "--labels", "1", "--out", "{out}.png"
    )
    (damaged / "model.json").write_text(
        (model_dir / "model.json").read_text().replace('"format": 1', '"format": 2')
    )
    assert "is of format 2, and this version reads 1 to 1; update var-jax" in refused(
        "sample", "--model", damaged, "--labels", "1", "--out", "{out}.png"
    )
    (damaged / "model.json").write_text("[]")
    assert "model.json" in refused(
        "sample", "--model", damaged, "--labels", "1", "--out", "{out}.png"
    )
    (damaged / "model.json").write_text(
        (model_dir / "model.json").read_text().replace('"depth": 2', '"depth": 3')
    )
    assert "transformer.safetensors" in refused(
        "sample", "--model", damaged, "--labels", "1", "--out", "{out}.png"
    )
    (damaged / "model.json").unlink()
    assert "holds no model" in refused(
        "sample", "--model", damaged, "--labels", "1", "--out", "{out}.png"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("--labels", "11"), "label is 11; it must be from 0 to 9 (10: no class)"),
        (("--labels", "0-30"), "label is 11"),
        (("--labels", "-1"), "--labels"),
        (("--labels", "one"), "'one' is not a class id"),
        (("--labels", ""), "--labels"),
        (("--labels", "3-1", "--num", "4"), "--labels '3-1'"),
        (("--labels", "0-9999999999"), "'0-9999999999' goes beyond every model's classes"),
        (
            ("--labels", "1", "--num", "9999999999"),
            "--num is 9999999999; it must be from 0 to 1000000",
        ),
        (("--labels", "1", "--cfg", "-1"), "cfg is -1.0"),
        (("--labels", "1", "--cfg", "nan"), "cfg is nan"),
        (("--labels", "1", "--top-p", "1.5"), "top_p is 1.5; it must be from 0 to 1"),
        (("--labels", "1", "--top-p", "-0.5"), "top_p is -0.5"),
        (("--labels", "1", "--top-k", "-3"), "top_k is -3"),
        (("--labels", "1", "--temperature", "0"), "temperature is 0.0"),
        (("--labels", "1", "--seed", "-1"), "seed is -1"),
        (("--labels", "1", "--num", "-1"), "--num is -1"),
    ],
)
def test_sampling_settings(refused, model_dir, settings, message):
    assert message in refused("sample", "--model", model_dir, "--out", "{out}.png", *settings)


def test_a_tokenizer_alone_does_not_sample(refused, model_dir, tmp_path):
    from var_jax import Pipeline
    from var_jax.config.model import ModelConfig

    whole = small.pipeline()
    Pipeline(ModelConfig(small.TOKENIZER), {"tokenizer": whole.params["tokenizer"]}).save(
        tmp_path / "alone"
    )
    assert "a tokenizer alone; it must be one with a transformer" in refused(
        "sample", "--model", tmp_path / "alone", "--labels", "1", "--out", "{out}.png"
    )


@pytest.fixture
def image(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)).save(
        tmp_path / "image.png"
    )
    return tmp_path / "image.png"


def test_boxes_and_images(refused, model_dir, image, tmp_path):
    edit = ("edit", "--model", model_dir, "--out", "{out}.png", "--image")
    for box in ("0,0,1", "a,b,c,d", "0.5,0,0.2,1", "0,0,1,1.5", "nan,0,1,1"):
        assert f"--box '{box}'" in refused(*edit, image, "--box", box)
    whole = "at least one token of the 3x4 grid, 1/3 of the height by 1/4 of the width"
    for box in ("0.2,0.3,0.25,0.35", "0,0,1,0.05"):
        line = refused(*edit, image, "--box", box)
        assert (
            f"--box '{box}' is less than a token, so that nothing is generated; it must be {whole}"
            in line
        )
        line = refused(*edit, image, "--box", box, "--outpaint")
        assert (
            f"--box '{box}' is less than a token, so that nothing is kept; it must be {whole}"
            in line
        )
    line = refused(*edit, image, "--box", "0,0,1,1", "--outpaint")
    assert "the whole image, so that nothing is generated; it must be smaller" in line
    mask = np.zeros((6, 8), np.uint8)
    mask[2, 3] = 255
    Image.fromarray(mask).save(tmp_path / "dot.png")
    for region in ((), ("--outpaint",)):
        assert "dot.png is less than a token" in refused(
            *edit, image, "--mask", tmp_path / "dot.png", *region
        )
    assert "one of the arguments --mask --box --keep-scales is required" in refused(*edit, image)
    assert "label is 12" in refused(*edit, image, "--box", "0,0,1,1", "--label", "12")
    assert "no image file" in refused(*edit, tmp_path / "none.png", "--box", "0,0,1,1")
    assert "no image file" in refused(*edit, image, "--mask", tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not an image")
    assert "text.png does not decode" in refused(*edit, tmp_path / "text.png", "--box", "0,0,1,1")
    (tmp_path / "short.png").write_bytes(image.read_bytes()[:60])
    assert "short.png does not decode" in refused(*edit, tmp_path / "short.png", "--box", "0,0,1,1")
    reconstruct = ("reconstruct", "--model", model_dir, "--out", "{out}.png", "--images")
    assert "no files match" in refused(*reconstruct, tmp_path / "*.jpg")
    assert "does not decode" in refused(*reconstruct, tmp_path / "s*.png")
    Image.new("L", (30, 20)).save(tmp_path / "large.png")
    assert "large.png has 20 x 30 pixels" in refused(
        *reconstruct, tmp_path / "large.png", "--resize", "pad"
    )


def test_places_that_cannot_be_written(
    refused, model_dir, weights, config_file, digits_dir, image, tmp_path
):
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


def test_a_bucket_without_its_library(refused, model_dir, config_file, digits_dir, monkeypatch):
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


def test_a_picture_needs_a_files_name(refused, image, tmp_path, monkeypatch):
    """Refused before any work: there is not even a model."""
    monkeypatch.chdir(tmp_path)
    edit = ("edit", "--image", image, "--box", "0,0,1,1")  # for which a directory is fine
    for command in (("sample", "--labels", "1"), edit, ("reconstruct", "--images", image)):
        for out in ("",) if command is edit else ("", ".", "..", tmp_path):
            line = refused(*command, "--model", "none", "--out", out)
            assert "cannot write the picture" in line and "it is a directory; name a file" in line


def test_a_read_only_workdir(refused, config_file, digits_dir, model_dir, tmp_path, monkeypatch):
    """In process, because root may write anywhere: what lies below the workdir can be neither made
    nor opened."""
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


def test_a_profile_window(refused, config_file):
    train = ("train", "--config", config_file, "--workdir", "{out}", "--profile")
    for window in ("5", "0:3", "a:b", "3:"):
        assert "it must be STEP:COUNT, such as 100:5" in refused(*train, window)
