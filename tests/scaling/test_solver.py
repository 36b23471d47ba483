import dataclasses

import numpy as np
import pytest
from scipy import optimize

from var_jax.scaling import losses, solver

THETA = np.array(
    [[1.8, np.log(480), 0.35, np.log(2100), 0.37], [0.5, np.log(90), 0.2, np.log(40), 0.15]]
)


def joint_inputs():
    return np.stack(
        [a.ravel() for a in np.meshgrid(np.geomspace(2e7, 2e9, 6), np.geomspace(5e8, 5e10, 5))],
        axis=1,
    )


def test_log_jacobian_is_the_numerical_derivative():
    """The derivatives of the log loss by all five parameters equal central differences of it."""
    logx = np.log(joint_inputs())
    jacobian = solver.log_jacobian(THETA, logx)
    for i in range(5):
        step = 1e-6 * np.eye(5)[i]
        numeric = (
            np.log(solver.predict(THETA + step, logx)) - np.log(solver.predict(THETA - step, logx))
        ) / 2e-6
        np.testing.assert_allclose(jacobian[..., i], numeric, rtol=1e-5, atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize(
    "loss",
    [losses.Huber(1e-3), losses.Huber(1.0), losses.StudentT(), losses.StudentT(4.0)],
    ids=str,
)
def test_solve_matches_a_general_minimizer_in_every_row(loss):
    """Nelder-Mead, started at each of the solver's four results, finds no lower loss, for Huber's
    loss and Student's t."""
    random = np.random.default_rng(0)
    x = np.geomspace(2e7, 2e9, 11)[:, None]
    logx = np.log(x) - np.log(x).mean()
    y = (2 + 300 * x[:, 0] ** -0.3) * np.exp(0.004 * random.normal(size=11))
    weights = random.multinomial(11, np.full(11, 1 / 11), size=4).astype(float)
    p = solver.Problem(logx, np.log(y), weights, loss)
    start = np.tile([1.8, np.log(0.7), 0.25], (4, 1))
    theta, cost = solver.solve(p, start, np.zeros(3, bool))
    for row, value, w in zip(theta, cost, weights, strict=True):
        one = solver.Problem(logx, np.log(y), w, loss)
        result = optimize.minimize(
            lambda t, one=one: solver.objective(one, t[None])[0] * 1e4,
            row,
            method="Nelder-Mead",
            options={"xatol": 1e-10, "fatol": 1e-12, "maxiter": 4000},
        )
        assert value <= result.fun / 1e4 + 1e-6 * abs(result.fun) / 1e4


def test_solve_keeps_held_parameters_and_bounds():
    """Data that bend below every power law drive E to its bound at exactly 0, and a parameter that
    is held keeps its first value."""
    x = np.geomspace(1e6, 1e9, 8)[:, None]
    falling = np.exp(
        8 - 0.5 * np.log(x[:, 0]) - 0.02 * (np.log(x[:, 0]) - 17) ** 2
    )  # bends down: E wants below 0
    p = solver.problem(x, falling, losses.Huber(1.0))
    theta, _ = solver.solve(p, np.array([[0.1, 8.0, 0.5]]), np.zeros(3, bool))
    assert theta[0, 0] == 0
    held, _ = solver.solve(p, np.array([[0.1, 8.0, 0.5]]), np.array([False, False, True]))
    assert held[0, 2] == 0.5


def test_solve_holds_a_pinned_quantity():
    """A fit that is pinned at a prediction makes it, and its objective without the pin is not below
    that of the free fit."""
    x = np.geomspace(2e7, 2e9, 11)[:, None]
    y = (2 + 300 * x[:, 0] ** -0.3) * np.exp(0.004 * np.random.default_rng(0).normal(size=11))
    p = solver.problem(x, y, losses.StudentT())
    p = dataclasses.replace(p, logx=p.logx - p.logx.mean())
    start, held = np.array([[1.8, np.log(0.7), 0.25]]), np.zeros(3, bool)
    _, free_cost = solver.solve(p, start, held)

    def loss_beyond(theta, logx):
        return np.log(solver.predict(theta, logx)[:, 0])

    beyond = np.array([[3.0]])
    pin = solver.Pin(loss_beyond, beyond, np.array([0.8]), np.array([1e12]))
    theta, _ = solver.solve(dataclasses.replace(p, pin=pin), start, held)
    np.testing.assert_allclose(loss_beyond(theta, beyond), 0.8, atol=1e-6)
    assert solver.objective(p, theta)[0] > free_cost[0]
