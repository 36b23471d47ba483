"""Every figure comes with a line that says how to read it, and what to read instead where it
misleads."""

import json

import numpy as np
import pytest
from PIL import Image

from evaluate.test_features import Images
from helpers import toy_network
from var_jax.evaluate import readings, samples, training_overlap
from var_jax.evaluate.report_lines import lines

RANDOM = np.random.default_rng(0)
REAL = RANDOM.integers(0, 200, (60, 4, 6, 1), dtype=np.uint8)


def report(sampled, real=REAL, **options):
    return samples.evaluate(
        Images(sampled, "drawn").set,
        Images(real, "real").set,
        toy_network.network(),
        cache="",
        resamples=2,
        **options,
    )


def test_readings_have_one_line_per_metric():
    """Each line is in the report, and right below its figure on the terminal."""
    result = report(RANDOM.integers(50, 256, (40, 4, 6, 1), dtype=np.uint8))
    shown = lines(result)
    assert None not in result["metrics"].values()
    for metric in result["metrics"].values():
        place = next(i for i, line in enumerate(shown) if metric["name"] in line)
        assert shown[place + 1].strip() == metric["reading"] and "\n" not in metric["reading"]


@pytest.mark.parametrize(
    ("counts", "trusted"), [((5, 60), False), ((60, 5), False), ((6, 60), True)]
)
def test_reading_of_a_frechet_distance_of_too_few_images_names_what_to_read_instead(
    counts, trusted
):
    """The covariance of a set is not determined by as many images as features or fewer, whether
    they are samples or reference images."""
    metrics = {"frechet_distance": {"counts": list(counts), "floor": None}, "kid": None}
    readings.add(metrics, dimensions=5)
    text = metrics["frechet_distance"]["reading"]
    assert ("KID" in text and "too large" in text and "5 images" in text) == (not trusted)
    paired = {"frechet_distance": {"counts": list(counts), "real_against_real": None}}
    readings.add(paired, dimensions=5)
    assert ("PSNR" in paired["frechet_distance"]["reading"]) == (not trusted)


def test_kid_has_a_scale():
    """The distance between two halves of the reference is about zero, whatever their number, and
    that to other images is not."""
    sampled = np.clip(REAL.astype(int) + 80, 0, 255).astype(np.uint8)
    result = report(sampled)["metrics"]["kid"]
    floor = result["floor"]
    assert floor["counts"] == [30, 30] and result["counts"] == [60, 60]
    assert floor["ci95"][0] < 0 < floor["ci95"][1] and result["value"] > 3 * floor["ci95"][1]
    assert f"real images score {floor['value']:.3g}" in result["reading"]
    other = report(
        sampled, floor=Images(RANDOM.integers(0, 200, (20, 4, 6, 1), dtype=np.uint8), "more").set
    )
    assert other["metrics"]["kid"]["floor"]["counts"] == [20, 60]
    assert other["metrics"]["kid"]["floor"]["what"] == "more against the reference"
    few = report(sampled, REAL[:6])["metrics"]["kid"]
    assert few["floor"] is None and "too few" in few["reading"]


def test_agreement_is_read_between_chance_and_real_images():
    """A share of classes means nothing without what guessing gives, and what the classifier gives
    real images."""
    text = readings.of_agreement({"on_reference": {"value": 0.961}}, classes=10)
    assert "guessing gives 0.1" in text and "real images score 0.961" in text
    assert "real images" not in readings.of_agreement({"on_reference": None}, classes=10)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("digits:train", "digits:train is what this run was trained on"),
        ("digits:train[:100]", "may hold images that this run was trained on"),
        ("digits:test+train", "may hold images that this run was trained on"),
        ("digits:all", "may hold"),
        ("digits:test", None),
        ("digits:test[:20]", None),
        ("fashion_mnist_idx:train", None),
        ("images.npz", None),
    ],
)
def test_warning_of_a_reference_that_the_run_was_trained_on(tmp_path, reference, words):
    """The splits that the run's config names decide."""
    data = {"name": "digits", "train_split": "train", "eval_split": "test", "source_dir": ""}
    (tmp_path / "config.json").write_text(json.dumps({"data": data}))
    result = training_overlap.warning(str(tmp_path), reference)
    assert (result is None) == (words is None)
    assert words is None or (
        words in result and result.endswith("measure digits:test") and "\n" not in result
    )


def test_warning_knows_slices_of_one_split(tmp_path):
    """The held-out slice of the training split is not what the run was trained on."""
    data = {"name": "digits", "train_split": "train[:90%]", "eval_split": "train[90%:]"}
    (tmp_path / "config.json").write_text(json.dumps({"data": data}))
    assert training_overlap.warning(str(tmp_path), "digits:train[90%:]") is None
    assert "may hold" in training_overlap.warning(str(tmp_path), "digits:train")
    assert "is what" in training_overlap.warning(str(tmp_path), "digits:train[:90%]")


def test_warning_of_a_folder_that_the_run_was_trained_on(tmp_path):
    """The files decide: the folder itself, one within it or one above it, by any path that leads
    there."""
    for split in ("train", "test"):
        for label in "ab":
            (tmp_path / "photos" / split / label).mkdir(parents=True)
            Image.new("L", (2, 2)).save(tmp_path / "photos" / split / label / "x.png")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    (tmp_path / "run").mkdir()
    data = {"name": "image_folder", "train_split": "train", "eval_split": "test"}
    data["source_dir"] = str(tmp_path / "photos")
    (tmp_path / "run" / "config.json").write_text(json.dumps({"data": data}))
    for folder, count in (
        ("photos", 2),
        ("photos/", 2),
        ("photos/train", 2),
        ("photos/train/a", 1),
        ("link", 2),
        ("", 2),
        ("photos/test", 0),
        ("run", 0),
        ("none", 0),
    ):
        result = training_overlap.warning(str(tmp_path / "run"), f"{tmp_path}/{folder}")
        assert (
            (result and f"holds {count} images that this run was trained on" in result)
            or count == 0
            and result is None
        )
    assert "is what" in training_overlap.warning(
        str(tmp_path / "run"), "image_folder:train", str(tmp_path / "photos")
    )
    assert (
        training_overlap.warning(str(tmp_path / "run"), "image_folder:train", str(tmp_path)) is None
    )


def test_warning_of_a_model_without_a_runs_config(tmp_path):
    """A converted model says nothing of what it was trained on."""
    assert training_overlap.warning(str(tmp_path), "digits:train") is None
    (tmp_path / "config.json").write_text("{}")
    assert training_overlap.warning(str(tmp_path), "digits:train") is None


def test_warning_of_what_quickstart_wrote(tmp_path):
    """A model of the quickstart lies beside the workdirs of the two runs that made it, and their
    configs are read."""
    (tmp_path / "tokenizer-run").mkdir()
    data = {"name": "digits", "train_split": "train", "eval_split": "test"}
    (tmp_path / "tokenizer-run" / "config.json").write_text(json.dumps({"data": data}))
    assert "is what" in training_overlap.warning(str(tmp_path), "digits:train")
