"""Scores of features: formulas written out in numpy, closed forms and intervals."""

import numpy as np
import pytest
from scipy.special import log_softmax

from var_jax.evaluate import scores


def kl_score(probs) -> float:
    marginal = probs.mean(0)
    return float(np.exp(np.mean([np.sum(p * (np.log(p) - np.log(marginal))) for p in probs])))


def test_classifier_score_equals_its_formula():
    """Splits are drawn by the seed, and the score of uniform predictions is 1."""
    random = np.random.default_rng(0)
    log_probs = log_softmax(3 * random.standard_normal((60, 5)), axis=1)
    result = scores.classifier_score(log_probs, seed=7, resamples=50, splits=3)
    order = np.random.default_rng(7).permutation(60)
    expected = [kl_score(np.exp(log_probs[part])) for part in np.split(order, 3)]
    assert result["value"] == pytest.approx(np.mean(expected)) and result["std"] == pytest.approx(
        np.std(expected)
    )
    assert result["ci95"][0] < result["value"] < result["ci95"][1] and result["splits"] == 3
    assert scores.classifier_score(np.full((40, 5), np.log(0.2)), seed=0, resamples=0)[
        "value"
    ] == pytest.approx(1)


def test_classifier_score_shuffles_classes_in_order():
    """A split of one class would score 1, and shuffled splits of ten classes score nearly 10."""
    sure = np.log(np.full((1000, 10), 1e-9) + np.repeat(np.eye(10), 100, axis=0))
    assert kl_score(np.exp(sure[:100])) == pytest.approx(1, abs=1e-3)  # a split of one class
    assert scores.classifier_score(sure, seed=0, resamples=0)["value"] > 9


def naive_squared_mmd(x, y) -> float:
    kernel = lambda a, b: (a @ b / len(a) + 1) ** 3  # noqa: E731
    n = len(x)
    within = [
        np.mean([kernel(z[i], z[j]) for i in range(n) for j in range(n) if i != j]) for z in (x, y)
    ]
    return sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_kernel_distance_equals_its_formula():
    """The distance is the formula's sums over pairs, written out over the subsets that the seed
    draws."""
    random = np.random.default_rng(1)
    x, y = random.standard_normal((12, 4)), random.standard_normal((12, 4)) + 0.5
    assert scores.squared_mmd(x, y) == pytest.approx(naive_squared_mmd(x, y))
    assert scores.kernel_distance(x, y[:11], seed=0)["subset"] == 5
    result = scores.kernel_distance(x, y, seed=3, subset=6, subsets=4)
    draw, values = np.random.default_rng(3), []
    for _ in range(4):
        a, b = draw.permutation(12)[:6], draw.permutation(12)[:6]
        values.append(naive_squared_mmd(x[a], y[b]))
    assert result["value"] == pytest.approx(np.mean(values)) and result["std"] == pytest.approx(
        np.std(values)
    )


@pytest.mark.parametrize("subset", [25, 50])  # of 100 rows
def test_kernel_distance_is_unbiased_and_its_interval_that_of_drawing_again(subset):
    """Over 200 draws of equal distributions the mean is 0, and the interval is as wide as the
    spread over new samples."""
    random = np.random.default_rng(2)
    same, difference, within = [], [], []
    for seed in range(200):
        x, y, z = random.standard_normal((3, 100, 3))
        same.append(scores.squared_mmd(x, y))
        result = scores.kernel_distance(x, z + 0.7, seed=seed, subset=subset, subsets=20)
        difference.append(result["value"])
        within.append((result["ci95"][1] - result["ci95"][0]) / 2 / 1.96)
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200)
    assert 0.85 < np.mean(within) / np.std(difference) < 1.25


def moments(mean, covariance) -> list[np.ndarray]:
    """E[1], E[x_i], E[x_i x_j], E[x_i x_j x_k] of a Gaussian."""
    mixed = np.einsum("i,jk->ijk", mean, covariance)
    third = (
        np.einsum("i,j,k->ijk", mean, mean, mean)
        + mixed
        + mixed.transpose(1, 0, 2)
        + mixed.transpose(1, 2, 0)
    )
    return [np.ones(()), mean, covariance + np.outer(mean, mean), third]


@pytest.mark.long
def test_kernel_distance_of_gaussians_in_closed_form():
    """(x.y / d + 1)^3 is a sum over powers j of binomial(3, j) / d^j times the product of j-th
    moments, x's and y's."""
    means = np.array([0.3, -0.2]), np.array([-0.4, 0.5])
    roots = np.array([[1.0, 0.0], [0.4, 0.8]]), np.array([[0.7, 0.0], [-0.3, 1.2]])
    p, q = (moments(mean, root @ root.T) for mean, root in zip(means, roots, strict=True))
    exact = sum(times / 2**j * np.sum((p[j] - q[j]) ** 2) for j, times in enumerate((1, 3, 3, 1)))

    random, values = np.random.default_rng(4), []
    for seed in range(100):
        x, y = (
            mean + random.standard_normal((400, 2)) @ root.T
            for mean, root in zip(means, roots, strict=True)
        )
        values.append(scores.kernel_distance(x, y, seed=seed, subset=100, subsets=20)["value"])
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert error < exact / 20  # so that another kernel would show
    assert abs(np.mean(values) - exact) < 3 * error
    x, y = (
        mean + random.standard_normal((4000, 2)) @ root.T
        for mean, root in zip(means, roots, strict=True)
    )
    result = scores.kernel_distance(x, y, seed=0)
    assert (
        abs(result["value"] - exact) < 3 * (result["ci95"][1] - result["ci95"][0]) / 2 / scores.Z_95
    )


def naive_inside(points, centers, k) -> np.ndarray:
    inside = []
    for p in points:
        result = False
        for c in centers:
            radius = sorted(np.linalg.norm(centers - c, axis=1))[k]  # the center itself comes first
            result |= np.linalg.norm(p - c) <= radius
        inside.append(result)
    return np.array(inside)


def test_precision_recall_equal_their_definition():
    """Neighbors are counted one by one, and both extremes and a narrow set behave as they
    should."""
    random = np.random.default_rng(3)
    x, y = random.standard_normal((40, 2)), 0.7 * random.standard_normal((35, 2)) + 1
    result = scores.precision_recall(x, y)
    assert result["precision"]["value"] == naive_inside(x, y, 3).mean()
    assert result["recall"]["value"] == naive_inside(y, x, 3).mean()
    assert 0 < result["precision"]["value"] < 1 and result["precision"]["counts"] == [40, 35]
    for same, value in (
        (scores.precision_recall(x, x), 1),
        (scores.precision_recall(x, x + 100), 0),
    ):
        assert [same[name]["value"] for name in ("precision", "recall")] == [value, value]
    narrow = scores.precision_recall(
        0.01 * x, x
    )  # all samples are real, but few real images are near one
    assert narrow["precision"]["value"] == 1 and narrow["recall"]["value"] < 0.2


def test_density_and_coverage_of_points_on_a_line():
    """Ten points at distance 1: with two neighbors the radius is 1, and 2 at both ends. The sample
    at 0.5 is inside the balls of 0 and 1; that at 3 inside its own alone, as a point on the surface
    is outside: (2 + 1) / 2 samples / 2 neighbors, and the balls of 0, 1 and 3 are covered."""
    reference = np.arange(10.0)[:, None]
    result = scores.density_coverage(np.array([[0.5], [3.0]]), reference, k=2)
    assert result["density"]["value"] == 0.75 and result["coverage"]["value"] == 0.3
    assert result["coverage"]["counts"] == [2, 10]


def test_density_and_coverage_by_their_definition():
    """A loop over all pairs gives the same; equal sets have exactly 1 of both, distant ones 0, and
    samples that crowd in one place a high density and a low coverage."""
    random = np.random.default_rng(5)
    x, y = random.standard_normal((40, 2)), 0.7 * random.standard_normal((35, 2)) + 1
    radii = [sorted(np.linalg.norm(y - center, axis=1))[5] for center in y]
    inside = np.array(
        [[np.linalg.norm(p - c) < r for c, r in zip(y, radii, strict=True)] for p in x]
    )
    result = scores.density_coverage(x, y)
    assert result["density"]["value"] == pytest.approx(inside.sum() / 40 / 5)
    assert result["coverage"]["value"] == inside.any(axis=0).mean()
    low, high = result["density"]["ci95"]
    standard_error = np.std(inside.sum(axis=1) / 5, ddof=1) / np.sqrt(40)
    assert (high - low) / 2 == pytest.approx(scores.Z_95 * standard_error)
    for samples, density, coverage in ((y, 1, 1), (y + 100, 0, 0)):
        result = scores.density_coverage(samples, y)
        assert result["density"]["value"] == pytest.approx(density)
        assert result["coverage"]["value"] == coverage
    crowd = scores.density_coverage(np.tile(np.median(y, axis=0), (40, 1)), y)
    assert crowd["density"]["value"] > 1 and crowd["coverage"]["value"] < 0.6


def test_cmmd_of_two_points_in_closed_form():
    """Of one row each it is 1000 (2 - 2 k), with k = exp(-|x - y|^2 / 200): the rows' kernels with
    themselves, 1 each, are counted."""
    x, y = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert scores.cmmd(x, y) == pytest.approx(1000 * (2 - 2 * np.exp(-2 / 200)), rel=1e-12)
    both = np.concatenate([x, y])
    # Two rows against one of them: mean k_xx = (1 + k) / 2 = mean k_xy, so that half of it is left.
    assert scores.cmmd(both, x) == pytest.approx(1000 * (1 - np.exp(-2 / 200)) / 2, rel=1e-9)


def test_cmmd_of_equal_sets_is_zero_and_equals_its_definition(monkeypatch):
    """Equal sets have 0 to the last bit, of more rows than are taken at once, too; of others it is
    the sum over all pairs."""
    random = np.random.default_rng(0)
    x, y = (random.standard_normal((n, 6)) for n in (40, 30))
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    monkeypatch.setattr(scores, "KERNEL_ROWS", 7)
    assert scores.cmmd(x, x) == 0

    def mean(a, b):
        return np.mean([[np.exp(-np.sum((p - q) ** 2) / 200) for q in b] for p in a])

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert scores.cmmd(x, y) == pytest.approx(expected, rel=1e-8) and expected > 0
    assert scores.cmmd(x, y) == pytest.approx(scores.cmmd(y, x), rel=1e-9)


def test_share_and_mean_with_interval_equal_their_formulas():
    """Wilson's ends lie 1.96 of their own deviations away, and a mean of one value has no
    interval."""
    share = scores.share(np.arange(50) < 15)
    assert share["value"] == 0.3 and share["count"] == 50
    for end in share["ci95"]:  # Wilson: shares that lie 1.96 of their own deviations away
        assert abs(end - 0.3) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / 50))
    assert scores.share(np.zeros(10, bool))["ci95"][0] == 0
    assert scores.share(np.ones(10, bool))["ci95"][1] == 1
    result = scores.mean_with_interval(np.array([1.0, 2.0, 3.0, 6.0]))
    half = 1.96 * np.std([1, 2, 3, 6], ddof=1) / 2
    assert result["value"] == 3 and result["ci95"] == pytest.approx([3 - half, 3 + half])
    assert scores.mean_with_interval(np.array([2.0])) == {"value": 2, "ci95": None}
