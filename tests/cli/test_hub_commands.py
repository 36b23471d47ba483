"""Commands that read models from the Hugging Face hub and publish them there, with a server on this
machine that imitates it."""

import argparse
import importlib
from pathlib import Path

import pytest

from helpers import commands, hub_server
from helpers.files import contents
from var_jax import Pipeline
from var_jax.cli import models
from var_jax.cli.main import COMMANDS, main
from var_jax.io import releases

pytest.importorskip("huggingface_hub", reason="the extra [hub] has it")
REPOSITORY = "owner/small"


def test_publish_uploads_what_an_address_names(hub, model_dir, capsys, caplog):
    """The command prints the address, the model's files are those of the directory, and a command
    that reads the model logs its commit."""
    line = commands.run(capsys, "publish", "--model", model_dir, "--to", REPOSITORY)
    assert f"hf://{REPOSITORY}" in line and "tokenizer.safetensors" in line
    assert hub.commits[REPOSITORY][-1].items() >= contents(model_dir).items()
    args = argparse.Namespace(model=f"hf://{REPOSITORY}", then=None, out="hf://x/y")
    models.fetch(args)
    assert contents(Path(args.model)).items() >= contents(model_dir).items()
    assert args.addresses == {"model": f"hf://{REPOSITORY}"} and args.out == "hf://x/y"
    assert f"hf://{REPOSITORY} is commit {hub.commit(REPOSITORY)[:12]}" in caplog.text


def test_commands_refuse_a_model_that_is_not_on_the_hub(hub, model_dir, refused):
    """One line names the repository, in every option that takes a model."""
    absent = "hf://owner/none"
    for command in (
        ("sample", *sample_options(absent, "{out}.png")),
        ("sample", *sample_options(model_dir, "{out}.png"), "--then", absent, "--keep-scales", "1"),
        ("merge", "--base", absent, "--tuned", model_dir, "--weight", "1", "--out", "{out}"),
        ("merge", "--base", model_dir, "--tuned", absent, "--weight", "1", "--out", "{out}"),
        ("publish", "--model", absent, "--to", REPOSITORY),
        ("convert", "--to-torch", "--model", absent, "--out", "{out}"),
    ):
        assert f"{absent}: {hub.url} has no such repository" in refused(*command)


def test_commands_check_their_flags_before_they_fetch_a_model(hub, model_dir, tmp_path, refused):
    """A mistake in another flag is named before anything is asked of the hub, by each command that
    takes a model by its address."""
    model, out = f"hf://{REPOSITORY}", ("--out", "{out}.png")
    image = ("--image", "i.png", *out)
    for word, command in (
        ("--num", ("sample", *sample_options(model, "{out}.png"), "--num", "-1")),
        ("--batch-size", ("generate", "--model", model, "--num", "1", "--batch-size", "0", *out)),
        ("--outpaint", ("edit", "--model", model, "--outpaint", "--keep-scales", "1", *image)),
        ("--seed", ("evaluate", "--model", model, "--reference", "x", "--seed", "-1")),
        ("none/*.png", ("reconstruct", "--model", model, "--images", "none/*.png", *out)),
        ("--port", ("demo", "--model", model, "--port", "0")),
        ("--weight", ("merge", "--base", model, "--tuned", model, "--weight", "inf", *out)),
        ("--scales", ("convert", "--to-torch", "--model", model, "--scales", "1", *out)),
        ("--splits", ("tokenize", "--model", model, "--config", "c.py", "--splits", "x", *out)),
        ("--to", ("publish", "--model", model, "--to", "name")),
    ):
        assert word in refused(*command)
    assert hub.requests == []
    assert "OWNER/NAME, without hf://" in refused("publish", "--model", model_dir, "--to", model)


def test_fetch_is_called_by_all_commands_that_take_a_model():
    """An option that takes a model's directory takes its address too."""
    takers = 0
    for name in COMMANDS:
        module = importlib.import_module(f"var_jax.cli.{name}")
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        if {action.dest for action in parser._actions} & set(models.OPTIONS):
            assert "models.fetch(args)" in Path(module.__file__).read_text(), name
            takers += 1
    assert takers == 10


def test_sample_without_a_network_names_the_server(hub, monkeypatch, tmp_path, capsys):
    """A server that does not answer is not the user's mistake: exit code 1, as for a bucket."""
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub_server.unused_port()}")
    assert main(["sample", *sample_options(f"hf://{REPOSITORY}", tmp_path / "a.png")]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "a remote path cannot be reached: " in printed.err
    assert printed.out == "" and not list(tmp_path.iterdir())


def test_download_writes_a_model_directory(hub, monkeypatch, tmp_path, capsys, refused):
    """The command names both files with their size and commit, and the directory is a model's;
    another release is refused by its name, and a place that cannot be written before anything is
    downloaded."""
    release = hub_server.add_release(hub, tmp_path / "torch", monkeypatch)
    printed = commands.run(capsys, "download", "var-d2", "--out", tmp_path / "model")
    for name in (release.tokenizer_file, release.transformer_file):
        size = len(hub.commits[releases.REPOSITORY][0][name])
        assert f"{name}: {size:,} bytes" in printed
    assert hub.commit(releases.REPOSITORY) in printed
    assert Pipeline.from_pretrained(tmp_path / "model").config == release.config
    assert "did you mean 'var-d2'" in refused("download", "var-d22", "--out", "{out}")
    hub.requests.clear()
    file = tmp_path / "model" / "model.json"
    assert f"{file} is a file" in refused("download", "var-d2", "--out", file)
    assert hub.requests == []


def test_download_of_a_damaged_file_leaves_no_directory(
    hub, monkeypatch, tmp_path, capsys, refused
):
    """Weights whose bytes are not those that the hub declares end the command with one line, and
    the directory does not exist, which a reader would take for a model."""
    release = hub_server.add_release(hub, tmp_path / "torch", monkeypatch)
    content = hub.commits[releases.REPOSITORY][0][release.transformer_file]
    hub.wrong[release.transformer_file] = content[:-8] + bytes(8)
    line = refused("download", "var-d2", "--out", tmp_path / "model")
    assert release.transformer_file in line and not (tmp_path / "model").exists()


def sample_options(model, out) -> list[str]:
    return ["--model", str(model), "--labels", "1", "--cfg", "0", "--out", str(out)]
