"""Laws under other choices than the reported ones."""

import dataclasses

import numpy as np
import pytest

from scaling.planted import joint, single
from var_jax.scaling import estimate, laws, losses, select_runs, sensitivity, solver, table


def sample_of(x, y, names):
    records = [
        {"run": f"r{i}", **dict(zip(names, row, strict=True)), "loss": loss}
        for i, (row, loss) in enumerate(zip(x, y, strict=True))
    ]
    runs = table.build(records)
    return runs, select_runs.sample(runs, "loss", names)


def alternatives(sample, floor=None):
    p = solver.problem(sample.x, sample.y, losses.StudentT(), sample.weights)
    huber = laws.fit(dataclasses.replace(p, loss=losses.Huber(1e-3)), floor, check=False)
    rows = sensitivity.alternatives(sample, estimate.fit(p, floor, check=False), huber, floor)
    return {row["choice"]: row for row in rows}


@pytest.mark.parametrize("names", [("params",), ("params", "tokens")], ids=len)
def test_alternatives_of_exact_runs_agree_but_for_the_floor(names):
    """Without noise every estimator and every subset of runs gives the planted exponent, which a
    law without a floor misses."""
    x, y, theta = single() if len(names) == 1 else joint()
    rows = alternatives(sample_of(x, y, names)[1])
    pure = rows.pop("without a floor, E = 0")
    assert {"without the smallest size", "without the largest size"} <= set(rows)
    assert len(rows) == 5
    for row in rows.values():
        assert row["alpha"] == pytest.approx(theta[2], rel=1e-3)
        assert ("beta" in row) == (len(names) == 2)
    assert pure["E"] == 0 and pure["alpha"] < 0.8 * theta[2]


def test_alternatives_with_a_given_floor_keep_it():
    """If E is given, every alternative law has that E, and the alternative with E = 0 is left
    out."""
    x, y, theta = single(noise=1e-3)
    rows = alternatives(sample_of(x, y, ("params",))[1], floor=theta[0])
    assert "without a floor, E = 0" not in rows
    assert {row["E"] for row in rows.values()} == {theta[0]}


def test_other_counting_fits_each_other_column():
    """Parameters that are counted as the square of others have half the exponent."""
    x, y, theta = single()
    runs, _ = sample_of(x, y, ("params",))
    columns = {**runs.columns, "params_body": np.square(runs["params"]), "paramsother": 0 * y}
    runs = dataclasses.replace(runs, columns=columns)
    (row,) = sensitivity.other_counting(runs, "loss", ("params",), None)
    assert row["choice"] == "params_body instead of params"
    assert row["alpha"] == pytest.approx(theta[2] / 2, rel=1e-3)


def test_laws_without_the_largest_size_that_are_known_are_not_fitted_again():
    """Another law that is handed over in its place is the one in the row."""
    x, y, theta = single()
    sample = sample_of(x, y, ("params",))[1]
    p = solver.problem(sample.x, sample.y, losses.StudentT(), sample.weights)
    fit = laws.fit(p, check=False)
    huber = laws.fit(dataclasses.replace(p, loss=losses.Huber(1e-3)), check=False)
    known = dataclasses.replace(fit, theta=np.array([1.0, 2.0, 0.5]))
    rows = sensitivity.alternatives(sample, fit, huber, None, known)
    by_choice = {row["choice"]: row["alpha"] for row in rows if "size" in str(row["choice"])}
    assert by_choice["without the largest size"] == 0.5
    assert by_choice["without the smallest size"] == pytest.approx(theta[2], rel=1e-3)
