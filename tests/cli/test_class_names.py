"""Class names wherever the command line takes or shows classes."""

import json

import numpy as np
import pytest
from PIL import Image

from helpers import small, toy_network
from helpers.commands import run
from var_jax import Pipeline
from var_jax.cli.main import main
from var_jax.evaluate import feature_networks
from var_jax.io import pictures

NAMES = (
    "circle",
    "square",
    "star",
    "T-shirt/top",
    "5",
    "café",
    "ring, thin",
    "dot",
    "line",
    "cross",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The small model, with names for its classes."""
    directory = tmp_path_factory.mktemp("named") / "model"
    Pipeline(small.MODEL, small.pipeline().params, NAMES).save(directory)
    return directory


@pytest.fixture
def titles(monkeypatch):
    """What pictures are titled by."""
    title_rows = []
    draw = pictures._tile_rows
    monkeypatch.setattr(
        pictures,
        "_tile_rows",
        lambda rows, heads, sides=(): (
            title_rows.append((heads[0], list(sides))) or draw(rows, heads, sides)
        ),
    )
    return title_rows


@pytest.mark.long
def test_sample_takes_names_and_titles_all_pictures_by_them(
    capsys, model, tmp_path, titles, caplog
):
    """Names, an id and a quoted name that looks like one give the image of the same ids, and the
    grid, the strip and the animation bear the names."""
    out, strip, gif = (tmp_path / name for name in ("out.png", "strip.png", "steps.gif"))
    text = run(
        capsys,
        "sample",
        "--model",
        model,
        "--labels",
        'square,5,"5","ring, thin",0',
        "--preset",
        "greedy",
        "--out",
        out,
        "--strip",
        strip,
        "--gif",
        gif,
    )
    shown = ["square", "café", "5", "ring, thin", "circle"]
    assert text.splitlines()[1] == 'classes: 1 square, 5 café, 4 "5", 6 "ring, thin", 0 circle'
    grid, sides, *frames = titles
    assert grid[0] == shown and sides[1] == shown and all(frame[0] == shown for frame in frames)
    assert "--labels 5 is the class of id 5, 'café'; the class named '5' has id 4" in caplog.text
    by_id = tmp_path / "by_id.png"
    run(
        capsys,
        "sample",
        "--model",
        model,
        "--labels",
        "1,5,4,6,0",
        "--preset",
        "greedy",
        "--out",
        by_id,
    )
    assert by_id.read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ("sample", "--labels", "squrae"),
            "--labels: 'squrae' is no class of the model; did you mean 'square'?",
        ),
        (
            ("generate", "--num", "2", "--labels", "circle,trapezoid"),
            "--labels: 'trapezoid' is no class",
        ),
        (
            ("edit", "--label", "squrae"),
            "--label: 'squrae' is no class of the model; did you mean 'square'?",
        ),
        (
            ("edit", "--label", "circle,square"),
            "--label 'circle,square' is 2 classes; it must be one",
        ),
        (("edit", "--label", "11"), "label is 11"),
        (("sample", "--labels", "11"), "label is 11"),
    ],
)
def test_commands_name_a_class_that_is_none_in_one_line(
    capsys, model, tmp_path, monkeypatch, command, message
):
    """Each command that takes classes names the text and the nearest class, and writes nothing."""
    monkeypatch.setenv(
        "SLURM_NTASKS", "1"
    )  # this process has used JAX, and cannot join others any more
    Image.new("L", (8, 6), 50).save(tmp_path / "image.png")
    rest = {
        "sample": ("--out", tmp_path / "out.png"),
        "generate": ("--out", tmp_path / "out.npz"),
        "edit": (
            "--image",
            tmp_path / "image.png",
            "--box",
            "0,0,1,0.5",
            "--out",
            tmp_path / "out.png",
        ),
    }
    assert main([str(a) for a in (*command, "--model", model, *rest[command[0]])]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


@pytest.mark.long
def test_edit_takes_a_class_by_its_name(capsys, model, tmp_path):
    """A name and its id give the same image."""
    Image.new("L", (8, 6), 50).save(tmp_path / "image.png")
    edited = {}
    for label in ("square", "1"):
        text = run(
            capsys,
            "edit",
            "--model",
            model,
            "--image",
            tmp_path / "image.png",
            "--box",
            "0,0,1,0.5",
            "--label",
            label,
            "--preset",
            "greedy",
            "--out",
            tmp_path / "out.png",
        )
        assert text.splitlines()[1] == "class: 1 square"
        edited[label] = (tmp_path / "out.png").read_bytes()
    assert edited["square"] == edited["1"]


def test_samples_are_compared_by_name_with_the_folder_of_a_run(
    capsys, model, tmp_path, monkeypatch
):
    """A folder of three of the ten classes numbers them anew: only their names say which samples
    they are like."""
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setattr(feature_networks, "load", lambda kind, path="": toy_network.network())
    shades = {"circle": 10, "star": 120, "line": 240}
    for name, shade in shades.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.full((6, 8), shade, np.uint8) + np.random.default_rng(i).integers(
                0, 9, (6, 8), np.uint8
            )
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    run(
        capsys,
        "generate",
        "--model",
        model,
        "--num",
        12,
        "--labels",
        "circle,line",
        "--top-k",
        0,
        "--batch-size",
        1,
        "--out",
        tmp_path / "drawn.npz",
    )
    with np.load(tmp_path / "drawn.npz") as arrays:
        labels, settings = arrays["arr_1"], arrays["settings"]
    assert sorted(set(labels.tolist())) == [0, 8] and json.loads(str(settings))[
        "class_names"
    ] == list(NAMES)
    images = np.stack([np.full((6, 8, 1), shades[NAMES[label]], np.uint8) for label in labels])
    images[0] = 255 - images[0]  # one that is not what its label says
    np.savez(tmp_path / "samples.npz", arr_0=images, arr_1=labels, settings=settings)
    evaluate = (
        "evaluate",
        "--samples",
        tmp_path / "samples.npz",
        "--reference",
        tmp_path / "photos",
        "--resize",
        "stretch",
        "--resamples",
        0,
        "--cache",
        "",
        "--data-dir",
        tmp_path / "tfds",
        "--json",
        tmp_path / "report.json",
        "--agreement",
    )
    run(capsys, *evaluate, tmp_path / "photos")
    report = json.loads((tmp_path / "report.json").read_text())["metrics"]["agreement"]
    assert report["value"] == pytest.approx(11 / 12) and report["name"].endswith(
        str(tmp_path / "photos")
    )
    assert "guessing gives 0.333" in report["reading"]  # of the folder's three classes
    (tmp_path / "photos" / "circle").rename(tmp_path / "photos" / "circel")
    assert main([str(a) for a in (*evaluate, tmp_path / "photos")]) == 2
    assert (
        "class 'circel' of" in (line := capsys.readouterr().err) and "did you mean 'circle'" in line
    )
    (tmp_path / "flat").mkdir()
    Image.new("L", (8, 6)).save(tmp_path / "flat" / "0.png")
    assert main([str(a) for a in (*evaluate, tmp_path / "flat")]) == 2
    assert "one folder of images per class" in capsys.readouterr().err
