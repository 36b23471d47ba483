"""Repeated runs tell noise from misfit, in the test, the choice of noise and the warnings."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from var_jax.scaling import analysis, estimate, lack_of_fit, losses, select_runs, solver, table

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


@pytest.mark.parametrize("flipped", [False, True])
def test_misfit_is_not_taken_for_noise_that_changes_with_size(flipped):
    """A misfit that grows for large, or for small, runs leaves noise of one size, as the seeds have
    it; without repeated runs the misfit of the small ones looks like their noise."""
    p = repeated(2e-3, 0.03)
    if flipped:
        order = np.argsort(-p.logx[:, 0], kind="stable")
        exact = np.log(solver.predict(np.array([THETA]), p.logx)[0])
        p = dataclasses.replace(p, logy=exact + (p.logy - exact)[order])
    fit = estimate.fit(p, check=False)
    assert fit.whitening is None or not fit.whitening.growth
    tested = lack_of_fit.of_law(p, fit, 3)
    (line,) = lack_of_fit.warnings(tested)
    assert line.startswith("lack-of-fit: the form does not describe the runs")
    assert tested is not None and tested.scatter[0] > 3


def test_noise_of_small_runs_that_their_seeds_have_too_is_seen():
    """Where the seeds scatter as the residuals do, the growth is chosen and nothing is lacking."""
    p = repeated(np.geomspace(2e-2, 2e-3, len(SIZES)), 0.0)
    fit = estimate.fit(p, check=False)
    assert fit.whitening is not None and fit.whitening.growth > 0.3
    assert not lack_of_fit.warnings(lack_of_fit.of_law(p, fit, 3))


def test_noise_of_large_runs_alone_is_not_chosen():
    """Without repeated runs a scatter that grows with size cannot be told from misfit, and does not
    turn the law away from the largest sizes."""
    p = repeated(np.geomspace(5e-4, 2e-2, len(SIZES)), 0.0, seeds=1)
    x = np.tile(p.logx, (3, 1)) + np.repeat([-0.01, 0, 0.01], len(SIZES))[:, None]
    rng = np.random.default_rng(2)
    exact = np.log(solver.predict(np.array([THETA]), x)[0])
    noise = np.tile(np.geomspace(5e-4, 2e-2, len(SIZES)), 3) * rng.normal(size=len(x))
    p = dataclasses.replace(p, logx=x, logy=exact + noise, weights=np.ones(len(x)))
    fit = estimate.fit(p, check=False)
    assert fit.whitening is None or not fit.whitening.growth


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
