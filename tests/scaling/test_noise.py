"""Noise that grows for small runs, or that runs of one size share, is seen and allowed for."""

import dataclasses
import functools

import numpy as np
import pytest
from scipy import stats

from scaling.planted import joint
from var_jax.scaling import (
    bootstrap,
    estimate,
    laws,
    losses,
    noise,
    profile_intervals,
    solver,
    whitening,
)
from var_jax.studies import batched_coverage, planted_laws

DIRTY = {planted.name: planted for planted in planted_laws.DIRTY}
SEED = 11


def sweeps(name, count):
    """Sweeps of a planted law, as problems, and the law."""
    planted = DIRTY[name]
    return [planted.draw(np.random.default_rng([SEED, i])) for i in range(count)], planted.theta


def covariance(maps, growth, share):
    """The covariance of runs that the map describes, up to a factor."""
    pairs = maps.members.T @ maps.members
    size = np.exp(-growth * maps.place)
    return size[:, None] * ((1 - share) * np.eye(len(size)) + share * pairs) * size


def test_whitened_residuals_are_independent_of_one_size_and_the_map_has_determinant_one():
    """The map and its transpose around the covariance leave a multiple of the identity. It has the
    determinant one, so that a likelihood of the mapped residuals needs no further term."""
    logx = np.log(np.repeat([1e6, 1e7, 1e8, 3e8], [3, 2, 4, 1]))[:, None]
    growths, shares = np.array([0.3, -0.2]), np.array([0.4, 0.0])
    maps = whitening.independent(logx, np.ones(10))
    both = dataclasses.replace(maps, growth=growths, share=shares)
    mapped = both(np.tile(np.eye(10), (2, 1, 1))).swapaxes(1, 2)
    for i, (growth, share) in enumerate(zip(growths, shares, strict=True)):
        left = mapped[i] @ covariance(maps, growth, share) @ mapped[i].T
        np.testing.assert_allclose(left, left[0, 0] * np.eye(10), atol=1e-12)
        assert np.linalg.det(mapped[i]) == pytest.approx(1)
        one = dataclasses.replace(maps, growth=growth, share=share)
        assert left[0, 0] * one.unit**2 == pytest.approx(1)  # the variance of an average run
        np.testing.assert_allclose(one(np.eye(10)[None])[0].T, mapped[i])


@pytest.mark.parametrize("growth,share", [(0.4, 0.0), (-0.3, 0.5)])
def test_cost_is_that_of_scipys_multivariate_normal(growth, share):
    """The minimum is over the scale, so that no other scale has a higher density at residuals with
    the covariance of the map."""
    (p,), theta = sweeps("joint law, 30 runs, correlated", 1)
    maps = dataclasses.replace(
        whitening.independent(p.logx, p.weights), growth=np.array(growth), share=np.array(share)
    )
    cost = solver.objective(dataclasses.replace(p, whitening=maps), np.array([theta]))[0]
    bare = solver.residuals(p, np.array([theta]))[0]
    shape = covariance(maps, growth, share)
    densities = [
        stats.multivariate_normal(np.zeros(30), scale**2 * shape).logpdf(bare)
        for scale in np.geomspace(2e-3, 2e-2, 400)
    ]
    assert cost == pytest.approx(-max(densities), abs=1e-3)


def test_noise_that_grows_for_small_runs_is_seen_and_its_intervals_hold():
    """In 40 sweeps the standard deviation falls fourfold over the sizes: most show it, about as
    strongly, and the intervals hold the truth."""
    problems, theta = sweeps("30 runs, heteroscedastic", 40)
    results = batched_coverage.verdicts(problems, np.array(theta))
    planted = np.log(planted_laws.SPREAD) / np.ptp(
        whitening.independent(problems[0].logx, np.ones(30)).place
    )
    assert np.mean(results.growth > 0) >= 0.7
    assert np.median(results.growth) == pytest.approx(planted, abs=0.1)
    assert np.all(results.inside.mean(axis=0) >= 0.87)  # two standard errors below 95 %


def test_intervals_of_the_large_runs_law_are_shorter_where_small_runs_are_noisy():
    """E, which the large runs know best, has a shorter interval than by noise of one size; a new
    large run is predicted more closely than a small one."""
    (p,), _ = sweeps("120 runs, heteroscedastic", 1)
    fit = estimate.fit(p)
    assert fit.whitening is not None and fit.whitening.growth > 0
    likelihood = profile_intervals.likelihood(p, fit)
    plain = profile_intervals.likelihood(p, laws.fit(p))
    ends, wide = (profile_intervals.profile(each)[0] for each in (likelihood, plain))
    assert ends[0] <= fit.theta[0] <= ends[1]
    assert np.diff(ends) < 0.9 * np.diff(wide)
    x = np.exp(p.logx[[0, -1]])
    small, large = (
        np.diff(np.log(profile_intervals.profile_prediction(likelihood, at).new_run_interval))[0]
        for at in x
    )
    assert small / large == pytest.approx(planted_laws.SPREAD, rel=0.4)
    falling = fit.whitening.exponent
    assert falling == pytest.approx(np.log(planted_laws.SPREAD) / np.log(100), abs=0.1)
    assert f"standard deviation as params^{-falling:+.2f}" in estimate.describe(fit, "params")


def test_noise_that_runs_of_one_size_share_is_seen_and_its_intervals_hold():
    """In 40 sweeps of 6 sizes half of the variance is shared: most show it, and alpha's intervals
    hold the truth, which those of independent noise do in six of ten."""
    problems, theta = sweeps("joint law, 30 runs, correlated", 40)
    results = batched_coverage.verdicts(problems, np.array(theta))
    assert np.mean(results.share > 0) >= 0.6
    assert np.all(results.inside.mean(axis=0) >= 0.85)


def test_shared_noise_leaves_fewer_degrees_of_freedom_to_what_sizes_tell():
    """Of 12 sizes with 10 runs each, alpha's variance is known from the sizes, beta's from all
    runs; the value lies in its interval, which is wider than that of independent noise."""
    (p,), _ = sweeps("joint law, 120 runs, correlated", 1)
    fit = estimate.fit(p)
    assert fit.whitening is not None and fit.whitening.share > 0.2
    likelihood = profile_intervals.likelihood(p, fit)
    freedom = likelihood.freedom_of(likelihood.problem, np.eye(5))
    assert 7 < freedom[2] < 14 and freedom[4] > 80
    ends = profile_intervals.profile(likelihood)
    values = np.array(list(fit.values.values()))
    assert np.all((ends[:, 0] <= values) & (values <= ends[:, 1]))
    independent = profile_intervals.profile(profile_intervals.likelihood(p, laws.fit(p)))
    assert np.diff(ends[2]) > 1.5 * np.diff(independent[2])
    assert "of its variance common to runs of the same params" in estimate.describe(fit, "params")
    # The bootstrap of whole sizes spreads alpha as widely, one of runs would not.
    sizes = bootstrap.resample(fit.objective(p), fit.theta, 200, groups=p.logx[:, 0])
    runs = bootstrap.resample(p, fit.theta, 200)
    assert np.std(sizes[:, 2]) > 1.3 * np.std(runs[:, 2])


def test_satterthwaite_of_balanced_means_counts_the_groups():
    """A mean over g equal groups has g - 1 degrees of freedom, whatever the runs per group: its
    variance is that of the groups' means."""
    logx = np.log(np.repeat(np.geomspace(1e6, 1e8, 7), 5))[:, None]
    maps = whitening.independent(logx, np.ones(35))
    maps = dataclasses.replace(maps, share=np.array(0.4))
    freedom = whitening.satterthwaite(maps, np.ones((35, 1)), np.ones((1, 1)))
    assert freedom[0] == pytest.approx(6)


def test_growth_of_the_noise_is_tried_from_seven_degrees_of_freedom():
    """Noise that differs 8 times is seen in most sweeps of 12 runs, and never tried with 9 runs,
    whose 6 degrees of freedom tell nothing of it."""
    seen = {}
    for runs in (9, 12):
        kind = functools.partial(planted_laws.heteroscedastic, spread=8.0)
        law = planted_laws.VAR_LAST
        planted = planted_laws.Planted("", law, (18.5e6,), (2e9,), ((runs,),), 0.002, kind)
        problems = [planted.draw(np.random.default_rng(seed)) for seed in range(12)]
        fits = [estimate.fit(p, check=False) for p in problems]
        seen[runs] = sum(fit.whitening is not None for fit in fits)
    assert seen[9] == 0 and seen[12] >= 6


def test_clean_runs_have_independent_noise_of_one_size_and_rightly_so_nearly_always():
    """Clean grids of 6 sizes seldom look otherwise, and if so, only a little is shared."""
    problems = [solver.problem(*joint(noise=3e-3, seed=i)[:2], losses.StudentT()) for i in range(8)]
    chosen = [estimate.fit(p, check=False).whitening for p in problems]
    assert sum(maps is None for maps in chosen) >= 5


def test_shares_need_several_runs_of_a_size_and_more_sizes_than_parameters():
    """Runs of different sizes share nothing, and the means of few sizes are all fitted."""
    weights = np.ones(20)
    distinct = whitening.independent(np.arange(20.0)[:, None], weights)
    assert not noise.can_share(distinct, weights, 3)
    three = whitening.independent(np.repeat([1.0, 2, 3, 4], 5)[:, None], weights)
    assert noise.can_share(three, weights, 3)
    assert not noise.can_share(three, weights / 2, 3)
    assert not noise.can_share(
        whitening.independent(np.repeat([1.0, 2, 3, 4], 5)[:15, None], weights[:15]),
        weights[:15],
        3,
    )
