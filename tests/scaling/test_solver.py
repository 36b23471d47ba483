import numpy as np
import pytest
from scipy import optimize

from var_jax.scaling import solver

THETA = np.array(
    [[1.8, np.log(480), 0.35, np.log(2100), 0.37], [0.5, np.log(90), 0.2, np.log(40), 0.15]]
)


def joint_inputs():
    return np.stack(
        [a.ravel() for a in np.meshgrid(np.geomspace(2e7, 2e9, 6), np.geomspace(5e8, 5e10, 5))],
        axis=1,
    )


def test_log_jacobian_is_the_numerical_derivative():
    logx = np.log(joint_inputs())
    jacobian = solver.log_jacobian(THETA, logx)
    for i in range(5):
        step = 1e-6 * np.eye(5)[i]
        numeric = (
            np.log(solver.predict(THETA + step, logx)) - np.log(solver.predict(THETA - step, logx))
        ) / 2e-6
        np.testing.assert_allclose(jacobian[..., i], numeric, rtol=1e-5, atol=1e-9)


def test_huber_is_quadratic_then_linear_and_smooth():
    delta = np.array([0.5])
    np.testing.assert_allclose(solver.huber(np.array([0.2, -0.2]), delta), 0.02)
    np.testing.assert_allclose(solver.huber(np.array([3.0, -3.0]), delta), 0.5 * (3 - 0.25))
    below, above = (
        solver.huber(np.array([0.5 - 1e-7]), delta),
        solver.huber(np.array([0.5 + 1e-7]), delta),
    )
    assert above - below == pytest.approx(1e-7, rel=1e-3)


@pytest.mark.parametrize("delta", [1e-3, 1.0])
def test_solve_matches_a_general_minimizer_in_every_row(delta):
    random = np.random.default_rng(0)
    x = np.geomspace(2e7, 2e9, 11)[:, None]
    logx = np.log(x) - np.log(x).mean()
    y = (2 + 300 * x[:, 0] ** -0.3) * np.exp(0.004 * random.normal(size=11))
    weights = random.multinomial(11, np.full(11, 1 / 11), size=4).astype(float)
    p = solver.Problem(logx, np.log(y), weights, np.full(11, delta))
    start = np.tile([1.8, np.log(0.7), 0.25], (4, 1))
    theta, cost = solver.solve(p, start, np.zeros(3, bool))
    for row, value, w in zip(theta, cost, weights, strict=True):
        one = solver.Problem(logx, np.log(y), w, p.delta)
        result = optimize.minimize(
            lambda t, one=one: solver.objective(one, t[None])[0] * 1e4,
            row,
            method="Nelder-Mead",
            options={"xatol": 1e-10, "fatol": 1e-12, "maxiter": 4000},
        )
        assert value <= result.fun / 1e4 * (1 + 1e-6)


def test_solve_keeps_held_parameters_and_bounds():
    x = np.geomspace(1e6, 1e9, 8)[:, None]
    falling = np.exp(
        8 - 0.5 * np.log(x[:, 0]) - 0.02 * (np.log(x[:, 0]) - 17) ** 2
    )  # bends down: E wants below 0
    p = solver.problem(x, falling, 1.0)
    theta, _ = solver.solve(p, np.array([[0.1, 8.0, 0.5]]), np.zeros(3, bool))
    assert theta[0, 0] == 0
    held, _ = solver.solve(p, np.array([[0.1, 8.0, 0.5]]), np.array([False, False, True]))
    assert held[0, 2] == 0.5
