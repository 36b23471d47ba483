"""Power laws with an irreducible loss, and a batched solver that fits thousands of them at once.

A law is E + sum_j A_j x_j^-alpha_j. Its parameters are a row [E, log A_1, alpha_1, log A_2,
alpha_2, ...] and its inputs are log x_j, which the caller may center. The objective is the sum of
Huber losses of log-loss residuals (Hoffmann et al. 2022, appendix D.3).

This package has its own batched solver because bootstrap resamples, jackknife, profiles and grids
of starting points are thousands of tiny problems of one shape: as one array program they take the
time of ten calls of scipy's `least_squares`. Single fits use scipy (`laws.fit`), and the tests
compare the two.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

Array = np.ndarray

ALPHA_RANGE = (1e-3, 10.0)
LOG_A_RANGE = (-300.0, 300.0)
MAX_STEP = 2.0  # of log A and alpha in one iteration
TINY = 1e-300


@dataclasses.dataclass(frozen=True)
class Problem:
    """The losses that a law is fitted to.

    Attributes:
      logx: log of the inputs, one column per term of the law.
      logy: log losses; with a leading axis, different losses for each row of a batch.
      weights: weight of each loss in the objective, 1 for a run; a leading axis is the batch's.
      delta: residual of log loss beyond which Huber's loss is linear; one value per loss, so that
        a constraint can have its own.
    """

    logx: Float[Array, "n j"]
    logy: Float[Array, "*r n"]
    weights: Float[Array, "*r n"]
    delta: Float[Array, " n"]

    @property
    def parameters(self) -> int:
        """Number of the law's parameters."""
        return 1 + 2 * self.logx.shape[1]


def problem(
    x: Float[Array, "n j"],
    y: Float[Array, " n"],
    delta: float,
    weights: Float[Array, " n"] | None = None,
) -> Problem:
    """Returns the problem of losses y at inputs x in raw units; runs weigh the same by default."""
    ones = np.ones(len(y))
    return Problem(np.log(x), np.log(y), ones if weights is None else weights, delta * ones)


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


def huber(r: Float[Array, "*r n"], delta: Float[Array, " n"]) -> Float[Array, "*r n"]:
    """Returns Huber's loss: r^2 / 2 within delta, linear beyond."""
    size = np.abs(r)
    return np.where(size <= delta, r**2 / 2, delta * (size - delta / 2))


def objective(p: Problem, theta: Float[Array, "r p"]) -> Float[Array, " r"]:
    """Returns the weighted sum of Huber losses for each row of parameters."""
    return np.sum(p.weights * huber(residuals(p, theta), p.delta), axis=-1)


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

    The method is Levenberg-Marquardt with Huber's weights and bounds.

    Args:
      held: parameters that keep their starting value.
      tolerance: a row has converged when three accepted steps in a row each improve its objective
        by less than this fraction.

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
    cost = objective(p, theta)
    damping, stalled = np.full(len(theta), 1e-3), np.zeros(len(theta), int)
    active = np.arange(len(theta))
    eye = np.eye(p.parameters)
    for _ in range(iterations):
        part = dataclasses.replace(p, **{name: value[active] for name, value in batched.items()})
        current = theta[active]
        r, jacobian = residuals(part, current), log_jacobian(current, p.logx)
        weight = part.weights * np.minimum(1, p.delta / np.maximum(np.abs(r), TINY))
        gradient = -np.einsum("rn,rnp->rp", weight * r, jacobian)
        fixed = (
            held[active]
            | ((current <= lower) & (gradient > 0))
            | ((current >= upper) & (gradient < 0))
        )
        jacobian = np.where(fixed[:, None, :], 0, jacobian)
        normal = np.einsum("rnp,rn,rnq->rpq", jacobian, weight, jacobian, optimize=True)
        diagonal = np.einsum("rpp->rp", normal)
        scale = (
            damping[active, None] * diagonal
            + fixed
            + 1e-14 * (1 + diagonal.max(axis=1, keepdims=True))
        )
        step = np.linalg.solve(
            normal + scale[:, :, None] * eye, -np.where(fixed, 0, gradient)[..., None]
        )[..., 0]
        step[:, 1:] = np.clip(step[:, 1:], -MAX_STEP, MAX_STEP)
        new = np.where(fixed, current, np.clip(current + step, lower, upper))
        new_cost = objective(part, new)
        better = new_cost <= cost[active]
        gain = cost[active] - new_cost
        stalled[active] = np.where(
            better & (gain > tolerance * cost[active]), 0, stalled[active] + better
        )
        theta[active[better]], cost[active[better]] = new[better], new_cost[better]
        damping[active] = np.where(
            better, np.maximum(damping[active] / 5, 1e-12), damping[active] * 4
        )
        done = (stalled[active] >= 3) | (damping[active] > 1e10)
        active = active[~done]
        if not len(active):
            break
    return theta, cost
