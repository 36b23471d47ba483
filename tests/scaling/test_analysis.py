import dataclasses

import numpy as np
import pytest
from scaling.planted import SINGLE, joint, single

from var_jax.scaling import analysis, paper_laws, select_runs, solver, table


def runs_of(x, y, names=("params",)):
    return table.build(
        [
            {"run": f"r{i}", **dict(zip(names, row, strict=True)), "loss": value}
            for i, (row, value) in enumerate(zip(x, y, strict=True))
        ]
    )


def analysed(x, y, names=("params",), **options):
    sample = select_runs.sample(runs_of(x, y, names), "loss", names)
    return analysis.analyze("loss~" + "+".join(names), sample, **{"resamples": 0, **options})


def names_of(law):
    return {note.split(":")[0] for note in law.summary["warnings"]}


def test_clean_planted_laws_raise_no_warning():
    x, y, theta = single(runs=12, noise=1e-3)
    law = analysed(x, y)
    assert law.summary["warnings"] == []
    assert law.summary["alpha"]["ci95"][0] < theta[2] < law.summary["alpha"]["ci95"][1]
    assert law.summary["pearson"] < -0.999
    assert law.summary["n_runs"] == 12
    x, y, _ = joint(noise=1e-3)
    assert analysed(x, y, ("params", "tokens")).summary["warnings"] == []


def test_the_points_are_on_file():
    x, y, _ = single(runs=12, noise=1e-3)
    law = analysed(x, y)
    np.testing.assert_array_equal(law.summary["x"], x[:, 0])
    np.testing.assert_array_equal(law.summary["loss"], y)
    np.testing.assert_allclose(law.summary["reducible"], y - law.summary["E"]["value"])
    np.testing.assert_allclose(law.summary["predicted"], law.fit.predict(x))
    assert law.summary["run"] == [f"r{i}" for i in range(12)]
    x, y, _ = joint()
    assert np.shape(analysed(x, y, ("params", "tokens")).summary["x"]) == x.shape


def test_the_largest_is_predicted_better_than_naively():
    x, y, _ = single(runs=10, noise=5e-4)
    held = analysed(x, y).summary["holdout"]
    assert held["actual"] == y[-1] and held["naive"] == y[-2]
    assert held["error_over_drop"] < 1 / 3
    assert analysed(x, y).summary["holdout_relative_error"] < held["naive_relative_error"]
    x, y, _ = joint(noise=5e-4)
    held = analysed(x, y, ("params", "tokens")).summary["holdout"]
    assert held["points"] == 5 and held["error_over_drop"] < 1 / 3


def test_the_exponent_rises_with_the_floor_that_is_assumed():
    x, y, _ = single(runs=10, noise=2e-3)
    pairs = np.array(analysed(x, y).summary["alpha_given_E"])
    assert len(pairs) == 4 and pairs[0, 0] == 0
    assert np.all(np.diff(pairs[:, 1]) > 0)


def test_refusals_are_named():
    x, y, _ = single(runs=3)
    with pytest.raises(select_runs.Refused, match="few-sizes: 3 different params"):
        analysed(x, y)
    x, y, _ = single(runs=8)
    with pytest.raises(select_runs.Refused, match="not-falling"):
        analysed(x, y[::-1])
    with pytest.raises(select_runs.Refused, match="E-too-large"):
        analysed(x, y, floor=float(y.max()))
    x, y, _ = joint(shape=(6, 2))
    with pytest.raises(select_runs.Refused, match="2 different tokens"):
        analysed(x, y, ("params", "tokens"))


def test_warnings_are_named():
    x, y, _ = single(low=1e8, high=6e8, noise=1e-4)
    assert "short-range" in names_of(analysed(x, y))
    x, y, _ = single(theta=(0.0, np.log(20), 0.2), noise=1e-3, seed=2)
    assert names_of(analysed(x, y)) & {"E-at-bound", "E-undetermined"}
    logx = np.log(x[:, 0])
    bent = np.exp(3 - 0.1 * (logx - logx[0]) - 0.02 * (logx - logx[0]) ** 2)
    assert {"concave", "E-at-bound"} <= names_of(analysed(x, bent))
    x, y, _ = single(runs=12, noise=1e-3)
    y[5] *= 1.1
    law = analysed(x, y)
    assert any("run r5" in note for note in law.summary["warnings"])
    x, y, _ = single(runs=4, noise=1e-3)
    assert analysed(x[:4], y[:4]).summary["holdout_relative_error"] is None


def test_sizes_with_unequal_budgets_are_named_and_shorter_runs_left_out():
    x, y, _ = joint()
    whole = select_runs.sample(runs_of(x, y, ("params", "tokens")), "loss", ("params",))
    assert whole.runs == 6 and "most tokens" in whole.text and not whole.notes
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
def test_published_laws_come_back_from_points_on_them(column, name):
    """Reducible and raw cross-entropy: the exponent survives only where the floor is known or can
    be fitted."""
    factor, unit, exponent = paper_laws.LAWS[column, name]
    x = np.geomspace(*paper_laws.RANGES[name], 12)[:, None]
    reducible = paper_laws.evaluate(column, name, x[:, 0])
    pure = analysed(x, reducible, (name,), floor=0.0)
    assert pure.fit.values["alpha"] == pytest.approx(exponent, rel=1e-4)
    assert pure.fit.values["A"] == pytest.approx((factor / unit) ** -exponent, rel=1e-3)
    if column.startswith("loss"):
        floor = paper_laws.IRREDUCIBLE[column]
        raw = analysed(x, reducible + floor, (name,))
        assert raw.fit.values["alpha"] == pytest.approx(exponent, rel=1e-2)
        assert raw.fit.values["E"] == pytest.approx(floor, rel=1e-2)
        # A power law without a floor correlates about as well and is wrong by a factor: Pearson
        # proves little.
        wrong = analysed(x, reducible + floor, (name,), floor=0.0)
        assert wrong.summary["pearson"] < -0.98
        assert wrong.fit.values["alpha"] < 0.3 * exponent


def test_weights_of_the_frontier_count_runs_not_grid_points():
    x, y, _ = single(runs=40, noise=2e-3, theta=SINGLE)
    found = select_runs.sample(runs_of(x, y), "loss", ("params",))
    halved = analysis.analyze(
        "loss~params", dataclasses.replace(found, weights=np.full(40, 0.25)), resamples=0
    )
    whole = analysis.analyze("loss~params", found, resamples=0)
    width = [np.diff(law.summary["alpha"]["ci95"])[0] for law in (whole, halved)]
    assert width[1] > 1.9 * width[0]
    assert solver.objective(halved.like.problem, halved.like.theta[None])[0] == pytest.approx(
        halved.like.cost
    )
