"""The Fréchet distance: closed forms, the published code, moments in batches, and its deviation."""

import numpy as np
import pytest
import scipy.linalg

from var_jax.evaluate.fid import Frechet, Moments, frechet_distance, moments


def gaussian(mean, covariance) -> Moments:
    """As if 101 rows had been seen."""
    return Moments(101, np.asarray(mean, float), 100 * np.asarray(covariance, float))


def published(x, y) -> float:
    """As pytorch-fid computes it."""
    m, n = x.mean(0), y.mean(0)
    c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(c @ d)
    return float((m - n) @ (m - n) + np.trace(c) + np.trace(d) - 2 * np.trace(root).real)


def test_frechet_distance_of_gaussians_with_a_closed_form():
    """Diagonal covariances, also turned by one rotation, and equal Gaussians, whose distance is
    0."""
    a, b = np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.25])
    difference = frechet_distance(gaussian([0, 0, 1], np.diag(a)), gaussian([3, 0, -1], np.diag(b)))
    assert difference == pytest.approx(9 + 4 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2), rel=1e-12)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[
        0
    ]  # covariances that commute, turned
    turned = frechet_distance(
        gaussian(turn @ [0, 0, 1], turn * a @ turn.T),
        gaussian(turn @ [3, 0, -1], turn * b @ turn.T),
    )
    assert turned == pytest.approx(difference, rel=1e-12)
    same = gaussian([1, 2, 3], turn * a @ turn.T)
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_is_that_of_the_published_code():
    """A matrix square root by SciPy, as in the published implementation, gives the same to 1e-9."""
    random = np.random.default_rng(1)
    x, y = (
        random.standard_normal((200, 8)) @ random.standard_normal((8, 8)) + shift
        for shift in (0, 0.3)
    )
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(published(x, y), rel=1e-9)


def test_fewer_rows_than_dimensions():
    """tr (A A' B B')^(1/2) is the sum of the singular values of A' B, whatever the rank."""
    random = np.random.default_rng(2)
    x, y = random.standard_normal((5, 12)), random.standard_normal((7, 12)) + 1
    a, b = ((rows - rows.mean(0)) / np.sqrt(len(rows) - 1) for rows in (x, y))
    mixed = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum(a**2) + np.sum(b**2) - 2 * mixed
    # An eigenvalue of zero comes out as eps, and its root as that of eps: at most as many of them
    # as dimensions.
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(
        expected, abs=12 * np.finfo(float).eps ** 0.5
    )


def test_moments_merge_batches():
    """Mean and covariance of parts are those of the whole in float64, around 1000 as well, and
    integer weights repeat rows."""
    rows = 1000 + np.random.default_rng(3).standard_normal((50, 4)).astype(np.float32)
    total = Moments.empty(4)
    for part in (rows[:1], rows[1:1], rows[1:20], rows[20:]):
        total = total.merge(Moments.of(part))
    wide = rows.astype(np.float64)
    assert total.count == 50
    np.testing.assert_allclose(total.mean, wide.mean(0), rtol=1e-14)
    np.testing.assert_allclose(total.covariance, np.cov(wide, rowvar=False), rtol=1e-12, atol=1e-14)
    weights = np.array([0, 3, 1] + [0] * 47, float)
    weighted, repeated = moments(rows, weights), wide[[1, 1, 1, 2]]
    assert weighted.count == 4
    np.testing.assert_allclose(weighted.mean, repeated.mean(0), rtol=1e-14)
    np.testing.assert_allclose(
        weighted.covariance, np.cov(repeated, rowvar=False), rtol=1e-9, atol=1e-12
    )


def test_frechet_standard_error_is_that_of_new_samples():
    """The bootstrap's standard error agrees, within 15 %, with the standard deviation of the
    distance over 300 sets of new samples."""
    random = np.random.default_rng(4)
    reference = Frechet(gaussian([0, 0, 0], np.eye(3)))
    draw = lambda: random.standard_normal((400, 3)) * [1, 2, 1] + [0.5, 0, 0]  # noqa: E731
    distances = [reference.distance(moments(draw())) for _ in range(300)]
    errors = [reference.standard_error(draw(), 100, seed) for seed in range(5)]
    assert np.mean(errors) == pytest.approx(np.std(distances), rel=0.15)


def test_frechet_distance_is_never_below_zero():
    """The distance of a set from itself would be printed as a number below zero by rounding alone:
    with fewer rows than dimensions, every eigenvalue's rounding error counts against the sum."""
    for seed in range(8):
        rows = np.random.default_rng(seed).standard_normal((20, 60)) * 30
        assert 0 <= frechet_distance(moments(rows), moments(rows)) < 1e-3
