"""What the README and the guides say to write and to type works."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from var_jax.cli.args import read_config
from var_jax.cli.main import COMMANDS, main
from var_jax.config.docs import sections
from var_jax.errors import UserError

ROOT = Path(__file__).parents[1]
TRAIN = ROOT / "docs" / "guides" / "train.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TYPED = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
GENERATED = "reference/"  # by launch/docs_reference.py, when the site is built


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def commands(path: Path) -> list[list[str]]:
    """The `var-jax` commands of a page's blocks, as a shell reads them."""
    lines = "\n".join(blocks(path, "")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("var-jax ")]


def options(command: str) -> set[str]:
    """The options that a command's parser knows."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"var_jax.cli.{command}").add_arguments(parser)
    return {option for action in parser._actions for option in action.option_strings}


@pytest.fixture
def photos(tmp_path, monkeypatch) -> str:
    """The guide's config, where its commands are given, beside images of two classes."""
    (source,) = blocks(TRAIN, "python")
    monkeypatch.chdir(tmp_path)
    Path("photos.py").write_text(source)
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        file = Path("photos") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 70)).save(file)
    return "photos.py"


def test_own_images_config_resolves(photos):
    """Both stages are of 64x64 images, as the page says."""
    color = ["--config.tokenizer.in_channels=3"]  # else the data's, when a run starts
    tokenizer = read_config(f"{photos}:tokenizer", color)
    transformer = read_config(photos, color)
    assert (tokenizer.stage, transformer.stage) == ("tokenizer", "transformer")
    assert tokenizer.tokenizer == transformer.tokenizer
    assert tokenizer.tokenizer.image_shape[:2] == (64, 64)
    assert transformer.transformer.depth == 4
    assert transformer.transformer.width == 128
    scales = "--config.tokenizer.scales=1,2,3,4,6,8,12,16"
    larger = read_config(f"{photos}:tokenizer", [*color, scales])
    assert larger.tokenizer.image_shape[:2] == (128, 128)
    with pytest.raises(UserError, match=r"photos\.py"):
        read_config(f"{photos}:large")


def test_own_images_sweep_expands(photos, capsys):
    """Four sizes, each by keys that exist; without a tokenizer the dry run still prints what they
    cost."""
    assert main(["sweep", "--config", photos, "--workdir", "runs/sweep", "--dry-run"]) == 0
    table = capsys.readouterr().out.splitlines()
    for depth, line in zip((2, 3, 4, 6), table[1:], strict=False):
        assert f"depth={depth}" in line
    assert len(table) == 6
    assert not Path("runs").exists()


@pytest.mark.parametrize("page", TYPED, ids=relative)
def test_guides_commands_exist(page):
    """Every command, option and config key that a page says to type exists: a renamed one would
    answer with exit code 2."""
    keys = {f"--config.{key.path}" for section in sections() for key in section.keys}
    for command, *words in commands(page):
        assert command in COMMANDS, command
        known = options(command) | (keys if "--config" in options(command) else set())
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= known, f"{command}: {flags - known}"


@pytest.mark.parametrize("page", TYPED, ids=relative)
def test_guides_inputs_are_made_by_commands_before(page):
    """A reader who types the page from top to bottom has every image, sample set and token cache
    that a command takes; the quickstart's model, which a script makes, other people's models
    (models/...) and the placeholder of a cache (TOKENS) apart."""
    inputs = (
        "--image",
        "--samples",
        "--model",
        "--config.tokenizer_dir",
        "--config.data.tokens_dir",
    )
    made = {"runs/quickstart", "models", "TOKENS"}
    for command in commands(page):
        flags = dict(zip(command, command[1:], strict=False))
        for word in command:
            if word.startswith("--config.") and "=" in word:
                name, _, value = word.partition("=")
                flags[name] = value
        for flag in inputs:
            value = flags.get(flag)
            known = any(value == name or f"{value}".startswith(f"{name}/") for name in made)
            assert value is None or known, command
        outputs = ("--out", "--tokens-out", "--png", "--workdir")
        made |= {flags[flag] for flag in outputs if flag in flags}
        if command[0] == "publish":
            made.add(f"hf://{flags['--to']}")


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_docs_links_lead_somewhere(page):
    """Every relative link and picture of a page is a file of the repository, as the site has no
    page of a folder and its build warns of one; the build also checks headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith(("http", GENERATED)):
            assert (page.parent / target).is_file(), target


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_docs_files_exist(page):
    """Every script, test, config and module that a page names by its path is there: a command that
    a reader copies finds its file."""
    named = re.findall(
        r"\b(?:tests|launch|configs|var_jax|docs)/[\w/]+\.(?:py|sh|yaml|sbatch|md)\b",
        page.read_text(),
    )
    for path in named:
        assert (ROOT / path).exists(), path


def test_architecture_names_files_that_exist():
    """Every file and folder of the package that the page names is there: the answers to "where is"
    follow a file that moves."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    of_a_run = {"checkpoints/", "tokenizer/", "samples/", "tensorboard/", "wandb/"}
    paths = set(re.findall(r"`([\w/]+(?:\.py|/))`", page)) - of_a_run
    assert len(paths) > 40
    for path in paths:
        places = [ROOT / "var_jax" / path, ROOT / "launch" / path, ROOT / path]
        assert any(place.exists() for place in places), path


def test_architecture_names_every_script_and_folder():
    """A script or folder that is added gets its line on the page."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    scripts = [path.name for path in (ROOT / "launch").iterdir() if path.is_file()]
    folders = [f"{path.parent.name}/" for path in (ROOT / "var_jax").glob("*/__init__.py")]
    assert [name for name in scripts + folders if f"`{name}`" not in page] == []
