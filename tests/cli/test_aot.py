"""`var-jax aot`: mistakes are found before anything is compiled, and steps that are saved."""

import json
import os
import subprocess
import sys

import pytest

from helpers import small
from helpers.runs import records
from var_jax.cli.main import main
from var_jax.io import executable_file
from var_jax.train.program import Program


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--topology", "v5e"],
            "--topology is v5e; it must be a chip and the slice's shape, such as v5e:16x16",
        ),
        (["--topology", "v5x:4x4"], "unknown chip v5x"),
        (["--topology", "v5e:2x2", "--images", "0"], "--images is 0; it must be at least 1"),
        (["--topology", "v5e:2x2", "--json", "nowhere/a.json"], "in a directory that exists"),
        (["--topology", "v5e:2x2", "--step", "serve"], "invalid choice: 'serve'"),
    ],
)
def test_aot_names_a_mistake_before_it_compiles(tmp_path, capsys, args, message):
    """One line names the flag, its value and the right ones; a compilation would need libtpu and
    minutes."""
    (tmp_path / "config.py").write_text(small.CONFIG_FILE)
    assert main(["aot", "--config", str(tmp_path / "config.py"), *args]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_aot_names_meshes_that_divide(tmp_path, capsys):
    """A mesh that leaves parameters whole is refused with one that divides more of them."""
    pytest.importorskip(
        "libtpu", reason="libtpu, the TPU compiler, is not installed (pip install 'var-jax[aot]')"
    )
    (tmp_path / "config.py").write_text(small.CONFIG_FILE)
    args = [
        "--topology",
        "v5e:4x8",
        "--config.batch_size=64",
        "--config.mesh.data=32",
        "--config.mesh.model=1",
    ]
    assert main(["aot", "--config", str(tmp_path / "config.py"), *args]) == 2
    assert "data=16, model=2 would divide more" in capsys.readouterr().err


def run_process(*arguments):
    """Runs a command in a process of its own, with the devices of this one."""
    done = subprocess.run(
        [sys.executable, "-m", "var_jax", *map(str, arguments)],
        env={**os.environ, "VAR_JAX_ALLOCATOR": "system"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_aot_saves_a_step_that_train_takes(config_file, digits_dir, tmp_path, refused, monkeypatch):
    """A step that another process compiled and saved for the same eight devices trains here, where
    compiling one fails; another batch size, sampling and a file of another kind are refused in one
    line with exit code 2."""
    executable = tmp_path / "step.executable"
    settings = ("--config", f"{config_file}:tokenizer", f"--config.data.data_dir={digits_dir}")
    local = ("aot", *settings, "--topology", "here")
    report = tmp_path / "report.json"
    lines = run_process(*local, "--save", executable, "--json", report)
    assert f"saved     {executable}" in lines and "8 devices of this machine" in lines
    assert "settings  policy fsdp, replicas 1, remat none, microbatches 1" in lines
    figures = json.loads(report.read_text())
    assert (figures["policy"], figures["replicas"]) == ("fsdp", 1)
    assert figures["devices"] == 8 and figures["peak_bytes"] > 0 and figures["images"] == 8

    monkeypatch.setattr(Program, "_compiled", None)
    run = ("train", *settings, "--workdir", str(tmp_path / "run"), "--executable")
    assert main([*run, str(executable)]) == 0
    (last,) = [record for record in records(tmp_path / "run") if record["split"] == "train"]
    assert last["step"] == 2

    other = ("train", *settings, "--workdir", "{out}", "--executable")
    assert "batch_size: 16 here, 8 there" in refused(*other, executable, "--config.batch_size=16")
    assert f"{config_file} does not read" in refused(*other, config_file)
    assert "--step is sample" in refused(*local, "--step", "sample")


def test_train_names_an_executable_that_is_missing(refused):
    """One line says so before the config is read, which here is missing too."""
    message = refused("train", "--config", "c.py", "--workdir", "{out}", "--executable", "{out}/F")
    assert "--executable is" in message and "a file that exists" in message


@pytest.mark.slow
def test_aot_saves_a_step_for_a_slice(config_file, tmp_path, refused):
    """The TPU compiler's program is written with its description, and a run on these processors
    refuses it by the kind and number of its devices, in one line."""
    pytest.importorskip("libtpu", reason="libtpu is not installed (pip install 'var-jax[aot]')")
    executable = tmp_path / "step.executable"
    settings = ("--config", f"{config_file}:tokenizer")
    run_process("aot", *settings, "--topology", "v5e:2x2", "--save", executable)
    description = executable_file.read_description(executable)
    required = description["compiled_for"]
    assert description["topology"] == "v5e:2x2" and required["platform"] == "tpu"
    assert required["mesh"] == {"data": 4, "model": 1} and "libtpu" in required["versions"]
    assert [place[1:] for place in required["places"]] != 4 * [[]]
    message = refused("train", *settings, "--workdir", "{out}", "--executable", executable)
    assert "compiled for v5e:2x2" in message and "platform: cpu here, tpu there" in message
