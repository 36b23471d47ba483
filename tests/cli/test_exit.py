"""Errors that a user can put right, or that a remote store causes, are one line and an exit
code."""

import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from var_jax import Pipeline
from var_jax.cli.exit import line_and_code
from var_jax.cli.main import main
from var_jax.errors import UserError


def raised(run) -> BaseException:
    with pytest.raises(BaseException) as caught:
        run()
    return caught.value


def through(file: str, error: str):
    """A function of a source file that raises an error, as seen in its traceback."""
    space = {}
    exec(compile(f"def run():\n    raise {error}\n", file, "exec"), space)
    return space["run"]


@pytest.mark.long
@pytest.mark.parametrize(
    "platform",
    [
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU"),
        ),
        "rocm",
        "nonsense",
    ],
)
def test_main_platform_that_is_not_there(platform, model_dir, tmp_path):
    """A missing platform ends the command with exit code 2 and one line. The command is a process
    of its own, because JAX reads the variable once; the bare assertion of a missing driver is JAX's
    own."""
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "var_jax",
            "sample",
            "--model",
            model_dir,
            "--labels",
            "0",
            "--out",
            tmp_path / "out.png",
        ],
        env={**os.environ, "JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2 and run.stdout == ""
    assert (
        run.stderr.startswith(f"var-jax: JAX_PLATFORMS is '{platform}'")
        and run.stderr.count("\n") == 1
    )
    assert "unset" in run.stderr and not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("platform", "words"),
    [
        ("cuda", "pip install 'var-jax[cuda]'"),
        ("tpu", "pip install 'var-jax[tpu]'"),
        ("cuda,cpu", "pip install 'var-jax[cuda]'"),
        ("rocm", "no ROCm device"),
        ("CUDA", "must be cpu, cuda or tpu"),
    ],
)
def test_line_and_code_name_a_missing_platform(platform, words, monkeypatch):
    """The line has the platform and the extra to install, or the names that JAX knows."""
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    line, code = line_and_code(RuntimeError(f"Unable to initialize backend '{platform}': because"))
    assert code == 2 and repr(platform) in line and words in line


def test_line_and_code_memory():
    """The error is the one that the device's allocator raises."""
    line, code = line_and_code(raised(lambda: jnp.zeros(2**42).block_until_ready()))
    assert code == 2 and "17592186044416 bytes" in line and "--config.microbatches" in line
    assert line_and_code(MemoryError())[1] == 2


@pytest.mark.parametrize("library", ["huggingface_hub", "gcsfs", "fsspec"])
def test_line_and_code_remote_library(library):
    """A library that reads remote stores may raise errors of any class; the files that an error
    came through show whose it is."""
    run = through(
        f"/venv/lib/python3/site-packages/{library}/core.py", "ConnectionError('Name not known\\n')"
    )
    line, code = line_and_code(raised(run))
    assert code == 1 and "ConnectionError: Name not known" in line and "\n" not in line


@pytest.mark.parametrize(
    "error", ["ValueError('wrong')", "AssertionError()", "RuntimeError('wrong')"]
)
def test_line_and_code_fault_of_the_program(error, monkeypatch):
    """A fault of the program keeps its stack trace."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert line_and_code(raised(through("/home/me/fsspec/var_jax/train/loop.py", error))) is None


@pytest.mark.parametrize(
    "url", ["hf://owner/name", "hf://owner/name@main/model", "http://host/model", "nonsense://x"]
)
@pytest.mark.parametrize(
    ("flag", "command"),
    [
        ("--model", ("sample", "--labels", "0", "--out", "x.png", "--model")),
        ("--model", ("demo", "--model")),
        ("--out", ("sample", "--labels", "0", "--model", "m", "--out")),
        ("--samples", ("evaluate", "--reference", "digits:test", "--json", "x.json", "--samples")),
        ("--tokenizer", ("convert", "--scales", "1,2", "--out", "x", "--tokenizer")),
        ("the argument", ("status",)),
        ("the argument", ("fit", "--out", "x")),
    ],
)
def test_main_url_that_is_not_read(flag, command, url, capsys, monkeypatch, tmp_path):
    """A URL of an unsupported scheme is refused with its flag before anything is looked up: no host
    is asked."""
    if flag == "--model" and url.startswith("hf://"):
        url = url.replace("hf://", "hfs://")  # a model may be on the hub
    monkeypatch.chdir(tmp_path)
    assert main([*command, url]) == 2
    printed = capsys.readouterr()
    assert (
        printed.err.startswith(f"var-jax: {flag} is {url!r}; it must be ")
        and printed.err.count("\n") == 1
    )
    assert ("hf download" in printed.err) == url.startswith("hf://")
    assert printed.out == "" and not list(tmp_path.iterdir())


def test_main_refuses_a_url_that_is_not_read_in_an_override(capsys):
    """A scheme that cannot be read is named with its key before anything starts."""
    assert (
        main(["train", "--config", "x.py", "--workdir", "w", "--config.branch_from=hf://a/b"]) == 2
    )
    assert "--config.branch_from is 'hf://a/b'" in capsys.readouterr().err


def test_from_pretrained_refuses_a_url_that_is_not_read():
    """A URL of a scheme that is not supported is a user's mistake, and the message has the URL."""
    with pytest.raises(UserError, match="'http://owner/name'.*hf://OWNER/NAME"):
        Pipeline.from_pretrained("http://owner/name")


def test_train_leaves_its_refusal_beside_its_claim(tmp_path, monkeypatch, capsys):
    """Whoever started the run, and would start it again, reads there that it ends by the user's
    mistake; a fault of the program leaves nothing, so that it is tried again."""
    claim = tmp_path / "claims" / "0001.json"
    claim.parent.mkdir()
    claim.write_text("{}")
    monkeypatch.setenv("VAR_JAX_FENCE", str(claim))
    monkeypatch.setattr("var_jax.cli.train.read_config", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train", "--config", "none.py", "--workdir", str(tmp_path / "run")])
    assert [path.name for path in claim.parent.iterdir()] == ["0001.json"]
    monkeypatch.undo()
    monkeypatch.setenv("VAR_JAX_FENCE", str(claim))
    assert main(["train", "--config", "none.py", "--workdir", str(tmp_path / "run")]) == 2
    refusal = claim.with_suffix(".refused").read_text()
    assert (
        "no config file 'none.py'" in refusal and f"var-jax: {refusal}\n" == capsys.readouterr().err
    )
