"""`var-jax evaluate`: reports of samples and of reconstructions, and mistakes."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image

from helpers import toy_network
from var_jax.cli import evaluate
from var_jax.cli.main import main
from var_jax.evaluate import feature_networks, image_sets
from var_jax.pretrained import perceptual

DRAWN = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(feature_networks, "load", lambda kind, path="": toy_network.network())
    distance = perceptual.Perceptual(
        "toy distance", None, lambda _, x, y: abs(x - y).mean((1, 2, 3))
    )
    monkeypatch.setattr(perceptual, "load", lambda kind, path="", heads="": distance)


@pytest.fixture
def sampled(tmp_path):
    np.savez(tmp_path / "drawn.npz", DRAWN)
    return tmp_path / "drawn.npz"


def command(digits_dir, tmp_path, *rest) -> list[str]:
    return [
        "evaluate",
        *map(str, rest),
        "--reference",
        "digits:test[:60]",
        "--data-dir",
        str(digits_dir),
        "--resize",
        "whole",  # the older name of "stretch"
        "--cache",
        str(tmp_path / "cache"),
        "--json",
        str(tmp_path / "out" / "report.json"),
    ]


def test_evaluate_reports_every_metric_of_samples(digits_dir, sampled, tmp_path, capsys):
    """The printed lines and report.json have the counts, the floor and the seven metrics, and
    report.json the command; fewer images are measured by --num."""
    arguments = command(digits_dir, tmp_path, "--samples", sampled, "--floor", "digits:train[:50]")
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "Fréchet distance, toy of 40 and 60 images, floor" in printed.out
    assert "(digits:train[:50] against the reference, 50 and 60 images)" in printed.out
    assert "40/40" in printed.err and "images/s" in printed.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert shlex.split(report["command"]) == ["var-jax", *arguments]
    assert report["samples"]["count"] == 40 and report["reference"]["name"] == "digits:test[:60]"
    assert report["metrics"]["frechet_distance"]["floor"]["counts"] == [50, 60]
    assert report["reference"]["resize"] == "stretch, centered, to 8 x 8"
    assert set(report["metrics"]) == {
        "frechet_distance",
        "inception_score",
        "precision",
        "recall",
        "density",
        "coverage",
        "kid",
    }
    assert main([*command(digits_dir, tmp_path, "--samples", sampled), "--num", "30"]) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["samples"]["count"] == 30


def test_evaluate_finds_no_distance_of_a_folder_from_itself(tmp_path, capsys):
    """The distance is printed as 0 and not as less, with every way of resizing, as the images have
    the samples' size already."""
    for i, image in enumerate(DRAWN):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i:02d}.png")
    for resize in ("crop", "whole", "pad"):
        assert (
            main(
                [
                    "evaluate",
                    "--samples",
                    str(tmp_path),
                    "--reference",
                    str(tmp_path),
                    "--resamples",
                    "0",
                    "--resize",
                    resize,
                    "--cache",
                    "",
                ]
            )
            == 0
        )
        value, name = capsys.readouterr().out.splitlines()[0].split("  ", 1)
        assert 0 <= float(value) < 1e-4 and name.startswith(
            "Fréchet distance, toy of 40 and 40 images"
        )


def test_evaluate_reports_class_agreement(digits_dir, tmp_path, capsys):
    """The samples are images of the data set itself, a third of them with the next class's label,
    so that two thirds agree."""
    real = image_sets.open_images("digits:test[:60]", resize="stretch", data_dir=str(digits_dir))
    batch = next(real.read(60))
    labels = np.where(np.arange(60) % 3 == 0, (batch.labels + 1) % 10, batch.labels)
    np.savez(tmp_path / "drawn.npz", batch.images, labels)
    asked = ("--samples", tmp_path / "drawn.npz", "--agreement", "digits:train[:400]")
    assert main(command(digits_dir, tmp_path, *asked)) == 0
    assert "on the reference" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())["metrics"]["agreement"]
    assert (
        report["count"] == 60
        and abs(report["value"] - 2 / 3) < 0.1
        and report["on_reference"]["value"] > 0.9
    )
    np.savez(tmp_path / "drawn.npz", batch.images)
    assert main(command(digits_dir, tmp_path, *asked)) == 2
    assert "without labels" in capsys.readouterr().err


@pytest.mark.long
def test_evaluate_reports_reconstructions_of_a_model(digits_dir, model_dir, tmp_path, capsys):
    """The report has errors and codes by scale, and the picture shows more than four images side by
    side."""
    picture = tmp_path / "rec.png"
    assert main(command(digits_dir, tmp_path, "--model", model_dir, "--picture", picture)) == 0
    printed = capsys.readouterr().out
    assert (
        "codes used by scale" in printed
        and "for scale, real against real" in printed
        and "floor" not in printed
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (
        report["model"] == str(model_dir)
        and report["metrics"]["perceptual"]["name"] == "perceptual distance, toy distance"
    )
    assert report["reference"]["image_shape"] == [6, 8, 1] and len(report["usage"]["scales"]) == 3
    with Image.open(picture) as image:
        assert image.width > 4 * 96
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "out", "rec.png"]


@pytest.mark.long
def test_evaluate_without_out_prints_alone(digits_dir, model_dir, tmp_path, capsys, monkeypatch):
    """No file is written; images are resized as the model was trained, unless --resize says
    otherwise."""
    monkeypatch.setattr(
        "var_jax.cli.evaluate.trained_on",
        lambda model: "stretch" if model == str(model_dir) else None,
    )
    opened = []
    open_images = image_sets.open_images
    monkeypatch.setattr(
        image_sets,
        "open_images",
        lambda *args, **options: opened.append(options["resize"]) or open_images(*args, **options),
    )
    monkeypatch.chdir(tmp_path)
    shared = ["--reference", "digits:test[:60]", "--data-dir", str(digits_dir), "--cache", ""]
    assert main(["evaluate", "--model", str(model_dir), *shared]) == 0
    assert (
        "PSNR" in capsys.readouterr().out and not list(tmp_path.iterdir()) and opened == ["stretch"]
    )
    assert main(["evaluate", "--model", str(model_dir), *shared, "--resize", "crop"]) == 0
    assert opened == ["stretch", "crop"]


def test_evaluate_takes_the_resizing_of_a_workdir(model_dir, tmp_path):
    """The resizing mode is read from the run's config.json; a model directory without that file has
    none."""
    assert evaluate.trained_on(None) is None and evaluate.trained_on(str(model_dir)) is None
    (tmp_path / "config.json").write_text(json.dumps({"data": {"resize": "pad"}}))
    assert evaluate.trained_on(str(tmp_path)) == "pad"


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (("--samples", "none.npz"), "no file none.npz"),
        (
            ("--samples", "{drawn}", "--num", 41),
            "--num is 41; it must be at most the number of images, 40",
        ),
        (("--samples", "{drawn}", "--num", 3), "is 3; it must be at least 4"),
        (("--samples", "{drawn}", "--resamples", 1), "--resamples is 1"),
        (("--samples", "{drawn}", "--picture", "a.png"), "--picture is given with --samples"),
        (
            ("--samples", "{drawn}", "--perceptual", "none"),
            "--perceptual is given with --samples; it must",
        ),
        (("--model", "nowhere", "--floor", "{drawn}"), "--floor is given with --model"),
        (
            ("--model", "nowhere", "--resamples", 3),
            "--resamples is given with --model; it must be given with --samples",
        ),
        (
            ("--model", "nowhere", "--perceptual-heads", "h"),
            "--perceptual-heads is given without lpips",
        ),
        (
            ("--model", "nowhere", "--json", "{drawn}/a.json"),
            "drawn.npz is a file, not a directory",
        ),
        (("--samples", "{drawn}", "--model", "m"), "not allowed with argument"),
        (("--model", "nowhere"), "no model directory nowhere"),
        ((), "one of the arguments --samples --model --save-statistics is required"),
        (("--samples", "{drawn}", "--features", "vgg"), "invalid choice: 'vgg'"),
        (
            ("--samples", "{drawn}", "--reference", "{other}"),
            "it must be (8, 8, 1), as that of what they are compared",
        ),
        (
            ("--samples", "{drawn}", "--json", "{dir}"),
            "it is a directory; name a file, such as report.json",
        ),
    ],
)
def test_evaluate_names_mistakes_and_writes_nothing(
    digits_dir, sampled, tmp_path, capsys, rest, message
):
    """One line has the option and the value that would be right, and there is no output
    directory."""
    np.savez(tmp_path / "other.npz", DRAWN[:, :6])
    names = {
        "{drawn}": sampled,
        "{other}": tmp_path / "other.npz",
        "{dir}": tmp_path,
        "{drawn}/a.json": sampled / "a.json",
    }
    arguments = [str(names.get(r, r)) for r in rest]
    assert main([*command(digits_dir, tmp_path), *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not (tmp_path / "out").exists()
