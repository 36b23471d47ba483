import numpy as np
import pytest

from scaling.planted import joint, single
from var_jax.scaling import laws, losses, solver

HUBER = losses.Huber(laws.DELTA)


@pytest.mark.parametrize("planted", [single(), joint()], ids=["single", "joint"])
def test_fit_recovers_the_law_of_exact_data(planted):
    x, y, theta = planted
    fit = laws.fit(solver.problem(x, y, HUBER))
    np.testing.assert_allclose(
        list(fit.values.values()), laws.with_amplitudes(np.array(theta)), rtol=1e-4
    )
    np.testing.assert_allclose(fit.predict(x), y, rtol=1e-6)


@pytest.mark.parametrize("noise", [1e-4, 3e-3, 2e-2])
def test_least_squares_and_variable_projection_agree(noise):
    for x, y, _ in (single(noise=noise, seed=1), joint(noise=noise, seed=2)):
        p = solver.problem(x, y, HUBER)
        centered, _ = laws.center(p)
        ends = [
            laws._least_squares(centered, start, None) for start in laws.starts(centered, None)[::4]
        ]
        best = min(solver.objective(centered, np.array(ends)))
        _, projected = laws.variable_projection(centered)
        assert projected == pytest.approx(best, rel=1e-5)


def test_fit_ignores_a_stray_run():
    x, y, theta = single(noise=1e-4)
    y[3] *= 1.2
    robust = laws.fit(solver.problem(x, y, HUBER)).values["alpha"]
    squares = laws.fit(solver.problem(x, y, losses.Huber(10.0))).values["alpha"]
    assert abs(robust - theta[2]) < 0.005 < 0.02 < abs(squares - theta[2])


def test_fit_with_a_given_floor():
    x, y, theta = single(noise=1e-3)
    values = laws.fit(solver.problem(x, y, HUBER), floor=theta[0])
    assert values.values["E"] == theta[0]
    assert values.values["alpha"] == pytest.approx(theta[2], abs=0.005)
    pure = laws.fit(solver.problem(x, 50 * x[:, 0] ** -0.2, HUBER), floor=0.0)
    assert pure.values == pytest.approx({"E": 0, "A": 50, "alpha": 0.2}, rel=1e-6)


def test_shift_leaves_the_law_unchanged():
    x, _, theta = joint()
    by = np.array([3.0, -1.0])
    moved = laws.shift(np.array(theta), by)
    before, after = (
        solver.predict(np.array([theta]), np.log(x)),
        solver.predict(moved[None], np.log(x) + by),
    )
    np.testing.assert_allclose(after, before)
