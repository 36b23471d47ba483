"""Features of a network over all devices, and the cache of reference features."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from helpers import toy_network
from var_jax.devices import batched
from var_jax.errors import UserError
from var_jax.evaluate import feature_networks, features, reference_cache
from var_jax.evaluate.image_sets import Batch, ImageSet
from var_jax.evaluate.samples import evaluate
from var_jax.pretrained import inception

PIXELS = np.random.default_rng(0).integers(0, 256, (90, 4, 6, 1), dtype=np.uint8)


class Images:
    """A set of images that counts how often it is read."""

    def __init__(self, pixels, name="images"):
        self.pixels, self.reads = pixels, 0
        self.set = ImageSet(
            name, f"content of {name}", pixels.shape[1:], "none", len(pixels), (), self.read
        )

    def read(self, batch_size):
        self.reads += 1
        for start in range(0, len(self.pixels), batch_size):
            yield Batch(self.pixels[start : start + batch_size], None)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setitem(batched.ROWS_PER_DEVICE, "cpu", 3)


def direct(pixels):
    network = toy_network.network()
    return [np.asarray(x) for x in network.apply(network.params, pixels)]


def test_extract_gives_the_networks_features_over_all_devices():
    """Rows, probabilities and moments of 90 images in batches of 24 over 8 devices are those of one
    direct pass."""
    assert (
        jax.local_device_count() == 8
    )  # so that batches of 24 are divided, and the last one is filled up
    result = features.extract(toy_network.network(), Images(PIXELS).set, probs=True)
    rows, log_probs = direct(PIXELS)
    assert result.rows.shape == (90, toy_network.DIMENSIONS) and result.distinct == 90
    order = np.lexsort(result.rows.T), np.lexsort(rows.T)
    np.testing.assert_allclose(result.rows[order[0]], rows[order[1]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        result.log_probs[order[0]], log_probs[order[1]], rtol=1e-5, atol=1e-6
    )
    assert result.moments.count == 90
    np.testing.assert_allclose(result.moments.mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        result.moments.covariance, np.cov(rows.astype(float), rowvar=False), rtol=1e-4, atol=1e-7
    )
    sizes = [half.count for half in result.halves]
    assert sum(sizes) == 90 and min(sizes) > 25


def test_evaluate_does_not_depend_on_the_order_of_images():
    """Values and intervals of all metrics agree after a permutation, to rounding."""
    network, reference = toy_network.network(), Images(PIXELS[:40], "reference").set
    order = np.random.default_rng(1).permutation(50)
    reports = [
        evaluate(Images(pixels).set, reference, network, cache="", resamples=4)
        for pixels in (PIXELS[40:], PIXELS[40:][order])
    ]
    assert (
        reports[0].keys() == reports[1].keys() and reports[0]["warnings"] == reports[1]["warnings"]
    )
    for name, metric in reports[0]["metrics"].items():
        other = reports[1]["metrics"][name]
        # Features are float32, and rounded by their place in the batch; the shares are whole
        # numbers of images.
        assert metric["value"] == pytest.approx(other["value"], rel=1e-5)
        assert metric["ci95"] == (
            metric["ci95"] and pytest.approx(other["ci95"], rel=1e-5, abs=1e-7)
        )


def test_extract_keeps_some_rows_and_all_moments():
    """With `keep=20` the features of the first 20 images are kept, while the moments are of all 90
    images and equal those of an extraction that keeps every row."""
    network = toy_network.network()
    full, some = (features.extract(network, Images(PIXELS).set, keep=keep) for keep in (0, 20))
    np.testing.assert_array_equal(some.rows, full.rows[:20])
    assert some.moments.count == 90 and some.log_probs is None
    np.testing.assert_array_equal(some.moments.scatter, full.moments.scatter)


def test_of_reference_reads_its_images_once(tmp_path):
    """The second call reads the cache; another network, preprocessing or data reads the images, and
    so does a damaged cache."""
    network, images = toy_network.network(), Images(PIXELS)
    cache = str(tmp_path / "new" / "cache")
    first = reference_cache.read_or_measure(network, images.set, cache)
    again = reference_cache.read_or_measure(network, images.set, cache)
    assert images.reads == 1
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True)
    )
    for other, changed in (
        (toy_network.network(seed=1), images.set),
        (dataclasses.replace(network, preprocessing="halves"), images.set),
        (network, dataclasses.replace(images.set, fingerprint="other")),
    ):
        before = images.reads
        reference_cache.read_or_measure(other, changed, cache)
        assert images.reads == before + 1
    files = sorted((tmp_path / "new" / "cache").iterdir())
    assert len(files) == 4 and {file.suffix for file in files} == {".npz"}
    for file in files:
        file.write_bytes(file.read_bytes()[:200])  # damaged
    before = images.reads
    reference_cache.read_or_measure(network, images.set, cache)
    reference_cache.read_or_measure(network, images.set, cache)
    assert images.reads == before + 1
    reference_cache.read_or_measure(network, images.set, "")
    assert images.reads == before + 2
    with pytest.raises(UserError, match="cannot write the cache"):
        reference_cache.read_or_measure(network, images.set, str(files[0]))


@pytest.mark.parametrize("classes", [1008, 1000])
def test_inception_score_is_of_logits_without_biases(monkeypatch, classes):
    """This holds for the network of 1008 classes, which FID and the score are published with;
    torchvision's has 1000."""
    random = np.random.default_rng(0)
    kernel, bias = random.standard_normal((3, classes)), random.standard_normal(classes)
    monkeypatch.setattr(
        feature_networks.inception,
        "features",
        lambda params, images, preprocessing: inception.InceptionFeatures(images, images),
    )
    rows = random.standard_normal((4, 3))
    params = {"fc": {"kernel": kernel, "bias": bias}}
    result = feature_networks._inception(params, rows, "tensorflow")[1]
    expected = log_softmax(rows @ kernel + (bias if classes == 1000 else 0), axis=1)
    np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_load_of_inception_names_the_option_for_its_weights():
    """The package has no weights of Inception, so that loading it without a file is refused with
    the option that names one."""
    with pytest.raises(UserError, match="name it by --weights"):
        feature_networks.load("inception")
