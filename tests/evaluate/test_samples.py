"""Reports of samples: metrics, floors, intervals and warnings."""

import numpy as np
import pytest
import scipy.linalg

from evaluate.test_features import Images
from helpers import toy_network
from var_jax.errors import UserError
from var_jax.evaluate.samples import evaluate

RANDOM = np.random.default_rng(0)
REAL = RANDOM.integers(0, 200, (120, 4, 6, 1), dtype=np.uint8)
DRAWN = RANDOM.integers(50, 256, (80, 4, 6, 1), dtype=np.uint8)


def rows(pixels):
    network = toy_network.network()
    return np.asarray(network.apply(network.params, pixels)[0], np.float64)


def distance(x, y):
    c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    difference = x.mean(0) - y.mean(0)
    return difference @ difference + np.trace(c + d - 2 * scipy.linalg.sqrtm(c @ d).real)


def test_report_has_every_metric_of_samples():
    """Values, counts and intervals of each metric are there, and the Fréchet distance is that of
    SciPy."""
    report = evaluate(
        Images(DRAWN, "drawn").set, Images(REAL, "real").set, toy_network.network(), cache=""
    )
    metrics = report["metrics"]
    result = metrics["frechet_distance"]
    assert result["name"] == "Fréchet distance, toy" and result["counts"] == [80, 120]
    assert result["value"] == pytest.approx(distance(rows(DRAWN), rows(REAL)), rel=1e-4)
    assert result["ci95"][0] < result["value"] < result["ci95"][1]
    floor = result["floor"]
    assert (
        floor["value"] < result["value"] / 3
        and sum(floor["counts"]) == 120
        and "halves" in floor["what"]
    )
    assert (
        metrics["inception_score"]["name"] == "toy score"
        and metrics["inception_score"]["value"] > 1
    )
    assert metrics["precision"]["counts"] == [80, 80] and 0 < metrics["recall"]["value"] < 1
    assert metrics["density"]["k"] == 5 and 0 < metrics["coverage"]["value"] < 1
    assert metrics["kid"]["subset"] == 40 and metrics["kid"]["ci95"][0] < metrics["kid"]["value"]
    for name, words in (
        ("frechet_distance", "bootstrap over samples"),
        ("inception_score", "bootstrap over samples"),
        ("precision", "Wilson over samples"),
        ("recall", "Wilson over reference images"),
        ("density", "normal over samples"),
        ("coverage", "Wilson over reference images"),
        ("kid", "over subsets"),
    ):
        assert words in metrics[name]["ci95_method"]
    assert report["samples"]["count"] == 80 and report["reference"]["name"] == "real"
    assert (report["seed"], report["resamples"]) == (0, 20)
    few = " and ".join(map(str, floor["counts"]))
    assert report["warnings"] == [
        f"the floor is of {few} images and the value of 80 and 120: the floor is overstated"
    ]


def test_report_has_a_floor_of_other_real_images():
    """The floor is the distance of the other images from the reference, its few images are remarked
    on, and without resamples only the closed-form intervals are there."""
    other = RANDOM.integers(0, 200, (70, 4, 6, 1), dtype=np.uint8)
    report = evaluate(
        Images(DRAWN).set,
        Images(REAL).set,
        toy_network.network(),
        cache="",
        resamples=0,
        floor=Images(other, "training images").set,
    )
    floor = report["metrics"]["frechet_distance"]["floor"]
    assert floor["value"] == pytest.approx(distance(rows(other), rows(REAL)), rel=1e-4)
    assert any(
        "floor is of 70 and 120 images and the value of 80 and 120" in w for w in report["warnings"]
    )
    assert floor["counts"] == [70, 120] and floor["what"] == "training images against the reference"
    metrics = report["metrics"]
    for name in ("frechet_distance", "inception_score"):
        assert metrics[name]["ci95"] is None and metrics[name]["ci95_method"] is None
    assert metrics["kid"]["ci95_method"] and metrics["recall"]["ci95_method"]


def test_report_says_what_a_reader_should_know():
    """Too few images for a covariance and copies become warnings; fewer than four images are
    refused."""
    few = np.concatenate([DRAWN[:4], DRAWN[:1]])
    report = evaluate(
        Images(few, "few").set, Images(REAL).set, toy_network.network(), cache="", resamples=2
    )
    assert any(
        "few has 5 images, too few for the covariance of 5 features" in w
        for w in report["warnings"]
    )
    assert any("few holds 1 copies" in w for w in report["warnings"])
    with pytest.raises(
        UserError, match="the number of images in images is 3; it must be at least 4"
    ):
        evaluate(Images(DRAWN[:3]).set, Images(REAL).set, toy_network.network(), cache="")
    with pytest.raises(UserError, match="--resamples is 1"):
        evaluate(Images(DRAWN).set, Images(REAL).set, toy_network.network(), cache="", resamples=1)
