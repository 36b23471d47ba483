"""Power laws with an irreducible loss, and a batched solver that fits thousands of them at once.

A law is E + sum_j A_j x_j^-alpha_j. Its parameters are a row [E, log A_1, alpha_1, log A_2,
alpha_2, ...] and its inputs are log x_j, which the caller may center. The objective is a loss of
log-loss residuals (`losses`).

This package has its own batched solver because bootstrap resamples, jackknife, profiles and grids
of starting points are thousands of tiny problems of one shape: as one array program they take the
time of ten calls of scipy's `least_squares`. Single fits use scipy (`laws.fit`), and the tests
compare the two.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from var_jax.scaling import losses

Array = np.ndarray

ALPHA_RANGE = (1e-3, 10.0)
LOG_A_RANGE = (-300.0, 300.0)
MAX_STEP = 2.0  # of log A and alpha in one iteration
TINY = 1e-300


@dataclasses.dataclass(frozen=True)
class Pin:
    """A quantity of the law that a fit is held at, such as a prediction.

    Attributes:
      quantity: the quantity as a function of rows of parameters.
      target: its value in each row of a batch.
      strength: weight of the squared difference from the target in the objective.
    """

    quantity: Callable[[Float[Array, "r p"]], Float[Array, " r"]]
    target: Float[Array, " r"]
    strength: float

    def where(self, rows) -> "Pin":
        """Returns the pin of the given rows of the batch alone."""
        return dataclasses.replace(self, target=self.target[rows])

    def residual(self, theta: Float[Array, "r p"]) -> Float[Array, "r 1"]:
        """Returns the target minus the quantity."""
        return (self.target - self.quantity(theta))[:, None]

    def jacobian(self, theta: Float[Array, "r p"]) -> Float[Array, "r 1 p"]:
        """Returns the derivatives of the quantity, by central differences."""
        columns = []
        for i in range(theta.shape[1]):
            step = np.zeros(theta.shape)
            step[:, i] = 1e-6 * np.maximum(np.abs(theta[:, i]), 1e-3)
            rise = self.quantity(theta + step) - self.quantity(theta - step)
            columns.append(rise / (2 * step[:, i]))
        return np.stack(columns, axis=-1)[:, None, :]


@dataclasses.dataclass(frozen=True)
class Problem:
    """The losses that a law is fitted to.

    Attributes:
      logx: log of the inputs, one column per term of the law.
      logy: log losses; with a leading axis, different losses for each row of a batch.
      weights: weight of each loss in the objective, 1 for a run; a leading axis is the batch's.
      loss: what is minimized of the residuals.
      pin: a quantity that the fits are held at, if any.
    """

    logx: Float[Array, "n j"]
    logy: Float[Array, "*r n"]
    weights: Float[Array, "*r n"]
    loss: losses.Loss
    pin: Pin | None = None

    @property
    def parameters(self) -> int:
        """Number of the law's parameters."""
        return 1 + 2 * self.logx.shape[1]


def problem(
    x: Float[Array, "n j"],
    y: Float[Array, " n"],
    loss: losses.Loss,
    weights: Float[Array, " n"] | None = None,
) -> Problem:
    """Returns the problem of losses y at inputs x in raw units; runs weigh the same by default."""
    return Problem(np.log(x), np.log(y), np.ones(len(y)) if weights is None else weights, loss)


def terms(theta: Float[Array, "r p"], logx: Float[Array, "n j"]) -> Float[Array, "r n j"]:
    """Returns the reducible terms A_j x_j^-alpha_j of each law."""
    a, alpha = theta[:, 1::2], theta[:, 2::2]
    return np.exp(np.clip(a[:, None, :] - alpha[:, None, :] * logx, -700, 700))


def predict(theta: Float[Array, "r p"], logx: Float[Array, "n j"]) -> Float[Array, "r n"]:
    """Returns the losses that the laws predict; they are always above 0."""
    return theta[:, :1] + terms(theta, logx).sum(axis=-1) + TINY


def residuals(p: Problem, theta: Float[Array, "r p"]) -> Float[Array, "r n"]:
    """Returns measured minus predicted log losses."""
    return p.logy - np.log(predict(theta, p.logx))


def log_jacobian(theta: Float[Array, "r p"], logx: Float[Array, "n j"]) -> Float[Array, "r n p"]:
    """Returns the analytic Jacobian of the log loss with respect to the parameters."""
    parts = terms(theta, logx)
    total = theta[:, :1] + parts.sum(axis=-1) + TINY
    jacobian = np.empty((*total.shape, theta.shape[1]))
    jacobian[..., 0] = 1
    jacobian[..., 1::2] = parts
    jacobian[..., 2::2] = -logx * parts
    return jacobian / total[..., None]


def objective(p: Problem, theta: Float[Array, "r p"]) -> Float[Array, " r"]:
    """Returns the objective for each row of parameters, at the best scale of the noise."""
    return _evaluate(p, theta, np.broadcast_to(p.weights, (len(theta), len(p.logx))), None)[0]


def _evaluate(
    p: Problem,
    theta: Float[Array, "r p"],
    weights: Float[Array, "r n"],
    scales: Float[Array, " r"] | None,
) -> tuple[Float[Array, " r"], Float[Array, " r"]]:
    """Returns the objectives and the noise's scales, which are searched from `scales`."""
    r = residuals(p, theta)
    scales = p.loss.scale(r, weights, scales)
    cost = p.loss.cost(r, weights, scales)
    if p.pin is not None:
        cost = cost + p.pin.strength * p.pin.residual(theta)[:, 0] ** 2 / 2
    return cost, scales


class LeastSquares(NamedTuple):
    """A weighted least squares problem, linearized around each row of parameters.

    Attributes:
      residuals: measured minus predicted log losses, and the pin's residual behind them.
      jacobian: derivatives of the predictions with respect to the parameters.
      weights: weights of the squared residuals.
    """

    residuals: Float[Array, "r m"]
    jacobian: Float[Array, "r m p"]
    weights: Float[Array, "r m"]


def _linearize(
    p: Problem, theta: Float[Array, "r p"], weights: Float[Array, "r n"], scales: Float[Array, " r"]
) -> LeastSquares:
    """Returns the least squares problem that has the same gradient as the objective."""
    r, jacobian = residuals(p, theta), log_jacobian(theta, p.logx)
    influence = p.loss.influence(r, weights, scales)
    if p.pin is not None:
        r = np.concatenate([r, p.pin.residual(theta)], axis=1)
        jacobian = np.concatenate([jacobian, p.pin.jacobian(theta)], axis=1)
        influence = np.pad(influence, ((0, 0), (0, 1)), constant_values=p.pin.strength)
    return LeastSquares(r, jacobian, influence)


def bounds(p: Problem) -> tuple[Float[Array, " p"], Float[Array, " p"]]:
    """Returns the lower and upper bounds of the parameters: E >= 0, alpha > 0."""
    num_terms = p.logx.shape[1]
    lower = np.array([0.0, *[LOG_A_RANGE[0], ALPHA_RANGE[0]] * num_terms])
    upper = np.array([np.exp(p.logy.max()), *[LOG_A_RANGE[1], ALPHA_RANGE[1]] * num_terms])
    return lower, upper


def solve(
    p: Problem,
    start: Float[Array, "r p"],
    held: Bool[Array, "*r p"],
    iterations: int = 300,
    tolerance: float = 1e-11,
) -> tuple[Float[Array, "r p"], Float[Array, " r"]]:
    """Minimizes the objective from all rows of `start` at once.

    The method is Levenberg-Marquardt with bounds on reweighted least squares.

    Args:
      held: parameters that keep their starting value.
      tolerance: a row has converged when three accepted steps in a row each improve its objective
        by less than this fraction of the loss's unit.

    Returns:
      The parameters and objectives of all rows.
    """
    lower, upper = bounds(p)
    theta = np.clip(start, lower, upper)
    theta = np.where(held, start, theta)
    held = np.broadcast_to(held, theta.shape)
    batched = {
        name: np.broadcast_to(getattr(p, name), (len(theta), p.logx.shape[0]))
        for name in ("logy", "weights")
    }
    cost, scales = _evaluate(p, theta, batched["weights"], None)
    damping, stalled = np.full(len(theta), 1e-3), np.zeros(len(theta), int)
    active = np.arange(len(theta))
    eye = np.eye(p.parameters)
    for _ in range(iterations):
        part = dataclasses.replace(p, **{name: value[active] for name, value in batched.items()})
        if p.pin is not None:
            part = dataclasses.replace(part, pin=p.pin.where(active))
        current = theta[active]
        r, jacobian, weight = _linearize(part, current, part.weights, scales[active])
        weighted = (jacobian * weight[..., None]).swapaxes(1, 2)
        gradient = -(weighted @ r[..., None])[..., 0]
        fixed = (
            held[active]
            | ((current <= lower) & (gradient > 0))
            | ((current >= upper) & (gradient < 0))
        )
        normal = np.where(fixed[:, None, :] | fixed[:, :, None], 0, weighted @ jacobian)
        diagonal = np.einsum("rpp->rp", normal)
        damped = (
            damping[active, None] * diagonal
            + fixed
            + 1e-14 * (1 + diagonal.max(axis=1, keepdims=True))
        )
        step = np.linalg.solve(
            normal + damped[:, :, None] * eye, -np.where(fixed, 0, gradient)[..., None]
        )[..., 0]
        step[:, 1:] = np.clip(step[:, 1:], -MAX_STEP, MAX_STEP)
        new = np.where(fixed, current, np.clip(current + step, lower, upper))
        new_cost, new_scales = _evaluate(part, new, part.weights, scales[active])
        better = new_cost <= cost[active]
        gain = cost[active] - new_cost
        stalled[active] = np.where(
            better & (gain > tolerance * p.loss.unit(cost[active])), 0, stalled[active] + better
        )
        theta[active[better]], cost[active[better]] = new[better], new_cost[better]
        scales[active[better]] = new_scales[better]
        damping[active] = np.where(
            better, np.maximum(damping[active] / 5, 1e-12), damping[active] * 4
        )
        done = (stalled[active] >= 3) | (damping[active] > 1e10)
        active = active[~done]
        if not len(active):
            break
    return theta, cost
