"""The reported law and its intervals are of one likelihood, under clean and under dirty noise."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from helpers.cases import first_of
from scaling.planted import joint, single
from var_jax.scaling import estimate, laws, losses, profile_intervals, solver
from var_jax.studies import batched_coverage, planted_laws

DIRTY = {planted.name: planted for planted in planted_laws.DIRTY}
SMALL = [name for name in DIRTY if "120" not in name]


def reported(p):
    """The most likely law's values, their intervals and the fit."""
    fit = estimate.fit(p)
    ends = profile_intervals.profile(profile_intervals.likelihood(p, fit))
    return np.array(list(fit.values.values())), ends, fit


@pytest.mark.parametrize("name", first_of(SMALL))
def test_values_lie_within_their_intervals(name):
    """On every planted law with noise that real runs may have, each value lies within its interval:
    the search for the interval starts at the value, and both are of one likelihood."""
    for seed in range(2):
        p = DIRTY[name].draw(np.random.default_rng([3, seed]))
        values, ends, _ = reported(p)
        assert np.all((ends[:, 0] <= values) & (values <= ends[:, 1]))
        assert np.all(ends[:, 0] < ends[:, 1])


@pytest.mark.parametrize(
    "name",
    first_of(
        [
            "joint law, 30 runs, correlated",
            "30 runs, student_2",
            "30 runs, heteroscedastic",
            "joint law, 12 runs, outliers",
        ]
    ),
)
def test_batched_verdicts_are_those_of_the_intervals(name):
    """The study of coverage tests the truth instead of computing ends: the noise that it chooses
    and whether the interval contains the truth are those of the reported law."""
    planted = DIRTY[name]
    problems = [planted.draw(np.random.default_rng([6, seed])) for seed in range(4)]
    truth = laws.with_amplitudes(np.array(planted.theta))
    results = batched_coverage.verdicts(problems, np.array(planted.theta))
    for sweep, p in enumerate(problems):
        _, ends, fit = reported(p)
        assert isinstance(fit.loss, losses.StudentT)
        assert results.degrees[sweep] == fit.loss.freedom
        growth, share = 0.0, 0.0
        if fit.whitening is not None:
            growth, share = fit.whitening.growth, fit.whitening.share
        assert results.growth[sweep] == pytest.approx(growth, abs=1e-3)
        assert results.share[sweep] == pytest.approx(share, abs=1e-3)
        contains = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
        np.testing.assert_array_equal(results.inside[sweep], contains)


def heavy_tailed(seed):
    """A grid of 120 runs whose noise has 2 degrees of freedom."""
    return DIRTY["joint law, 120 runs, student_2"].draw(np.random.default_rng([4, seed]))


def test_heavy_tails_have_shorter_intervals_than_least_squares():
    """The likelihood of the noise that the runs have says more about the law."""
    p = heavy_tailed(0)
    normal = laws.fit(p)
    wide = profile_intervals.profile(profile_intervals.likelihood(p, normal))
    values, ends, fit = reported(p)
    assert fit.loss != losses.StudentT()
    assert np.all((ends[:, 0] <= values) & (values <= ends[:, 1]))
    assert np.all(np.diff(ends[[0, 2, 4]]) < 0.8 * np.diff(wide[[0, 2, 4]]))


def test_fit_is_the_maximum_of_scipys_likelihood():
    """The scale and the law's cost are those of scipy's density at the residuals, and no nearby law
    or scale is more likely."""
    p = heavy_tailed(1)
    fit = estimate.fit(p)
    assert isinstance(fit.loss, losses.StudentT) and math.isfinite(fit.loss.freedom)
    r = solver.residuals(p, fit.theta[None])
    scale = fit.loss.scale(r, p.weights[None])[0]
    cost = -np.sum(stats.t.logpdf(r, fit.loss.freedom, scale=scale))
    assert fit.cost == pytest.approx(cost, rel=1e-9)
    for i in range(5):
        for sign in (-1, 1):
            other = fit.theta.copy()
            other[i] += sign * 1e-3 * abs(other[i])
            r = solver.residuals(p, other[None])
            assert -np.sum(stats.t.logpdf(r, fit.loss.freedom, scale=scale)) > cost


def test_many_degrees_of_freedom_are_least_squares():
    """As the degrees of freedom grow, law and intervals tend to those of normal noise, but for the
    degrees that heavy tails take off the noise's."""
    x, y, _ = single(runs=12, noise=3e-3, seed=2)
    squares, heavy = losses.StudentT(), losses.StudentT(1e6)
    results = []
    for loss in (squares, heavy):
        p = solver.problem(x, y, loss)
        fit = laws.fit(p)
        likelihood = profile_intervals.likelihood(p, fit)
        likelihood = dataclasses.replace(likelihood, freedom=12 - 3)
        results.append((fit.theta, profile_intervals.profile(likelihood)))
    (normal, normal_ends), (student, student_ends) = results
    np.testing.assert_allclose(student, normal, rtol=1e-4)
    np.testing.assert_allclose(student_ends, normal_ends, rtol=2e-3)


def test_clean_runs_have_normal_noise():
    """Ten clean runs seldom look heavy-tailed enough for another likelihood."""
    chosen = [
        estimate.fit(solver.problem(*single(noise=3e-3, seed=seed)[:2], losses.StudentT())).loss
        for seed in range(6)
    ]
    assert chosen == [losses.StudentT()] * 6


def test_gross_outliers_are_followed_by_no_law():
    """Two runs of forty are far off: the law is that of the others to their own accuracy."""
    x, y, theta = joint(shape=(8, 5), noise=2e-3, seed=3)
    y[[4, 22]] *= [1.2, 0.9]
    values, ends, fit = reported(solver.problem(x, y, losses.StudentT()))
    assert fit.loss != losses.StudentT()
    truth = laws.with_amplitudes(np.array(theta))
    assert np.all((ends[:, 0] < truth) & (truth < ends[:, 1]))
    assert values[2] == pytest.approx(theta[2], abs=0.03)
    assert np.diff(ends[2])[0] < 0.1


def test_exact_runs_have_intervals_around_the_exact_law():
    """Without noise the scale ends at rounding, and the values lie within short intervals."""
    x, y, theta = single()
    values, ends, _ = reported(solver.problem(x, y, losses.StudentT()))
    np.testing.assert_allclose(values, laws.with_amplitudes(np.array(theta)), rtol=1e-5)
    assert np.all((ends[:, 0] <= values) & (values <= ends[:, 1]))
    assert np.all(np.diff(ends)[:, 0] < 1e-3 * values)
