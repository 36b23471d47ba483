"""Analysis of fitted laws: intervals, hold-out errors, sensitivity, warnings and refusals."""

import dataclasses

import numpy as np
import pytest

from scaling.planted import SINGLE, joint, single
from var_jax.scaling import analysis, laws, losses, paper_laws, select_runs, solver, table
from var_jax.studies import planted_laws


def runs_of(x, y, names=("params",)):
    return table.build(
        [
            {"run": f"r{i}", **dict(zip(names, row, strict=True)), "loss": value}
            for i, (row, value) in enumerate(zip(x, y, strict=True))
        ]
    )


def analyzed(x, y, names=("params",), **options):
    sample = select_runs.sample(runs_of(x, y, names), "loss", names)
    return analysis.analyze("loss~" + "+".join(names), sample, **{"resamples": 0, **options})


def warning_names(law):
    return {note.split(":")[0] for note in law.summary["warnings"]}


@pytest.fixture(scope="module")
def clean():
    """Sizes, losses, the law's parameters and its analysis, of twelve runs with little noise."""
    x, y, theta = single(runs=12, noise=1e-3)
    return x, y, theta, analyzed(x, y)


@pytest.fixture(scope="module")
def clean_joint():
    """Sizes and tokens, and the analysis of a law of both."""
    x, y, _ = joint(noise=5e-4, seed=4)
    return x, analyzed(x, y, ("params", "tokens"))


def test_analyze_clean_laws_gives_no_warning(clean, clean_joint):
    """The interval has the exponent that the runs were made with, and nothing is remarked."""
    _, _, theta, law = clean
    assert law.summary["warnings"] == []
    assert law.summary["alpha"]["ci95"][0] < theta[2] < law.summary["alpha"]["ci95"][1]
    assert law.summary["pearson"] < -0.999
    assert law.summary["n_runs"] == 12
    assert clean_joint[1].summary["warnings"] == []


def test_summary_holds_the_law_by_hubers_loss(clean_joint):
    """The published objective stands beside the reported values, whose estimator is named."""
    x, law = clean_joint
    p = solver.problem(x, law.sample.y, losses.Huber(1e-3))
    assert law.summary["huber"] == pytest.approx({"delta": 1e-3, **laws.fit(p).values}, rel=1e-8)
    assert law.summary["estimator"].startswith("maximum likelihood, normal noise")
    assert set(law.summary["huber"]) == {"delta", "E", "A", "alpha", "B", "beta"}


def test_summary_of_heavy_tailed_runs_has_values_within_intervals():
    """Noise with two degrees of freedom: values, bootstrap and hold-out are of Student's t, and the
    values lie within the intervals."""
    planted = {p.name: p for p in planted_laws.DIRTY}["joint law, 120 runs, student_2"]
    p = planted.draw(np.random.default_rng(5))
    law = analyzed(np.exp(p.logx), np.exp(p.logy), ("params", "tokens"), resamples=20)
    assert "Student's t" in law.summary["estimator"]
    assert law.summary["noise_degrees_of_freedom"] <= 4
    for name in ("E", "A", "alpha", "B", "beta"):
        low, high = law.summary[name]["ci95"]
        assert low <= law.summary[name]["value"] <= high
        below, above = law.summary[name]["bootstrap95"]
        assert max(low, below) < min(high, above)


def test_values_lie_within_intervals_where_small_runs_have_long_tails():
    """Half of the runs stray to one side, so least absolute errors and least squares differ by more
    than their accuracy: with values of one and intervals of another, A and alpha are outside."""
    random = np.random.default_rng(1)
    x, exact, _ = single(runs=120)
    stray, usual = 0.01 * random.exponential(size=120), 0.001 * random.normal(size=120)
    noise = np.where(np.arange(120) < 60, stray, usual)
    law = analyzed(x, exact * np.exp(noise))
    for name in ("E", "A", "alpha"):
        low, high = law.summary[name]["ci95"]
        assert low < law.summary[name]["value"] < high


def test_summary_lists_the_fitted_points(clean, clean_joint):
    """Sizes, losses and runs are those given, and the predictions those of the fit."""
    x, y, _, law = clean
    np.testing.assert_array_equal(law.summary["x"], x[:, 0])
    np.testing.assert_array_equal(law.summary["loss"], y)
    np.testing.assert_allclose(law.summary["reducible"], y - law.summary["E"]["value"])
    np.testing.assert_allclose(law.summary["predicted"], law.fit.predict(x))
    assert law.summary["run"] == [f"r{i}" for i in range(12)]
    x, law = clean_joint
    np.testing.assert_array_equal(law.summary["x"], x)


def test_holdout_predicts_the_largest_better_than_the_naive_guess(clean_joint):
    """A law fitted without the largest run predicts it to a third of the last drop in loss, and
    better than the loss of the run before."""
    x, y, _ = single(runs=10, noise=5e-4)
    law = analyzed(x, y)
    held = law.summary["holdout"]
    assert held["actual"] == y[-1] and held["naive"] == y[-2]
    assert held["error_over_drop"] < 1 / 3
    assert law.summary["holdout_relative_error"] < held["naive_relative_error"]
    held = clean_joint[1].summary["holdout"]
    assert held["points"] == 5 and held["error_over_drop"] < 1 / 3


def test_sensitivity_exponent_rises_with_the_assumed_floor():
    """The exponent is lowest for E = 0 and rises with E to the end of its interval."""
    x, y, _ = single(runs=10, noise=2e-3)
    pairs = np.array(analyzed(x, y).summary["alpha_given_E"])
    assert len(pairs) == 4 and pairs[0, 0] == 0
    assert np.all(np.diff(pairs[:, 1]) > 0)


def test_sample_names_why_a_law_is_refused():
    """Too few sizes, losses that do not fall, an E above them and too few budgets each have a
    name."""
    x, y, _ = single(runs=3)
    with pytest.raises(select_runs.Refused, match="few-sizes: 3 different params"):
        analyzed(x, y)
    x, y, _ = single(runs=8)
    with pytest.raises(select_runs.Refused, match="not-falling"):
        analyzed(x, y[::-1])
    with pytest.raises(select_runs.Refused, match="E-too-large"):
        analyzed(x, y, floor=float(y.max()))
    x, y, _ = joint(shape=(6, 2))
    with pytest.raises(select_runs.Refused, match="2 different tokens"):
        analyzed(x, y, ("params", "tokens"))
    x, y, _ = single(runs=8)
    x = np.column_stack([x[:, 0], 20 * x[:, 0]])
    with pytest.raises(select_runs.Refused, match="confounded: params and tokens rise together"):
        analyzed(x, y, ("params", "tokens"))


def test_analyze_names_its_warnings():
    """Each planted defect, such as a short range, a bend or a stray run, gives the warning of its
    name."""
    x, y, _ = single(low=1e8, high=6e8, noise=1e-4)
    assert "short-range" in warning_names(analyzed(x, y))
    x, y, _ = single(theta=(0.0, np.log(20), 0.2), noise=1e-3, seed=2)
    assert warning_names(analyzed(x, y)) & {"E-at-bound", "E-undetermined"}
    logx = np.log(x[:, 0])
    bent = np.exp(3 - 0.1 * (logx - logx[0]) - 0.02 * (logx - logx[0]) ** 2)
    assert {"concave", "E-at-bound"} <= warning_names(analyzed(x, bent))
    x, y, _ = single(runs=12, noise=1e-3)
    y[5] *= 1.1
    law = analyzed(x, y)
    assert any("run r5" in note for note in law.summary["warnings"])
    x, y, _ = single(runs=4, noise=1e-3)
    assert analyzed(x[:4], y[:4]).summary["holdout_relative_error"] is None


def test_sample_warns_of_unequal_budgets_and_leaves_out_shorter_runs():
    """Of a grid, the run with the most tokens stays at each size; without equal budgets a note says
    so."""
    x, y, _ = joint()
    full = select_runs.sample(runs_of(x, y, ("params", "tokens")), "loss", ("params",))
    assert full.runs == 6 and "most tokens" in full.selection and not full.notes
    x, y, _ = single(runs=6)
    rows = [
        {"run": str(i), "params": size[0], "tokens": 10.0**i, "loss": loss}
        for i, (size, loss) in enumerate(zip(x, y, strict=True))
    ]
    assert any(
        "tokens-vary" in note
        for note in select_runs.sample(table.build(rows), "loss", ("params",)).notes
    )


@pytest.mark.parametrize("column, name", sorted(paper_laws.LAWS))
def test_analyze_recovers_published_laws(column, name):
    """Reducible and raw cross-entropy: the exponent survives only where the floor is known or can
    be fitted."""
    factor, unit, exponent = paper_laws.LAWS[column, name]
    x = np.geomspace(*paper_laws.FITTED_RANGES[name], 12)[:, None]
    reducible = paper_laws.evaluate(column, name, x[:, 0])
    pure = analyzed(x, reducible, (name,), floor=0.0)
    assert pure.fit.values["alpha"] == pytest.approx(exponent, rel=1e-4)
    assert pure.fit.values["A"] == pytest.approx((factor / unit) ** -exponent, rel=1e-3)
    if column.startswith("loss"):
        floor = paper_laws.IRREDUCIBLE[column]
        raw = analyzed(x, reducible + floor, (name,))
        assert raw.fit.values["alpha"] == pytest.approx(exponent, rel=1e-2)
        assert raw.fit.values["E"] == pytest.approx(floor, rel=1e-2)
        # A power law without a floor correlates about as well and is wrong by a factor: Pearson
        # proves little.
        wrong = analyzed(x, reducible + floor, (name,), floor=0.0)
        assert wrong.summary["pearson"] < -0.98
        assert wrong.fit.values["alpha"] < 0.3 * exponent


def test_weights_count_runs_not_grid_points():
    """A quarter of the weight, as for points that share a run, doubles the width of the
    interval."""
    x, y, _ = single(runs=40, noise=2e-3, theta=SINGLE)
    result = select_runs.sample(runs_of(x, y), "loss", ("params",))
    halved = analysis.analyze(
        "loss~params", dataclasses.replace(result, weights=np.full(40, 0.25)), resamples=0
    )
    full = analysis.analyze("loss~params", result, resamples=0)
    width = [np.diff(law.summary["alpha"]["ci95"])[0] for law in (full, halved)]
    assert width[1] > 1.9 * width[0]
    assert solver.objective(halved.likelihood.problem, halved.likelihood.theta[None])[
        0
    ] == pytest.approx(halved.likelihood.cost)
