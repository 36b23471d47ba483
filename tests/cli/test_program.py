"""The program as a process of its own: exit codes, and what a full disk leaves."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from helpers import small
from var_jax.cli.main import COMMANDS
from var_jax.io.checkpoint import Checkpoints
from var_jax.io.torch_convert import write_torch


def command(*argv, file_size: int | None = None) -> subprocess.CompletedProcess:
    """`python -m var_jax ...`; files that grow beyond `file_size` KiB fail, as on a full disk,
    where no programs are kept: a warning that they cannot be would be another line."""
    limit = "" if file_size is None else f"ulimit -f {file_size}; "
    environment = {**os.environ, "XLA_FLAGS": ""}
    if file_size is not None:
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "0"
    return subprocess.run(
        [
            "bash",
            "-c",
            f'{limit}exec "$@"',
            "bash",
            sys.executable,
            "-m",
            "var_jax",
            *map(str, argv),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def one_line(run: subprocess.CompletedProcess) -> str:
    assert run.returncode == 2, run.stderr
    assert run.stderr.startswith("var-jax: ") and run.stderr.count("\n") == 1, run.stderr
    return run.stderr


@pytest.mark.long
def test_program_runs_as_a_module(model_dir, tmp_path):
    """Unknown commands and labels are one line and exit code 2; help lists every command."""
    assert "unknown command 'trian'; did you mean 'train'?" in one_line(command("trian"))
    sample = ("sample", "--model", model_dir, "--out", tmp_path / "out.png", "--labels")
    assert "label is 11" in one_line(command(*sample, "11"))
    assert not list(tmp_path.iterdir())
    helped = command("--help")
    assert helped.returncode == 0 and all(name in helped.stdout for name in COMMANDS)
    assert command("--version").stdout.startswith("var-jax ")


@pytest.mark.parametrize(
    "name",
    [
        "train",
        "sample",
        pytest.param("generate", marks=pytest.mark.slow),
        pytest.param("bench", marks=pytest.mark.slow),
    ],
)
def test_compiled_programs_are_kept_by_default(name, tmp_path):
    """Programs are kept for commands whose module imports JAX, which reads its settings then, and
    for those that import it when they run."""
    script = f"""
from var_jax.cli.main import main
try:
    main(["{name}", "--help"])
except SystemExit:
    import jax
    print(jax.config.jax_compilation_cache_dir)
"""
    environment = {
        name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"
    }
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert run.stdout.splitlines()[-1] == str(tmp_path / "var_jax" / "xla")


@pytest.mark.long
def test_convert_on_a_full_disk_loses_no_model(model_dir, tmp_path):
    """A write that fails half-way leaves the model that was there, byte for byte."""
    there = tmp_path / "there"
    shutil.copytree(model_dir, there)
    before = {file.name: file.read_bytes() for file in there.iterdir()}
    write_torch(tmp_path / "weights", *small.reference(small.CASES[0])[0].to_torch())
    convert = (
        "convert",
        "--tokenizer",
        tmp_path / "weights" / "tokenizer.safetensors",
        "--scales",
        "1,2,3,4",
        "--out",
    )
    assert "File too large" in one_line(command(*convert, there, file_size=2))
    assert {file.name: file.read_bytes() for file in there.iterdir()} == before


@pytest.mark.slow
def test_train_on_a_full_disk_names_it(config_file, digits_dir, model_dir, tmp_path):
    """Files may not grow beyond the size of the metrics after a checkpoint: the next checkpoint
    fails and ends the run, and the same command goes on from the one before."""
    run = tmp_path / "run"
    train = (
        "train",
        "--config",
        f"{config_file}:tokenizer",
        f"--config.data.data_dir={digits_dir}",
        f"--config.init_from={model_dir}",
        "--config.log_every=1",
        "--workdir",
        run,
    )
    first = command(*train, "--config.steps=1")
    assert first.returncode == 0, first.stderr
    checkpoints = Checkpoints(run / "checkpoints", keep=1)
    before = checkpoints.restore_part("params", 1)
    failed = command(*train, file_size=6)
    assert failed.returncode == 2, failed.stderr
    lines = [line for line in failed.stderr.splitlines() if line.startswith("var-jax: ")]
    assert len(lines) == 1 and "cannot write the checkpoint of step 2" in lines[0], failed.stderr
    assert "File too large" in lines[0]
    assert checkpoints.steps() == [1]
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore_part("params"), before)
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    finished = command(*train)  # room again
    assert finished.returncode == 0, finished.stderr
    assert "step 2/2" in finished.stderr and "step 1/2" not in finished.stderr
    assert checkpoints.latest_step() == 2
