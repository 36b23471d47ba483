"""Repeated runs tell noise from misfit, in the test, the choice of noise and the warnings."""

import dataclasses

import numpy as np
import pytest
from scipy import optimize, stats

from scaling import planted
from var_jax.scaling import (
    analysis,
    estimate,
    isoflop_bias,
    lack_of_fit,
    losses,
    profile_intervals,
    report,
    report_text,
    select_runs,
    solver,
    table,
)

THETA = (1.8, float(np.log(400)), 0.34)
SIZES = np.geomspace(2e7, 2e9, 12)


def repeated(noise, misfit, seed=0, seeds=3):
    """Runs of a law with `seeds` runs of every size, whose form is off by `misfit` of log loss that
    alternates in sign and grows with the size, as noise might."""
    rng = np.random.default_rng(seed)
    place = np.linspace(0, 1, len(SIZES))
    off = misfit * place * (-1.0) ** np.arange(len(SIZES))
    exact = solver.predict(np.array([THETA]), np.log(SIZES[:, None]))[0] * np.exp(off)
    x = np.repeat(SIZES, seeds)[:, None]
    scale = np.broadcast_to(noise, len(SIZES))
    errors = np.repeat(scale, seeds) * rng.normal(size=len(x))
    return solver.problem(x, np.repeat(exact, seeds) * np.exp(errors), losses.StudentT())


def seeds_of_small_sizes(shared=0.0, interaction=0.0, seed=0):
    """Runs of a joint law, eight sizes with five budgets each, the two smallest by three seeds.

    The noise is 0.5 %, of which `shared` of the variance is common to runs of one size. The form is
    off by `interaction` at the corners.
    """
    rng = np.random.default_rng(seed)
    x, exact, _ = planted.joint((8, 5))
    place = np.log(x / np.sqrt(x.min(axis=0) * x.max(axis=0)))
    place = (place / place.max(axis=0)).prod(axis=1)
    again = np.isin(x[:, 0], np.unique(x[:, 0])[:2])
    rows = np.concatenate([np.arange(len(x)), *[np.flatnonzero(again)] * 2])
    _, owner = np.unique(x[rows, 0], return_inverse=True)
    common, own = rng.normal(size=8)[owner], rng.normal(size=len(rows))
    noise = 5e-3 * (shared**0.5 * common + (1 - shared) ** 0.5 * own)
    y = exact[rows] * np.exp(noise + interaction * place[rows])
    return solver.problem(x[rows], y, losses.StudentT())


def least_squares(p, start):
    """The law of least squares on log losses, by scipy from this start."""
    bare = dataclasses.replace(p, whitening=None)
    return optimize.least_squares(
        lambda theta: solver.residuals(bare, theta[None])[0], start, x_scale="jac"
    ).x


def test_statistic_is_the_analysis_of_variance_of_the_settings():
    """With a mean alone for the law, lack of fit against pure error is one-way analysis of variance
    of the settings, which scipy has."""
    rng = np.random.default_rng(0)
    groups = [rng.normal(loc, 1, size=4) for loc in (0, 0.5, 1, 2)]
    values = np.concatenate(groups)
    logx = np.repeat(np.arange(4.0), 4)[:, None]
    tested = lack_of_fit.examine(logx, (values - values.mean())[None], np.ones(16), 1)
    assert tested is not None and tested.freedom == (3, 12)
    expected = stats.f_oneway(*groups)
    assert tested.statistic[0] == pytest.approx(expected.statistic)
    assert tested.probability[0] == pytest.approx(expected.pvalue)


def test_right_form_is_rejected_as_seldom_as_the_level_says():
    """In 60 clean sweeps the test of a right form is clear hardly ever, and half of its
    probabilities lie below one half."""
    probabilities = []
    for seed in range(60):
        p = repeated(5e-3, 0.0, seed)
        fit = estimate.fit(p, check=False)
        tested = lack_of_fit.of_law(p, fit, 3)
        assert tested is not None
        probabilities.append(tested.probability[0])
    assert np.mean(np.array(probabilities) < lack_of_fit.LEVEL) <= 0.05
    assert 0.3 < np.mean(np.array(probabilities) < 0.5) < 0.7


def test_right_form_is_seldom_rejected_where_runs_of_one_size_share_noise():
    """In 40 sweeps of a right joint law, whose two smallest sizes have three seeds, 80 % of the
    variance is common to runs of one size. Sizes then scatter about the law by more than seeds do,
    which the test allows for: with noise taken for independent it is clear in most sweeps."""
    probabilities, shares, independent = [], [], []
    for seed in range(40):
        p = seeds_of_small_sizes(shared=0.8, seed=seed)
        fit = estimate.fit(p, check=False)
        tested = lack_of_fit.of_law(p, fit, 5)
        assert tested is not None and tested.freedom == (35, 20)
        probabilities.append(tested.probability[0])
        shares.append(0.0 if fit.whitening is None else float(fit.whitening.share))
        bare = dataclasses.replace(p, whitening=None)
        tested = lack_of_fit.examine(p.logx, solver.residuals(bare, fit.theta[None]), p.weights, 5)
        assert tested is not None
        independent.append(tested.is_clear[0])
    assert np.mean(np.array(probabilities) < lack_of_fit.LEVEL) <= 0.05
    assert 0.25 < np.mean(np.array(probabilities) < 0.5) < 0.75
    assert np.median(shares) > 0.6
    assert np.mean(independent) > 0.5


def test_misfit_is_not_taken_for_noise_that_runs_of_one_size_share(monkeypatch):
    """An interaction that no sum of powers has leaves its sizes apart, which looks like noise that
    each size shares: it is chosen where repeated runs are not looked at. With them it is refused,
    the law is that of least squares, and the warning says why."""
    p = seeds_of_small_sizes(interaction=0.08)
    fit = estimate.fit(p, check=False)
    assert fit.whitening is None
    np.testing.assert_allclose(fit.theta, least_squares(p, fit.theta), rtol=1e-3)
    (line,) = lack_of_fit.warnings(lack_of_fit.of_law(p, fit, 5))
    assert "fewer if repeated runs are branches of one trunk" in line
    monkeypatch.setattr(lack_of_fit, "PURE_FREEDOM", 10**6)
    unlooked = estimate.fit(p, check=False).whitening
    assert unlooked is not None and unlooked.share > 0.3


def test_misfit_of_small_runs_is_not_taken_for_their_noise(monkeypatch):
    """A misfit that grows for small runs leaves noise of one size, as the seeds have it; where
    repeated runs are not looked at it is taken for noise of small runs."""
    p = repeated(2e-3, 0.03)
    order = np.argsort(-p.logx[:, 0], kind="stable")
    exact = np.log(solver.predict(np.array([THETA]), p.logx)[0])
    p = dataclasses.replace(p, logy=exact + (p.logy - exact)[order])
    fit = estimate.fit(p, check=False)
    assert fit.whitening is None
    tested = lack_of_fit.of_law(p, fit, 3)
    (line,) = lack_of_fit.warnings(tested)
    assert line.startswith("lack-of-fit: the form does not describe the runs")
    assert tested is not None and tested.scatter[0] > 3
    monkeypatch.setattr(lack_of_fit, "PURE_FREEDOM", 10**6)
    unlooked = estimate.fit(p, check=False).whitening
    assert unlooked is not None and unlooked.growth > 0.3


def test_noise_of_small_runs_that_their_seeds_have_too_is_seen():
    """Where the seeds scatter as the residuals do, the growth is chosen and nothing is lacking."""
    p = repeated(np.geomspace(2e-2, 2e-3, len(SIZES)), 0.0)
    fit = estimate.fit(p, check=False)
    assert fit.whitening is not None and fit.whitening.growth > 0.3
    assert not lack_of_fit.warnings(lack_of_fit.of_law(p, fit, 3))


def test_law_of_noise_that_rises_with_size_is_that_of_least_squares():
    """Such noise cannot be told from misfit, so the law is not turned away from the largest runs:
    it is that of least squares. A new run's interval then has one width in log loss at all sizes,
    too wide for the small runs, and too narrow for the largest."""
    x = np.geomspace(SIZES[0], SIZES[-1], 36)[:, None]
    scale = np.geomspace(2e-3, 1.6e-2, len(x))
    exact = solver.predict(np.array([THETA]), np.log(x))[0]
    noise = scale * np.random.default_rng(3).normal(size=len(x))
    p = solver.problem(x, exact * np.exp(noise), losses.StudentT())
    fit = estimate.fit(p, check=False)
    assert fit.loss == losses.StudentT() and fit.whitening is None
    np.testing.assert_allclose(fit.theta, least_squares(p, fit.theta), rtol=1e-3)
    likelihood = profile_intervals.likelihood(p, fit)
    smallest, largest = (
        np.diff(np.log(profile_intervals.profile_prediction(likelihood, at).new_run_interval))[0]
        for at in x[[0, -1]]
    )
    assert smallest == pytest.approx(largest, rel=0.3)
    assert smallest > 2 * 3.92 * scale[0] and largest < 0.7 * 3.92 * scale[-1]


def test_runs_without_repeats_and_points_of_a_frontier_are_not_tested():
    """There is no pure error among different settings, and no run behind a weighted point."""
    single = repeated(5e-3, 0.0, seeds=1)
    assert lack_of_fit.examine(single.logx, single.logy[None], single.weights, 3) is None
    p = repeated(5e-3, 0.0)
    assert lack_of_fit.examine(p.logx, p.logy[None], p.weights / 2, 3) is None


def test_report_has_the_test_and_its_warning():
    """A law's entry in fit.json has the statistic, and its warnings the misfit over the seeds."""
    p = repeated(2e-3, 0.03)
    rows = [
        {"run": f"r{i}", "params": size, "loss": loss}
        for i, (size, loss) in enumerate(zip(np.exp(p.logx[:, 0]), np.exp(p.logy), strict=True))
    ]
    sample = select_runs.sample(table.build(rows), "loss", ("params",))
    summary = analysis.analyze("loss~params", sample, resamples=0).summary
    assert summary["lack_of_fit"]["degrees_of_freedom"] == [9, 24]
    assert summary["lack_of_fit"]["p"] < lack_of_fit.LEVEL
    assert any(line.startswith("lack-of-fit") for line in summary["warnings"])


@pytest.mark.long
def test_misfit_corrects_no_minima_and_plans_no_runs():
    """Where the joint law does not describe the runs, IsoFLOP minima stay those of their parabolas,
    and the report proposes no runs and says why, unless another form is better, whose plan it then
    is. A law that describes the runs corrects and plans."""
    reports = {}
    for interaction in (0.0, 0.08):
        p = seeds_of_small_sizes(interaction=interaction)
        x, y = np.exp(p.logx), np.exp(p.logy)
        rows = [
            {"run": f"r{i}", "params": n, "tokens": d, "compute": 6 * n * d, "loss": loss}
            for i, ((n, d), loss) in enumerate(zip(x, y, strict=True))
        ]
        for forms in ("first", "none"):
            result, _ = report.fit_table(
                table.build(rows), resamples=0, next_budget=1e21, forms=forms
            )
            reports[interaction, forms] = report_text.plain(result)
    right, wrong, better = reports[0.0, "none"], reports[0.08, "none"], reports[0.08, "first"]
    assert isoflop_bias.MISFIT not in right["isoflop"]["loss"]["warnings"]
    assert all("bias" in minimum for minimum in right["isoflop"]["loss"]["minima"])
    assert right["next"]["warnings"] == []
    assert wrong["isoflop"]["loss"]["warnings"] == [isoflop_bias.MISFIT, isoflop_bias.SHARED_RUNS]
    assert wrong["isoflop"]["loss"]["minima"]
    assert not any("bias" in minimum for minimum in wrong["isoflop"]["loss"]["minima"])
    (line,) = wrong["next"]["warnings"]
    assert line.startswith("next-runs-of-misfit: loss~params+tokens")
    assert not wrong["next"]["runs"] and right["next"]["runs"]
    text = report_text.markdown(wrong, [], "runs.csv")
    assert text.index("## Next runs") < text.index(line) < text.index("No next runs")
    printed = report_text.terminal_lines(wrong)
    assert printed[printed.index(line) + 1].startswith("no next runs")
    assert better["next"]["form"] != "joint" and better["next"]["runs"]
    assert better["next"]["warnings"] == []
