"""Reference files that this program writes, and what they say of themselves."""

import dataclasses

import numpy as np
import pytest
from etils import epath

from evaluate.test_features import Images
from helpers import toy_network
from var_jax.errors import UserError
from var_jax.evaluate import (
    against_statistics,
    image_sets,
    reference_statistics,
    samples,
    statistics_writer,
)
from var_jax.evaluate.image_sets import Batch

RANDOM = np.random.default_rng(1)
REAL = RANDOM.integers(0, 200, (60, 4, 6, 1), dtype=np.uint8)
SAMPLED = RANDOM.integers(50, 256, (60, 4, 6, 1), dtype=np.uint8)
NETWORK = toy_network.network(spatial=True)


def write(tmp_path, network=NETWORK, images=None):
    out = epath.Path(tmp_path / "new" / "real.npz")
    report = statistics_writer.write(network, images or Images(REAL, "real").set, out)
    return out, report


def evaluate(path, network=NETWORK, pixels=SAMPLED):
    statistics = reference_statistics.read(str(path))
    images = image_sets.open_images_of_statistics(str(path), pixels.shape[1:3])
    sampled = Images(pixels, "sampled").set
    return against_statistics.evaluate(sampled, statistics, images, network, cache="", resamples=0)


def test_file_holds_what_the_published_code_reads(tmp_path):
    """mu, sigma, mu_s and sigma_s as numpy computes them from the features of all images, and the
    images in arr_0; nothing is pickled."""
    path, report = write(tmp_path)
    pooled, _, spatial = toy_network.apply_with_spatial(NETWORK.params, REAL)
    with np.load(path) as file:
        for mean, covariance, rows in (("mu", "sigma", pooled), ("mu_s", "sigma_s", spatial)):
            rows = np.asarray(rows, np.float64)
            np.testing.assert_allclose(file[mean], rows.mean(0), rtol=1e-5)
            expected = np.cov(rows, rowvar=False)
            np.testing.assert_allclose(file[covariance], expected, rtol=1e-4, atol=1e-6)
            assert file[mean].dtype == file[covariance].dtype == np.float64
        np.testing.assert_array_equal(file["arr_0"], REAL)
    assert report["images"] == 60 and report["statistics"] == ["mu", "sigma", "mu_s", "sigma_s"]
    origin = reference_statistics.read(str(path)).origin
    assert origin["count"] == 60 and origin["image_shape"] == [4, 6, 1]
    assert origin["resize"] == "none" and origin["features"]["network"] == "toy"


def test_samples_score_against_the_file_as_against_the_images(tmp_path):
    """The same samples have the same Fréchet distance, precision, recall and Inception Score
    against the file and against its images."""
    report = evaluate(write(tmp_path)[0])
    direct = samples.evaluate(Images(SAMPLED).set, Images(REAL).set, NETWORK, cache="", resamples=0)
    assert report["protocol"] == "statistics"
    for name in ("frechet_distance", "inception_score", "precision", "recall"):
        value = direct["metrics"][name]["value"]
        assert report["metrics"][name]["value"] == pytest.approx(value, rel=1e-5)
    assert report["metrics"]["frechet_distance"]["counts"] == [60, 60]


def test_file_of_another_network_is_refused(tmp_path):
    """A file of other weights or of another preprocessing is refused too, and the line names
    both."""
    path, _ = write(tmp_path)
    for network, words in (
        (toy_network.network(seed=1), ("weights0", "weights1")),
        (dataclasses.replace(NETWORK, preprocessing="halves"), ("quarters", "halves")),
        (dataclasses.replace(NETWORK, name="other"), ("toy", "other")),
    ):
        with pytest.raises(UserError) as error:
            evaluate(path, network)
        assert all(word in str(error.value) for word in words)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"\[4, 6, 1\].*\[2, 6, 1\]"):
        reference_statistics.read(str(path)).require_size(Images(SAMPLED[:, :2]).set)


def test_arr_0_is_a_part_of_a_large_set(tmp_path, monkeypatch):
    """The statistics are of all images, and arr_0 holds some of them, each once."""
    monkeypatch.setattr(statistics_writer, "IMAGES", 20)
    path, report = write(tmp_path)
    with np.load(path) as file:
        images = {image.tobytes() for image in file["arr_0"]}
    assert report["images"] == len(images) == 20
    assert images < {image.tobytes() for image in REAL}
    assert reference_statistics.read(str(path)).count == 60


def test_broken_off_file_leaves_the_one_before(tmp_path):
    """A write that breaks off leaves the earlier file, because the new one appears once it is
    complete."""
    path, _ = write(tmp_path)
    before = path.read_bytes()

    def read(batch_size):
        yield Batch(REAL[:8], None)
        raise UserError("an image is damaged")

    broken = dataclasses.replace(Images(REAL).set, read=read)
    with pytest.raises(UserError, match="damaged"):
        write(tmp_path, images=broken)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["real.npz"]
