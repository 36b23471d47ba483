"""Profile-likelihood intervals against closed forms, definitions and coverage, and bootstraps."""

import numpy as np
import pytest
from scipy import optimize, stats

from helpers.cases import first_of
from scaling.planted import JOINT, joint, single
from var_jax.scaling import (
    bootstrap,
    estimate,
    frontier,
    interval_limits,
    laws,
    losses,
    profile_intervals,
    solver,
)
from var_jax.studies import interval_coverage, interval_coverage_reported, planted_laws


def both(planted):
    x, y, _ = planted
    fit = estimate.fit(solver.problem(x, y, losses.StudentT()))
    p = solver.problem(x, y, fit.loss)
    return p, fit, profile_intervals.likelihood(p, fit)


def test_profile_of_a_pure_power_law_is_the_t_interval():
    """Without E the law is a line in logarithms, whose intervals linear regression knows; the few
    runs count for fewer, as they cannot show whether their noise is of one size."""
    x, y, _ = single(noise=0.01, theta=(0.0, np.log(20), 0.2))
    p = solver.problem(x, y, losses.StudentT())
    fit = laws.fit(p, floor=0.0)
    ends = profile_intervals.profile(profile_intervals.likelihood(p, fit, floor=0.0))
    line = stats.linregress(np.log(x[:, 0]), np.log(y))
    left = len(y) - 2
    counted = interval_limits.LEFT_OF_FEW * left
    quantile = stats.t.ppf(0.975, counted) * np.sqrt(left / counted)
    half = quantile * line.stderr
    np.testing.assert_allclose(ends[2], [-line.slope - half, -line.slope + half], rtol=1e-4)
    half = quantile * line.intercept_stderr
    np.testing.assert_allclose(
        ends[1], np.exp([line.intercept - half, line.intercept + half]), rtol=1e-3
    )
    np.testing.assert_array_equal(ends[0], [0, 0])


def test_many_runs_count_in_full():
    """Where growth of the noise can be told, no degree is left out; one is always left."""
    none = np.array(np.inf), np.array(0.0)
    assert interval_limits.degrees_of_freedom(30, 5, *none) == 25
    assert interval_limits.degrees_of_freedom(10, 3, *none) == pytest.approx(5.95)
    assert interval_limits.degrees_of_freedom(4, 3, *none) == 1


def test_profile_ends_where_the_objective_reaches_its_limit():
    """At each end the other parameters are refitted, and the cost has risen by the allowed
    amount."""
    _, _, likelihood = both(single(noise=3e-3, seed=4))
    (allowed,) = likelihood.rise(np.array(profile_intervals.EQUAL_TAILS[:1]))
    for end in profile_intervals.profile(likelihood)[2]:
        rows = np.tile(likelihood.theta, (40, 1))
        rows[:, 2] = end
        rows[:, 0] = np.linspace(0.5, 2.2, 40)
        _, costs = solver.solve(likelihood.problem, rows, np.array([False, False, True]))
        assert costs.min() - likelihood.cost == pytest.approx(allowed, rel=1e-3)


def test_profile_of_an_undetermined_floor_starts_at_0():
    """Noisy runs over a short range cannot exclude E = 0."""
    _, _, likelihood = both(single(noise=0.02, seed=3, low=1e8, high=6e8))
    assert profile_intervals.profile(likelihood)[0, 0] == 0


def test_profile_prediction_at_infinite_x_has_the_interval_of_e():
    """At x = 1e60 only the irreducible loss E is left, so that the interval of the prediction is
    E's interval with equal tails."""
    _, _, likelihood = both(single(noise=3e-3, seed=5))
    ends = profile_intervals.profile_prediction(likelihood, np.array([1e60])).interval
    np.testing.assert_allclose(
        ends, profile_intervals.profile(likelihood, profile_intervals.EQUAL_TAILS)[0], rtol=1e-4
    )


def test_profile_of_an_undetermined_optimum_ends_at_its_limit():
    """Noisy runs hardly determine the best size. With B solved for, so that the size holds exactly,
    scipy's least squares at both ends has the likelihood of the interval's limit."""
    x, y, _ = joint(shape=(7, 3), noise=0.04, seed=2)
    p = solver.problem(x, y, losses.StudentT())
    likelihood = profile_intervals.likelihood(p, laws.fit(p))
    cost, compute = frontier.Cost(float(np.log(6)), 1.0, 0.0), 1e21

    def log_params(theta):
        raw = laws.shift(theta, likelihood.mean)
        return np.log(frontier.optimum(raw, cost, compute)[:, 0])

    def residuals(free, size):
        theta = np.insert(free, 3, 0.0)
        theta[3] += (log_params(theta[None])[0] - size) * (theta[2] + theta[4])
        return solver.residuals(likelihood.problem, theta[None])[0]

    (allowed,) = likelihood.rise(np.array(profile_intervals.EQUAL_TAILS[:1]))
    ends = profile_intervals.profile_quantity(likelihood, log_params)
    assert np.diff(ends)[0] > 1
    lower, upper = (np.delete(edge, 3) for edge in solver.bounds(p))
    for end in ends:
        result = optimize.least_squares(
            residuals,
            np.delete(likelihood.theta, 3),
            args=(end,),
            bounds=(lower, upper),
            x_scale="jac",
            ftol=1e-12,
            xtol=1e-12,
        )
        variance = 2 * result.cost / len(y)
        rise = len(y) / 2 * np.log(variance / likelihood.scale**2)
        assert rise == pytest.approx(allowed, rel=1e-2)


@pytest.mark.parametrize("strength", [30.0, 1e3, 1e4])
def test_profile_of_a_quantity_does_not_depend_on_the_penalty(strength, monkeypatch):
    """The penalty only moves the law along its profile. Where it holds a prediction loosely, the
    ends are those of scipy's least squares with E solved for, so that the prediction is exact."""
    _, _, likelihood = both(single(noise=3e-3, seed=5))
    where = np.array([[4.0]])

    def log_loss(theta):
        return np.log(solver.predict(theta, where)[:, 0])

    def residuals(free, value):
        theta = np.array([[0.0, *free]])
        theta[0, 0] = np.exp(value) - solver.terms(theta, where)[0, 0, 0]
        return solver.residuals(likelihood.problem, theta)[0]

    monkeypatch.setattr(profile_intervals, "PIN_STRENGTH", strength)
    ends = profile_intervals.profile_quantity(likelihood, log_loss)
    best = log_loss(likelihood.theta[None])[0]
    assert ends[0] < best < ends[1]
    (allowed,) = likelihood.rise(np.array(profile_intervals.EQUAL_TAILS[:1]))
    for end in ends:
        result = optimize.least_squares(
            residuals, likelihood.theta[1:], args=(end,), x_scale="jac", ftol=1e-12, xtol=1e-12
        )
        variance = 2 * result.cost / likelihood.runs
        rise = likelihood.runs / 2 * np.log(variance / likelihood.scale**2)
        assert rise == pytest.approx(allowed, rel=3e-3)


def test_profile_of_a_quantity_ends_at_the_last_value_that_a_law_has():
    """No law has an E below 0: where 0 cannot be excluded, the interval starts exactly there and
    not at a value that the penalty pulled E to."""
    _, _, likelihood = both(single(noise=0.02, seed=3, low=1e8, high=6e8))
    low, high = profile_intervals.profile_quantity(likelihood, lambda theta: theta[:, 0])
    assert low == pytest.approx(0, abs=1e-12)
    assert low < likelihood.theta[0] < high


def test_predictions_and_optima_lie_inside_their_intervals():
    """A predicted loss and a budget's best size are of the law that maximizes the likelihood, so
    their profiles start there: also for few runs, gross outliers and heavy tails."""
    cost = frontier.Cost(float(np.log(6)), 1.0, 0.0)
    dirty = {planted.name: planted for planted in planted_laws.DIRTY}
    for name in ("10 runs, outliers", "10 runs, student_2", "joint law, 12 runs, outliers"):
        planted = dirty[name]
        for seed in range(3):
            p = planted.draw(np.random.default_rng([9, seed]))
            fit = estimate.fit(p)
            likelihood = profile_intervals.likelihood(p, fit)
            far = np.exp(p.logx.max(axis=0) + 3)
            prediction = profile_intervals.profile_prediction(likelihood, far)
            low, high = prediction.interval
            assert low <= prediction.value <= high
            assert low < high
            assert prediction.new_run_interval[0] < low and high < prediction.new_run_interval[1]
            if p.logx.shape[1] == 1:
                continue

            def log_params(theta, likelihood=likelihood):
                raw = laws.shift(theta, likelihood.mean)
                return np.log(frontier.optimum(raw, cost, 1e21)[:, 0])

            low, high = profile_intervals.profile_quantity(likelihood, log_params)
            assert low < log_params(likelihood.theta[None])[0] < high


def test_profile_is_hardly_widened_by_a_stray_run():
    """One run of 24 that is off by 15 % widens the interval by less than half."""
    x, y, _ = joint(noise=2e-3, seed=6)
    clean = np.diff(profile_intervals.profile(both((x, y, None))[2])[2])[0]
    y[7] *= 1.15
    stray = np.diff(profile_intervals.profile(both((x, y, None))[2])[2])[0]
    assert stray < 1.5 * clean


def test_profile_without_degrees_of_freedom_is_nan():
    """Three runs determine three parameters and leave nothing to estimate the noise from."""
    x, y, _ = single(runs=3, noise=1e-3)
    assert np.isnan(profile_intervals.profile(both((x, y, None))[2])).all()


def test_bootstrap_draws_all_rows_of_a_run_together():
    """Rows that are given twice with half of the weight leave the intervals as they are."""
    x, y, _ = single(runs=12, noise=3e-3)
    p, fit, _ = both((x, y, None))
    rows = np.concatenate([x, x])
    doubled = solver.problem(rows, np.concatenate([y, y]), fit.loss, np.full(24, 0.5))
    runs = np.tile(np.arange(12), 2)
    together = bootstrap.percentile(bootstrap.resample(doubled, fit.theta, 400, groups=runs))
    once = bootstrap.percentile(bootstrap.resample(p, fit.theta, 400))
    np.testing.assert_allclose(together, once, rtol=1e-3)


def test_second_starts_of_a_bootstrap_are_left_out_only_where_they_are_of_no_use(monkeypatch):
    """Clean runs have one optimum: refits that try second starts for all resamples are the same.
    Where some of the first starts are bad, all second starts are tried, and of each resample the
    better of both ends is returned."""
    x, y, theta = joint(noise=3e-3)
    p = solver.problem(x, y, losses.StudentT())
    probed = bootstrap.resample(p, np.array(theta), 40)
    monkeypatch.setattr(bootstrap, "PROBED", 40)
    np.testing.assert_allclose(bootstrap.resample(p, np.array(theta), 40), probed)
    monkeypatch.setattr(bootstrap, "PROBED", 3)
    solve, rows = solver.solve, []

    def bad_by_turns(problem, start, held, **options):
        """The first starts of even resamples end badly, and the second of odd ones."""
        ends, costs = solve(problem, start, held, **options)
        number = np.arange(len(start)) + (3 if len(rows) == 2 else 0)
        bad = number % 2 == (1 if rows else 0)
        rows.append(len(start))
        return ends + 0.5 * bad[:, None], costs + 100.0 * bad

    monkeypatch.setattr(solver, "solve", bad_by_turns)
    np.testing.assert_allclose(bootstrap.resample(p, np.array(theta), 40), probed, rtol=1e-2)
    assert rows == [40, 3, 37]


def test_bootstrap_and_bca_surround_the_law_of_clean_data():
    """Both kinds of bootstrap intervals have positive widths for every parameter, and those of
    alpha contain its true value to within 0.03."""
    p, fit, _ = both(joint(shape=(8, 5), noise=2e-3, seed=8))
    samples = bootstrap.resample(p, fit.theta, 400)
    for ends in (bootstrap.percentile(samples), interval_coverage.bca(p, fit.theta, samples)):
        assert np.all(ends[:, 0] < ends[:, 1])
        assert ends[2, 0] < JOINT[2] + 0.03 and ends[2, 1] > JOINT[2] - 0.03


CASES = {
    "single": planted_laws.STUDIES[1],
    "short range": planted_laws.STUDIES[2],
    "joint": planted_laws.STUDIES[4],
}


def fitted_sweeps(name, sweeps):
    for seed in range(sweeps):
        p = CASES[name].draw(np.random.default_rng([7, seed]))
        fit = estimate.fit(p)
        yield p, fit, profile_intervals.likelihood(p, fit)


def tail(likelihood, cost):
    """Returns the probability beyond an end at which the likelihood has this cost."""
    rise = max(cost - likelihood.cost, 0)
    root = np.sqrt(likelihood.freedom * np.expm1(2 * rise / likelihood.runs))
    return stats.t.sf(root, likelihood.freedom)


def confidence(likelihood, index, truth):
    """The level at which an interval of equal tails just reaches the truth."""
    held = np.arange(len(likelihood.theta)) == index
    rows = np.stack([likelihood.theta, laws.shift(truth, -likelihood.mean)])
    rows[:, index] = truth[index]
    _, costs = solver.solve(likelihood.problem, rows, held)
    return 1 - 2 * tail(likelihood, costs.min())


@pytest.mark.parametrize("name", first_of(list(CASES)))
def test_half_confidence_intervals_contain_the_truth_half_the_time(name):
    """In 12 sweeps of a planted law, 50 % intervals contain the truth 2 to 10 times, so that
    intervals that are much too narrow or too wide fail."""
    truth = np.array(CASES[name].theta)
    levels = np.array(
        [
            [confidence(likelihood, i, truth) for i in (0, 2)]
            for _, _, likelihood in fitted_sweeps(name, 12)
        ]
    )
    within = np.sum(levels <= 0.5, axis=0)
    assert np.all(
        (within >= 2) & (within <= 10)
    )  # were each one half, another count would be one in 150
    assert np.all(np.sum(levels <= 0.95, axis=0) >= 9)


@pytest.mark.study
@pytest.mark.parametrize("name", CASES)
def test_profile_coverage_and_width(name):
    """In 200 sweeps of each law 90 % to 98 % of the intervals contain the truth, and none is
    three quarters wider than the textbook's, which few runs make too short."""
    truth = laws.with_amplitudes(np.array(CASES[name].theta))
    result = [
        (profile_intervals.profile(likelihood), interval_coverage.reference(p, fit))
        for p, fit, likelihood in fitted_sweeps(name, 200)
    ]
    reported, textbook = (np.array(rows) for rows in zip(*result, strict=True))
    share = np.mean((reported[..., 0] <= truth) & (truth <= reported[..., 1]), axis=0)
    assert np.all((share >= 0.9) & (share <= 0.98))
    wider = interval_coverage_reported.widths(reported) / interval_coverage_reported.widths(
        textbook
    )
    assert np.all((wider > 1) & (wider <= 1.75))


def test_profile_of_e_has_unequal_tails():
    """E's ends lie where the tails have the given probabilities, and the other parameters have
    equal tails."""
    _, _, likelihood = both(single(noise=3e-3, seed=5))
    equal, reported = (
        profile_intervals.profile(likelihood, tails)
        for tails in (profile_intervals.EQUAL_TAILS, profile_intervals.E_TAILS)
    )
    np.testing.assert_array_equal(equal[1:], reported[1:])
    assert np.all(reported[0] > equal[0])
    below, above = profile_intervals.E_TAILS
    assert below + above == pytest.approx(1 - profile_intervals.CONFIDENCE_LEVEL)
    for end, probability in zip(reported[0], profile_intervals.E_TAILS, strict=True):
        _, costs = solver.solve(
            likelihood.problem,
            np.array([[end, *likelihood.theta[1:]]]),
            np.array([True, False, False]),
        )
        assert tail(likelihood, costs[0]) == pytest.approx(probability, rel=1e-2)


def test_profile_widens_with_the_noise():
    """Twice the noise widens every interval by more than half."""
    x, y, _ = single(noise=1e-3, seed=9)
    narrow = both((x, y, None))[2]
    exact = single()[1]
    wide = both((x, exact * (y / exact) ** 2, None))[2]
    assert np.all(
        np.diff(profile_intervals.profile(wide)) > 1.5 * np.diff(profile_intervals.profile(narrow))
    )


def test_band_is_the_interval_of_the_prediction_at_each_input():
    """A plot's band is what the prediction there reports, and above E that of the law's term."""
    x, y, _ = single(noise=3e-3, seed=5)
    _, _, likelihood = both((x, y, None))
    grid = np.array([[3e7], [3e8], [9e9]])
    predicted = [profile_intervals.profile_prediction(likelihood, at).interval for at in grid]
    width = np.diff(np.log(predicted))
    ends = np.log(profile_intervals.band(likelihood, grid))
    assert np.all(np.abs(ends - np.log(predicted)) < 0.01 * width)
    reducible = profile_intervals.band(likelihood, grid, reducible=True)
    logx = np.log(grid) - likelihood.mean

    for ends, where in zip(reducible, logx, strict=True):
        alone = profile_intervals.profile_quantity(
            likelihood, lambda theta, where=where: theta[:, 1] - theta[:, 2] * where[0]
        )
        assert np.all(np.abs(np.log(ends) - alone) < 0.01 * np.diff(alone))
