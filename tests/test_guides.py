"""What the guides tell a new user to write and to type works."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from var_jax.cli.args import read_config
from var_jax.cli.main import COMMANDS, main
from var_jax.errors import UserError

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "guides" / "train.md"


def blocks(path: Path, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def commands(path: Path) -> list[list[str]]:
    """The `var-jax` commands of a page's blocks, as a shell reads them."""
    lines = "\n".join(blocks(path, "")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("var-jax ")]


@pytest.fixture
def photos(tmp_path, monkeypatch) -> str:
    """The guide's config, where its commands are given, beside images of two classes."""
    (source,) = blocks(GUIDE, "python")
    monkeypatch.chdir(tmp_path)
    Path("photos.py").write_text(source)
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        file = Path("photos") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 70)).save(file)
    return "photos.py"


def test_own_images_config_resolves(photos):
    """Both stages are of 64x64 images, as the page's title says."""
    color = ["--config.tokenizer.in_channels=3"]  # else the data's, when a run starts
    tokenizer, transformer = read_config(f"{photos}:tokenizer", color), read_config(photos, color)
    assert (tokenizer.stage, transformer.stage) == ("tokenizer", "transformer")
    assert tokenizer.tokenizer == transformer.tokenizer and tokenizer.tokenizer.image_shape[:2] == (
        64,
        64,
    )
    assert transformer.transformer.depth == 4 and transformer.transformer.width == 128
    larger = read_config(
        f"{photos}:tokenizer", [*color, "--config.tokenizer.scales=1,2,3,4,6,8,12,16"]
    )
    assert larger.tokenizer.image_shape[:2] == (128, 128)
    with pytest.raises(UserError, match=r"photos\.py"):
        read_config(f"{photos}:large")


def test_own_images_sweep_expands(photos, capsys):
    """Four sizes, each by keys that are there; without a tokenizer the dry run still tells what
    they cost."""
    assert main(["sweep", "--config", photos, "--workdir", "runs/sweep", "--dry-run"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [
        f"depth={depth}" in line for depth, line in zip((2, 3, 4, 6), table[1:], strict=False)
    ] == [True] * 4
    assert len(table) == 6 and not Path("runs").exists()


@pytest.mark.parametrize("page", [GUIDE, ROOT / "README.md"], ids=lambda page: page.name)
def test_guides_commands_exist(page):
    found = commands(page)
    assert len(found) > 5 and all(command[0] in COMMANDS for command in found)


@pytest.mark.parametrize("page", [GUIDE, ROOT / "README.md"], ids=lambda page: page.name)
def test_guides_inputs_are_made_by_commands_before(page):
    """A reader who types the page from top to bottom has every image, sample set and token cache
    that a command takes; models of other people (models/...) and the quickstart's, which a script
    makes, apart."""
    made = {"runs/quickstart"}
    for command in commands(page):
        flags = dict(zip(command, command[1:], strict=False))
        flags |= dict(
            word.split("=", 1) for word in command if word.startswith("--config.") and "=" in word
        )
        for flag in (
            "--image",
            "--samples",
            "--model",
            "--config.tokenizer_dir",
            "--config.data.tokens_dir",
        ):
            value = flags.get(flag, "models/")
            known = any(value == name or value.startswith(f"{name}/") for name in made)
            assert (
                known
                or value.startswith("models/")
                or command[0] == "sweep"
                and page.name == "README.md"
            ), command
        made |= {flags[flag] for flag in ("--out", "--png", "--workdir") if flag in flags}
