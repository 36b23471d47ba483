"""Reports of reconstructions, against numpy."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import correlate1d

from evaluate.test_features import Images
from helpers import small, toy_network
from var_jax.config.scales import Scales
from var_jax.evaluate import features, reconstruction
from var_jax.ops import codebook
from var_jax.pretrained.perceptual import Perceptual

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (30, 14, 12, 3), dtype=np.uint8)
NORMALIZED = PIXELS.astype(np.float32) / 127.5 - 1
BACK = np.clip(
    NORMALIZED + 0.3 * RANDOM.standard_normal(NORMALIZED.shape) * RANDOM.random((30, 1, 1, 1)),
    -1,
    1,
).astype("f")
SCALES = Scales.parse("1,2")
TOKENS = RANDOM.integers(0, 3, (30, 5)).astype(np.int32)


class Model:
    """Whose tokens and reconstructions are known."""

    config = SimpleNamespace(tokenizer=SimpleNamespace(scales=SCALES, vocab_size=8, quantizes=True))

    def spread(self):
        return self

    def encode(self, images):
        rows = [
            int(np.flatnonzero(np.isclose(NORMALIZED, one).all((1, 2, 3)))[0]) for one in images
        ]
        self.rows = rows
        return TOKENS[rows]

    def decode(self, tokens):
        return BACK[self.rows]


@pytest.fixture(scope="module")
def report():
    difference = Perceptual(
        "half the distance", 0.5, lambda half, x, y: half * abs(x - y).mean((1, 2, 3))
    )
    return reconstruction.evaluate(
        Model(), Images(PIXELS, "real").set, toy_network.network(), difference, cache=""
    )


def ssim(x, y) -> float:
    """Wang et al. 2004 in numpy, one channel: an 11 x 11 Gaussian of sigma 1.5, windows within the
    image."""
    kernel = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    kernel /= kernel.sum()

    def local(z):
        for axis in (0, 1):
            z = correlate1d(z, kernel, axis)
        return z[5:-5, 5:-5]

    mx, my = local(x), local(y)
    vx, vy, mixed = local(x * x) - mx**2, local(y * y) - my**2, local(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float(
        np.mean((2 * mx * my + c1) * (2 * mixed + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    )


def test_report_has_errors_of_reconstructions(report):
    """PSNR, its interval, SSIM and the perceptual distance are those of numpy over 30 images."""
    x, y = ((images.astype(np.float64) + 1) / 2 for images in (NORMALIZED, BACK))
    mse = ((x - y) ** 2).mean((1, 2, 3))
    psnr, pooled = -10 * np.log10(mse), -10 * np.log10(mse.mean())
    metrics = report["metrics"]
    assert metrics["psnr"]["value"] == pytest.approx(psnr.mean(), rel=1e-5)
    half = 1.96 * psnr.std(ddof=1) / 30**0.5
    assert metrics["psnr"]["ci95"] == pytest.approx(
        [psnr.mean() - half, psnr.mean() + half], rel=1e-5
    )
    result = metrics["psnr_of_mean_mse"]
    assert (
        result["value"] == pytest.approx(pooled, rel=1e-5)
        and result["value"] < metrics["psnr"]["value"] - 1
    )
    assert result["ci95"][0] < result["value"] < result["ci95"][1]
    expected = np.mean([ssim(x[i, ..., c], y[i, ..., c]) for i in range(30) for c in range(3)])
    assert metrics["ssim"]["value"] == pytest.approx(expected, abs=1e-5)
    assert metrics["perceptual"]["name"] == "perceptual distance, half the distance"
    assert metrics["perceptual"]["value"] == pytest.approx(
        0.5 * np.abs(NORMALIZED - BACK).mean(), rel=1e-5
    )


def test_report_has_the_frechet_distance_of_pixels(report):
    """Reconstructions are rounded to 8 bits first, and two halves of the real images give the
    context."""
    rebuilt = np.rint((BACK + 1) * 127.5).astype(np.uint8)
    sets = [features.extract(toy_network.network(), Images(p).set) for p in (PIXELS, rebuilt)]
    from var_jax.evaluate.fid import frechet_distance

    result = report["metrics"]["frechet_distance"]
    assert result["value"] == pytest.approx(
        frechet_distance(sets[0].moments, sets[1].moments), rel=1e-4
    )
    assert result["value"] > 0 and result["counts"] == [30, 30] and "floor" not in result
    assert result["ci95"] is None and "paired" in result["ci95_missing"]
    context = result["real_against_real"]
    assert sum(context["counts"]) == 30 and "halves" in context["what"]
    assert context["value"] == pytest.approx(frechet_distance(*sets[0].halves), rel=1e-4)


def test_report_has_usage_and_perplexity_of_codes(report):
    """Counts, shares and perplexities of each scale are numpy's, and few tokens can reach few
    codes."""
    rows = report["usage"]["scales"]
    assert [row["scale"] for row in rows] == ["1x1", "2x2"] and [row["tokens"] for row in rows] == [
        30,
        120,
    ]
    for row, tokens in zip(rows, (TOKENS[:, :1], TOKENS[:, 1:]), strict=True):
        codes, counts = np.unique(tokens, return_counts=True)
        share = counts / counts.sum()
        assert row["used"] == len(codes) and row["usage"] == len(codes) / 8
        assert row["perplexity"] == pytest.approx(np.exp(-np.sum(share * np.log(share))))
    few = reconstruction.usage(np.asarray(codebook.code_counts(SCALES, TOKENS[:2], 8)), SCALES)
    used = len(np.unique(TOKENS[:2, 0]))
    assert (
        few["scales"][0]["attainable_usage"] == used / 2 and few["scales"][0]["usage"] == used / 8
    )
    assert few["all"]["tokens"] == 10 and few["all"]["used"] == len(np.unique(TOKENS[:2]))


def test_many_codes_are_counted_by_their_lowest_bits():
    """A vocabulary of 30 bits is counted as in training, without an array of its size."""
    tokens = np.array(
        [[5, 2**16 + 5, 2**21 - 1, 7, 2**16], [5, 5, 2**16 - 1, 2**20 + 7, 0]], np.int32
    )
    counts = np.asarray(codebook.code_counts(SCALES, tokens, 2**21))
    assert counts.shape == (2, 2**16) and counts.sum() == tokens.size
    assert counts[0, 5] == 2
    assert [counts[1, code] for code in (5, 2**16 - 1, 7, 0)] == [2, 2, 2, 2]
    assert reconstruction.usage(counts, SCALES)["all"]["usage"] == 4 / 2**16
    assert codebook.code_counts(SCALES, tokens % 2**16, 2**16).shape == (2, 2**16)


def test_report_says_that_codes_are_counted_by_their_lowest_bits(report):
    """Of 2^21 codes only 2^16 kinds are counted, which a warning says; the numbers are those of the
    lowest bits."""

    class Large(Model):
        config = SimpleNamespace(
            tokenizer=SimpleNamespace(scales=SCALES, vocab_size=2**21, quantizes=True)
        )

        def encode(self, images):
            return super().encode(images) + 2**16

    result = reconstruction.evaluate(
        Large(), Images(PIXELS, "real").set, toy_network.network(), None, cache=""
    )
    assert result["warnings"] == [
        *report["warnings"],
        "codes are counted by their lowest 16 bits, 65536 kinds for "
        "2097152 codes: usage and perplexity are those of the kinds",
    ]
    assert result["usage"]["all"]["used"] == report["usage"]["all"]["used"]
    assert result["usage"]["all"]["perplexity"] == pytest.approx(
        report["usage"]["all"]["perplexity"]
    )


@pytest.mark.slow
def test_reconstruction_of_a_real_model_on_small_images():
    """Images of 6 x 8 pixels, into which no SSIM window fits, have no SSIM and a warning; PSNR and
    codes are those of the model's own tokens."""
    model = small.pipeline()
    pixels = RANDOM.integers(0, 256, (6, 6, 8, 1), dtype=np.uint8)
    report = reconstruction.evaluate(
        model, Images(pixels).set, toy_network.network(), None, cache=""
    )
    assert report["metrics"]["ssim"] is None and report["metrics"]["perceptual"] is None
    assert any("no SSIM" in w for w in report["warnings"])
    images = pixels.astype(np.float32) / 127.5 - 1
    tokens = model.encode(images)
    mse = ((model.decode(tokens) - images) ** 2).mean((1, 2, 3)) / 4
    assert report["metrics"]["psnr"]["value"] == pytest.approx(
        np.mean(-10 * np.log10(mse)), rel=1e-4
    )
    assert report["usage"]["all"]["used"] == len(np.unique(tokens))
    sampled = reconstruction.picture(model, pixels[:2])
    assert sampled.width > 96 * (1 + len(small.SCALES)) and sampled.height > 2 * 72
