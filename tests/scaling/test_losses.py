"""The losses of the solver, against scipy's densities and a numerical derivative."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from var_jax.scaling import losses

R = np.array([[0.3, -1.2, 0.05, 2.4, -0.6, 0.9, -14.0], [1.0, 2.0, -3.0, 0.1, 0.2, -0.3, 0.4]])
WEIGHTS = np.array([[1.0, 2.0, 1.0, 0.5, 1.0, 1.0, 1.0], np.ones(7)])


def test_huber_is_quadratic_then_linear_and_smooth():
    """Values on both sides of delta are worked out by hand, and the slope does not jump there."""
    huber = losses.Huber(0.5)

    def cost(residual):
        return huber.cost(np.array([[residual]]), np.ones((1, 1)), np.ones(1))[0]

    assert cost(0.2) == cost(-0.2) == pytest.approx(0.02)
    assert cost(3.0) == pytest.approx(0.5 * (3 - 0.25))
    assert cost(0.5 + 1e-7) - cost(0.5 - 1e-7) == pytest.approx(1e-7, rel=1e-3)


@pytest.mark.parametrize("freedom", [2.0, 4.0, 10.0])
def test_student_cost_is_the_negative_log_likelihood_of_scipy(freedom):
    """At any scale the cost is minus the weighted sum of scipy's log densities."""
    loss = losses.StudentT(freedom)
    scale = np.array([0.7, 1.3])
    expected = -np.sum(WEIGHTS * stats.t.logpdf(R, freedom, scale=scale[:, None]), axis=1)
    np.testing.assert_allclose(loss.cost(R, WEIGHTS, scale), expected, rtol=1e-12)


def test_infinite_freedom_is_the_normal_distribution():
    """Scale and likelihood are those of weighted normal noise, and 1e7 degrees of freedom are near
    it."""
    loss = losses.StudentT(math.inf)
    scale = loss.scale(R, WEIGHTS)
    np.testing.assert_allclose(scale**2, np.average(R**2, weights=WEIGHTS, axis=1))
    expected = -np.sum(WEIGHTS * stats.norm.logpdf(R, scale=scale[:, None]), axis=1)
    np.testing.assert_allclose(loss.cost(R, WEIGHTS, scale), expected, rtol=1e-12)
    heavy = losses.StudentT(1e7)
    np.testing.assert_allclose(heavy.scale(R, WEIGHTS), scale, rtol=1e-5)


@pytest.mark.parametrize("start", [None, np.array([1e-6, 1e6])])
def test_student_scale_minimizes_the_cost(start):
    """Newton's method finds the scale that a general minimizer finds, from afar too."""
    loss = losses.StudentT(3.0)
    for i, scale in enumerate(loss.scale(R, WEIGHTS, start)):
        row = slice(i, i + 1)
        best = optimize.minimize_scalar(
            lambda log, row=row: loss.cost(R[row], WEIGHTS[row], np.exp([log]))[0],
            bounds=(-8, 8),
            method="bounded",
            options={"xatol": 1e-9},
        )
        assert math.log(scale) == pytest.approx(best.x, abs=1e-5)


@pytest.mark.parametrize(
    "loss", [losses.Huber(0.5), losses.StudentT(), losses.StudentT(2.0)], ids=str
)
def test_influence_is_the_derivative_over_the_residual(loss):
    """Central differences of the cost, divided by each residual."""
    scale = np.array([0.7, 1.3])
    for j in range(R.shape[1]):
        step = np.zeros(R.shape)
        step[:, j] = 1e-6
        rise = loss.cost(R + step, WEIGHTS, scale) - loss.cost(R - step, WEIGHTS, scale)
        expected = rise / 2e-6 / R[:, j]
        influence = loss.influence(R, WEIGHTS, scale)[:, j]
        np.testing.assert_allclose(influence, expected, rtol=1e-5, atol=1e-7)
