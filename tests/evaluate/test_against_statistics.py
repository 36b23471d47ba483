"""Samples against the means and covariances of a reference file, as published figures are made."""

import dataclasses
import json

import numpy as np
import pytest

from evaluate.test_features import Images
from evaluate.test_scores import kl_score, naive_inside
from helpers import toy_network
from var_jax.errors import UserError
from var_jax.evaluate import against_statistics, image_sets, reference_statistics, samples
from var_jax.evaluate import features as measured_features
from var_jax.evaluate.fid import frechet_distance
from var_jax.evaluate.report_lines import lines

RANDOM = np.random.default_rng(0)
REAL = RANDOM.integers(0, 200, (50, 4, 6, 1), dtype=np.uint8)
SAMPLED = RANDOM.integers(50, 256, (80, 4, 6, 1), dtype=np.uint8)
ADM = toy_network.network(convention="ADM", spatial=True)


def features(pixels) -> list[np.ndarray]:
    """Features, log probabilities and features of sFID."""
    outputs = toy_network.apply_with_spatial(ADM.params, pixels)
    return [np.asarray(x, np.float64) for x in outputs]


def gaussian_beside(rows, shift: float, ratio: float) -> dict:
    """A mean that lies at a distance from that of rows, a covariance that is ratio squared times
    theirs, and the Fréchet distance of both, in closed form: equal directions, so that the roots
    commute."""
    covariance = np.cov(rows, rowvar=False)
    step = np.full(rows.shape[1], shift)
    return {
        "mean": rows.mean(0) + step,
        "covariance": ratio**2 * covariance,
        "distance": step @ step + (1 - ratio) ** 2 * np.trace(covariance),
    }


@pytest.fixture
def published(tmp_path):
    """Writes a reference file as the ADM evaluator's are; returns its path and the distances."""
    pooled = gaussian_beside(features(SAMPLED)[0], 0.5, 1.5)
    spatial = gaussian_beside(features(SAMPLED)[2], 0.25, 0.5)
    arrays = {
        "arr_0": REAL,
        "mu": pooled["mean"],
        "sigma": pooled["covariance"],
        "mu_s": spatial["mean"],
        "sigma_s": spatial["covariance"],
    }
    np.savez(tmp_path / "published.npz", **arrays)
    return tmp_path / "published.npz", pooled["distance"], spatial["distance"]


def without(path, *names, **changed):
    """The same file without some arrays, and with others."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name not in names} | changed
    out = path.with_name("changed.npz")
    np.savez(out, **arrays)
    return out


def evaluate(path, network=ADM, sampled=SAMPLED, **options):
    statistics = reference_statistics.read(str(path))
    images = None
    if statistics.has_images:
        images = image_sets.open_images_of_statistics(str(path), sampled.shape[1:3])
    return against_statistics.evaluate(
        Images(sampled, "sampled").set,
        statistics,
        images,
        network,
        cache="",
        **{"resamples": 0, **options},
    )


def test_distances_are_to_the_statistics_and_not_to_the_images_beside_them(published):
    """Both distances have a closed form, from which the distances to the images in arr_0 differ."""
    path, pooled, spatial = published
    report = evaluate(path)
    metrics = report["metrics"]
    assert report["protocol"] == "adm" and report["left_out"].keys() == {
        "kid",
        "density",
        "coverage",
    }
    assert metrics["frechet_distance"]["value"] == pytest.approx(pooled, rel=1e-5)
    assert metrics["sfid"]["value"] == pytest.approx(spatial, rel=1e-5)
    direct = samples.evaluate(Images(SAMPLED).set, Images(REAL).set, ADM, cache="", resamples=0)[
        "metrics"
    ]["frechet_distance"]["value"]
    assert abs(direct - pooled) > 0.1 * pooled
    assert metrics["frechet_distance"]["name"].endswith("(ADM)")
    shown = "\n".join(lines(report))
    assert f"(ADM) of 80 images against the statistics of {path}" in shown
    assert "left out: kid" in shown


def test_precision_and_recall_are_of_all_samples_and_the_images_of_the_file(published):
    """A loop over all pairs gives the same, as the ADM evaluator takes all samples, whose number
    recall depends on."""
    metrics = evaluate(published[0])["metrics"]
    sampled, real = features(SAMPLED)[0], features(REAL)[0]
    assert metrics["precision"]["value"] == naive_inside(sampled, real, 3).mean()
    assert metrics["recall"]["value"] == naive_inside(real, sampled, 3).mean()
    assert metrics["recall"]["counts"] == [80, 50]


def test_inception_score_is_of_consecutive_splits(published, monkeypatch):
    """Splits are taken in the order of the file, and a smaller last one counts as much as the
    others; the score of samples in the order of their classes differs from that of shuffled
    ones."""
    monkeypatch.setattr(against_statistics, "SPLIT", 30)
    params = {**ADM.params, "classes": 50 * ADM.params["classes"]}  # surer of the classes
    sure = dataclasses.replace(ADM, params=params)
    log_probs = np.asarray(toy_network.apply(params, SAMPLED)[1], np.float64)
    for order in (np.arange(80), np.argsort(log_probs.argmax(axis=1))):
        report = evaluate(published[0], sure, SAMPLED[order])
        probs = np.exp(log_probs[order])
        expected = np.mean([kl_score(probs[start : start + 30]) for start in (0, 30, 60)])
        score = report["metrics"]["inception_score"]
        assert score["value"] == pytest.approx(expected, rel=1e-4) and score["splits"] == 3
        is_sorted = bool((order != np.arange(80)).any())
        assert any("order of their classes" in w for w in report["warnings"]) == is_sorted


def test_distances_alone_are_measured_without_images(published):
    """The metrics that need images are named with the reason why they are missing."""
    path, pooled, _ = published
    bare = without(path, "arr_0", "mu_s", "sigma_s")
    report = evaluate(bare)
    measured = {name for name, metric in report["metrics"].items() if metric}
    assert measured == {"frechet_distance"}
    assert report["metrics"]["frechet_distance"]["value"] == pytest.approx(pooled, rel=1e-5)
    assert report["left_out"].keys() == report["metrics"].keys() - measured
    shown = "\n".join(lines(report))
    assert "left out: sfid: " in shown and "no mu_s and sigma_s" in shown
    assert (
        "left out: inception_score, precision, recall, kid, density, coverage: " in shown
        and "no arr_0" in shown
    )


def test_intervals_and_the_floor_are_against_the_statistics(published):
    """The floor is of the images that the user names, and of none by default."""
    path, pooled, spatial = published
    assert evaluate(path)["metrics"]["frechet_distance"]["floor"] is None
    statistics = reference_statistics.read(str(path))
    sampled = Images(SAMPLED, "more").set
    report = evaluate(path, resamples=5, floor=sampled)
    metric = report["metrics"]["frechet_distance"]
    assert metric["floor"]["value"] == pytest.approx(pooled, rel=1e-5)
    assert metric["floor"]["counts"] == [80, None] == metric["counts"]
    for name, value in (("frechet_distance", pooled), ("sfid", spatial)):
        low, high = report["metrics"][name]["ci95"]
        assert low < value < high and "bootstrap" in report["metrics"][name]["ci95_method"]
    assert "floor" in "\n".join(lines(report)) and statistics.count is None


def test_port_of_the_weights_is_not_called_adm(published):
    """Its resize differs, and so does its number: the report says so."""
    path, pooled, _ = published
    port = dataclasses.replace(ADM, convention="pytorch-fid's resize", weights_from="port")
    report = evaluate(path, port)
    assert report["protocol"] == "adm"
    for name in ("frechet_distance", "sfid"):
        assert "ADM" not in report["metrics"][name]["name"]
    assert any("not FID (ADM)" in warning for warning in report["warnings"])
    assert not any("not FID (ADM)" in warning for warning in evaluate(path)["warnings"])
    assert any("published figures are of 50000" in warning for warning in report["warnings"])


def refusal(path, network=ADM, **options) -> str:
    with pytest.raises(UserError) as error:
        evaluate(path, network, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_statistics_of_another_dimension_or_network_are_refused(published):
    """The line names both dimensions, or that the file is of Inception's features."""
    path, *_ = published
    other = without(path, mu=np.zeros(2048), sigma=np.eye(2048))
    message = refusal(other)
    assert "2048" in message and str(toy_network.DIMENSIONS) in message and "mu" in message
    message = refusal(path, toy_network.network(spatial=True))
    assert "Inception v3" in message and "toy" in message
    message = refusal(without(path, mu_s=np.zeros(7), sigma_s=np.eye(7)))
    assert "mu_s" in message and "7" in message and str(toy_network.SPATIAL) in message


@pytest.mark.parametrize(
    ("removed", "changed", "words"),
    [
        (("sigma",), {}, "has mu, but no sigma"),
        (("mu",), {}, "has sigma, but no mu"),
        (("mu_s",), {}, "has sigma_s, but no mu_s"),
        (("mu", "sigma"), {}, "but no mu and sigma"),
        ((), {"mu": np.zeros((5, 1))}, "mu of"),
        ((), {"mu": np.full(5, np.nan)}, "not finite"),
        ((), {"mu": np.arange(5)}, "int64"),
        ((), {"sigma": np.eye(4)}, "(4, 4)"),
        ((), {"sigma": np.triu(np.ones((5, 5)))}, "no covariance"),
        ((), {"sigma": -np.eye(5)}, "no covariance"),
        ((), {"statistics_of": np.array("{}")}, "does not say which network"),
        ((), {"statistics_of": np.array("[1")}, "does not say which network"),
    ],
)
def test_damaged_statistics_are_refused(published, removed, changed, words):
    """Each line names the array and what is wrong with it."""
    assert words in refusal(without(published[0], *removed, **changed))


def test_images_of_another_size_are_refused(published):
    """The images of the file have the samples' height and width, and as many channels as they
    like."""
    message = refusal(published[0], sampled=SAMPLED[:, :2])
    assert "(4, 6)" in message and "(2, 6)" in message
    colored = without(published[0], arr_0=np.repeat(REAL, 3, axis=-1))
    metrics = evaluate(published[0])["metrics"], evaluate(colored)["metrics"]
    assert metrics[0]["precision"]["value"] == metrics[1]["precision"]["value"]


def test_reference_without_statistics_is_as_before(tmp_path):
    """A file of images alone is no file of statistics, and its report has no protocol."""
    np.savez(tmp_path / "real.npz", REAL)
    assert not reference_statistics.holds_statistics(str(tmp_path / "real.npz"))
    assert not reference_statistics.holds_statistics("digits:test")
    assert not reference_statistics.holds_statistics(str(tmp_path / "none.npz"))
    images = image_sets.open_images(str(tmp_path / "real.npz"))
    report = samples.evaluate(Images(SAMPLED).set, images, ADM, cache="", resamples=0)
    direct = samples.evaluate(Images(SAMPLED).set, Images(REAL).set, ADM, cache="", resamples=0)
    assert json.dumps(report["metrics"]) == json.dumps(direct["metrics"])
    assert not report.keys() & {"protocol", "left_out"} and "sfid" not in report["metrics"]


def test_further_networks_stand_beside_the_protocol(published):
    """Figures of the protocol stay what they are; the further network's distance is that from the
    file's images, with their number; without images it is left out, and the reason names the
    file."""
    path, distance, _ = published
    other = dataclasses.replace(toy_network.network(1), key="fd_toy")
    report = evaluate(path, further=[other])
    alone = evaluate(path)
    assert {name: report["metrics"][name] for name in alone["metrics"]} == alone["metrics"]
    assert report["protocol"] == "adm" and report["further_features"] == [other.described()]
    assert report["metrics"]["frechet_distance"]["value"] == pytest.approx(distance)
    beside = report["metrics"]["fd_toy"]
    moments = [
        measured_features.extract(other, Images(pixels, "x").set).moments
        for pixels in (SAMPLED, REAL)
    ]
    assert beside["value"] == pytest.approx(frechet_distance(*moments))
    assert beside["counts"] == [len(SAMPLED), len(REAL)]
    bare = evaluate(without(path, "arr_0"), further=[other])
    assert bare["metrics"]["frechet_distance"]["value"] == pytest.approx(distance)
    assert (
        "fd_toy" not in bare["metrics"] and "changed.npz has no arr_0" in bare["left_out"]["fd_toy"]
    )
