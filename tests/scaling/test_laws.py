"""Fits of scaling laws: exact data, noise, stray runs and given floors."""

import numpy as np
import pytest
from scipy import optimize

from scaling.planted import joint, single
from var_jax.scaling import laws, losses, solver

HUBER = losses.Huber(laws.DELTA)


@pytest.mark.parametrize("planted", [single(), joint()], ids=["single", "joint"])
def test_fit_recovers_the_law_of_exact_data(planted):
    """From losses without noise the fit finds the parameters that made them, and its predictions
    are these losses."""
    x, y, theta = planted
    fit = laws.fit(solver.problem(x, y, HUBER))
    np.testing.assert_allclose(
        list(fit.values.values()), laws.with_amplitudes(np.array(theta)), rtol=1e-4
    )
    np.testing.assert_allclose(fit.predict(x), y, rtol=1e-6)


def scipys_huber_fit(p, start):
    """Returns scipy's fit of Huber's loss, from one start, with its own trust-region steps."""

    def weighted_huber(z):
        root = np.sqrt(np.maximum(z, 1))
        value, slope = np.where(z <= 1, z, 2 * root - 1), 1 / root
        return p.weights * np.array([value, slope, np.where(z <= 1, 0, -0.5 / root**3)])

    lower, upper = solver.bounds(p)
    margin = 1e-6 * (upper - lower)
    result = optimize.least_squares(
        lambda theta: solver.residuals(p, theta[None])[0],
        np.clip(start, lower + margin, upper - margin),
        jac=lambda theta: -solver.log_jacobian(theta[None], p.logx)[0],
        bounds=(lower, upper),
        loss=weighted_huber,
        f_scale=p.loss.delta,
        x_scale="jac",
        ftol=1e-10,
        xtol=1e-10,
        gtol=1e-14,
        max_nfev=200,
    )
    return result.x


@pytest.mark.parametrize("noise", [1e-4, 3e-3, 2e-2])
def test_huber_fit_is_that_of_scipy_and_of_variable_projection(noise):
    """Three searches end in one optimum: the batched descent, scipy's from several starts, and the
    grid over exponents."""
    for x, y, _ in (single(noise=noise, seed=1), joint(noise=noise, seed=2)):
        p = solver.problem(x, y, HUBER)
        centered, _ = laws.center(p)
        starts = laws.starts(centered, None)[::4]
        ends = [scipys_huber_fit(centered, start) for start in starts]
        best = min(solver.objective(centered, np.array(ends)))
        _, projected = laws.variable_projection(centered)
        assert projected == pytest.approx(best, rel=1e-5)
        assert laws.fit(p, check=False).cost == pytest.approx(best, rel=1e-5)


def test_fit_ignores_a_stray_run():
    """A run that is off by 20 % moves the robust fit less than a quarter as far as least
    squares."""
    x, y, theta = single(noise=1e-4)
    y[3] *= 1.2
    robust = laws.fit(solver.problem(x, y, HUBER)).values["alpha"]
    squares = laws.fit(solver.problem(x, y, losses.Huber(10.0))).values["alpha"]
    assert abs(robust - theta[2]) < 0.005 < 0.02 < abs(squares - theta[2])


def test_fit_with_a_given_floor():
    """E stays as given, at the true value and at 0."""
    x, y, theta = single(noise=1e-3)
    values = laws.fit(solver.problem(x, y, HUBER), floor=theta[0])
    assert values.values["E"] == theta[0]
    assert values.values["alpha"] == pytest.approx(theta[2], abs=0.005)
    pure = laws.fit(solver.problem(x, 50 * x[:, 0] ** -0.2, HUBER), floor=0.0)
    assert pure.values == pytest.approx({"E": 0, "A": 50, "alpha": 0.2}, rel=1e-6)


def test_shift_leaves_the_law_unchanged():
    """The shifted parameters predict the same at the shifted inputs."""
    x, _, theta = joint()
    by = np.array([3.0, -1.0])
    moved = laws.shift(np.array(theta), by)
    before, after = (
        solver.predict(np.array([theta]), np.log(x)),
        solver.predict(moved[None], np.log(x) + by),
    )
    np.testing.assert_allclose(after, before)
