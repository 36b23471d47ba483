"""Power laws with an irreducible loss, and a batched solver that fits thousands of them at once.

A law is E + sum_j A_j x_j^-alpha_j. Its parameters are a row [E, log A_1, alpha_1, log A_2,
alpha_2, ...] and its inputs are log x_j, which the caller may center. The objective is a loss of
log-loss residuals (`losses`).

This package has its own batched solver because bootstrap resamples, jackknife, profiles and grids
of starting points are thousands of tiny problems of one shape: as one array program they take the
time of ten calls of scipy's `least_squares`, with which the tests compare it.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from var_jax.scaling import losses
from var_jax.scaling.whitening import Whitening

Array = np.ndarray

ALPHA_RANGE = (1e-3, 10.0)
LOG_A_RANGE = (-300.0, 300.0)
MAX_STEP = 2.0  # of log A and alpha in one iteration
FREE = 1e-2  # damping up to which a step is nearly that of undamped least squares
BLOCK_ELEMENTS = 2**16  # of the Jacobian of the rows that are solved at once


# A function of rows of parameters and of as many rows of inputs.
Quantity = Callable[[Float[Array, "r p"], Float[Array, "r k"]], Float[Array, " r"]]


@dataclasses.dataclass(frozen=True)
class Pin:
    """A quantity of the law that a fit is held at, such as a prediction.

    Attributes:
      quantity: the quantity as a function of rows of parameters and rows of `inputs`.
      inputs: what the quantity depends on besides the law, one row per row of a batch.
      target: its value in each row of the batch.
      strength: weight of the squared difference from the target in the objective of each row.
    """

    quantity: Quantity
    inputs: Float[Array, "r k"]
    target: Float[Array, " r"]
    strength: Float[Array, " r"]

    def where(self, rows) -> "Pin":
        """Returns the pin of the given rows of the batch alone."""
        parts = {name: getattr(self, name)[rows] for name in ("inputs", "target", "strength")}
        return dataclasses.replace(self, **parts)

    def residual(self, theta: Float[Array, "r p"]) -> Float[Array, "r 1"]:
        """Returns the target minus the quantity."""
        return (self.target - self.quantity(theta, self.inputs))[:, None]

    def jacobian(self, theta: Float[Array, "r p"]) -> Float[Array, "r 1 p"]:
        """Returns the derivatives of the quantity, by central differences."""
        columns = []
        for i in range(theta.shape[1]):
            step = np.zeros(theta.shape)
            step[:, i] = 1e-6 * np.maximum(np.abs(theta[:, i]), 1e-3)
            above = self.quantity(theta + step, self.inputs)
            below = self.quantity(theta - step, self.inputs)
            columns.append((above - below) / (2 * step[:, i]))
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
      whitening: what makes the noise of runs independent and of one size, if it is not.
    """

    logx: Float[Array, "n j"]
    logy: Float[Array, "*r n"]
    weights: Float[Array, "*r n"]
    loss: losses.Loss
    pin: Pin | None = None
    whitening: Whitening | None = None

    @property
    def parameters(self) -> int:
        """Number of the law's parameters."""
        return 1 + 2 * self.logx.shape[1]

    def rows(self, rows, count: int) -> "Problem":
        """Returns the problem of the given rows of a batch of `count` fits."""
        shape = (count, len(self.logx))
        return dataclasses.replace(
            self,
            logy=np.broadcast_to(self.logy, shape)[rows],
            weights=np.broadcast_to(self.weights, shape)[rows],
            pin=None if self.pin is None else self.pin.where(rows),
            whitening=None if self.whitening is None else self.whitening.where(rows, count),
        )

    def whitened(self, values: Float[Array, "r *q n"]) -> Float[Array, "r *q n"]:
        """Returns residuals, or their derivatives, of noise that is independent and of one size."""
        return values if self.whitening is None else self.whitening(values)


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
    return _terms(theta, logx).swapaxes(1, 2)


def _terms(theta: Float[Array, "r p"], logx: Float[Array, "n j"]) -> Float[Array, "r j n"]:
    # Losses are the last axis, so that numpy's innermost loop is long.
    exponents = theta[:, 1::2, None] - theta[:, 2::2, None] * np.ascontiguousarray(logx.T)
    return np.exp(np.clip(exponents, -700, 700, out=exponents), out=exponents)


def predict(theta: Float[Array, "r p"], logx: Float[Array, "n j"]) -> Float[Array, "r n"]:
    """Returns the losses that the laws predict; they are always above 0."""
    return _totals(theta, _terms(theta, logx))


def _totals(theta: Float[Array, "r p"], parts: Float[Array, "r j n"]) -> Float[Array, "r n"]:
    return theta[:, :1] + parts.sum(axis=1) + losses.TINY


def residuals(p: Problem, theta: Float[Array, "r p"]) -> Float[Array, "r n"]:
    """Returns measured minus predicted log losses, whitened."""
    return p.whitened(p.logy - np.log(predict(theta, p.logx)))


def log_jacobian(theta: Float[Array, "r p"], logx: Float[Array, "n j"]) -> Float[Array, "r n p"]:
    """Returns the analytic Jacobian of the log loss with respect to the parameters."""
    return _log_jacobian(theta, logx, _terms(theta, logx)).swapaxes(1, 2)


def _log_jacobian(
    theta: Float[Array, "r p"], logx: Float[Array, "n j"], parts: Float[Array, "r j n"]
) -> Float[Array, "r p n"]:
    jacobian = np.empty((*theta.shape, len(logx)))
    jacobian[:, 0] = 1 / _totals(theta, parts)
    jacobian[:, 1::2] = parts * jacobian[:, :1]
    jacobian[:, 2::2] = -logx.T * jacobian[:, 1::2]
    return jacobian


def objective(p: Problem, theta: Float[Array, "r p"]) -> Float[Array, " r"]:
    """Returns the objective for each row of parameters, at the best scale of the noise."""
    return _evaluate(p, theta, np.broadcast_to(p.weights, (len(theta), len(p.logx))), None).cost


class Evaluation(NamedTuple):
    """The objective at each row of parameters, and what its derivatives need.

    Attributes:
      cost: the objectives.
      scales: the noise's best scales.
      residuals: measured minus predicted log losses, whitened.
      parts: the laws' reducible terms.
    """

    cost: Float[Array, " r"]
    scales: Float[Array, " r"]
    residuals: Float[Array, "r n"]
    parts: Float[Array, "r j n"]

    def where(self, rows) -> "Evaluation":
        """Returns the evaluation of the given rows."""
        return Evaluation(*(part[rows] for part in self))


def _evaluate(
    p: Problem,
    theta: Float[Array, "r p"],
    weights: Float[Array, "r n"],
    scales: Float[Array, " r"] | None,
) -> Evaluation:
    """Evaluates the objectives; the noise's scales are searched from `scales`."""
    parts = _terms(theta, p.logx)
    r = p.whitened(p.logy - np.log(_totals(theta, parts)))
    scales = p.loss.scale(r, weights, scales)
    cost = p.loss.cost(r, weights, scales)
    if p.pin is not None:
        cost = cost + p.pin.strength * p.pin.residual(theta)[:, 0] ** 2 / 2
    return Evaluation(cost, scales, r, parts)


class LeastSquares(NamedTuple):
    """A weighted least squares problem, linearized around each row of parameters.

    Attributes:
      residuals: whitened residuals, and the pin's residual behind them.
      jacobian: derivatives of the predictions with respect to the parameters.
      weights: weights of the squared residuals.
    """

    residuals: Float[Array, "r m"]
    jacobian: Float[Array, "r p m"]
    weights: Float[Array, "r m"]


def _linearize(p: Problem, theta: Float[Array, "r p"], here: Evaluation) -> LeastSquares:
    """Returns the least squares problem that has the same gradient as the objective."""
    r, jacobian = here.residuals, p.whitened(_log_jacobian(theta, p.logx, here.parts))
    influence = p.loss.influence(r, p.weights, here.scales)
    if p.pin is not None:
        r = np.concatenate([r, p.pin.residual(theta)], axis=1)
        jacobian = np.concatenate([jacobian, p.pin.jacobian(theta).swapaxes(1, 2)], axis=2)
        influence = np.concatenate([influence, p.pin.strength[:, None]], axis=1)
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
      tolerance: a row has converged when accepted steps in a row each improve its objective by less
        than this fraction of the loss's unit: three of them, or two that are hardly damped.

    Returns:
      The parameters and objectives of all rows.
    """
    lower, upper = bounds(p)
    theta = np.where(held, start, np.clip(start, lower, upper))
    held = np.broadcast_to(held, theta.shape)
    cost = np.empty(len(theta))
    # A block's arrays fit into the processor's cache, which those of thousands of rows would not.
    size = max(1, BLOCK_ELEMENTS // (len(p.logx) * p.parameters))
    for first in range(0, len(theta), size):
        block = np.arange(first, min(first + size, len(theta)))
        part = p.rows(block, len(theta))
        theta[block], cost[block] = _solve_block(
            part,
            theta[block],
            held[block],
            (lower, upper),
            iterations=iterations,
            tolerance=tolerance,
        )
    return theta, cost


def _solve_block(
    p: Problem,
    theta: Float[Array, "r p"],
    held: Bool[Array, "r p"],
    limits: tuple[Float[Array, " p"], Float[Array, " p"]],
    *,
    iterations: int,
    tolerance: float,
) -> tuple[Float[Array, "r p"], Float[Array, " r"]]:
    """Minimizes the objective of a problem whose log losses and weights have a row per start."""
    lower, upper = limits
    out, out_cost = theta.copy(), np.empty(len(theta))
    here = _evaluate(p, theta, p.weights, None)
    damping, stalled = np.full(len(theta), 1e-3), np.zeros(len(theta), int)
    # The rows of the block that have not converged; all other arrays hold these rows.
    active = np.arange(len(theta))
    eye = np.eye(p.parameters)
    for _ in range(iterations):
        r, jacobian, weight = _linearize(p, theta, here)
        weighted = jacobian * weight[:, None, :]
        gradient = -(weighted @ r[..., None])[..., 0]
        fixed = held | ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
        normal = weighted @ jacobian.swapaxes(1, 2)
        normal = np.where(fixed[:, None, :] | fixed[:, :, None], 0, normal)
        diagonal = np.einsum("rpp->rp", normal)
        damped = (
            damping[:, None] * diagonal + fixed + 1e-14 * (1 + diagonal.max(axis=1, keepdims=True))
        )
        step = np.linalg.solve(
            normal + damped[:, :, None] * eye, -np.where(fixed, 0, gradient)[..., None]
        )[..., 0]
        step[:, 1:] = np.clip(step[:, 1:], -MAX_STEP, MAX_STEP)
        new = np.where(fixed, theta, np.clip(theta + step, lower, upper))

        # Rows that improved take the step; the others search nearer to where they are.
        trial = _evaluate(p, new, p.weights, here.scales)
        better = trial.cost <= here.cost
        gain = here.cost - trial.cost
        counted = better * (1 + (damping <= FREE))
        stalled = np.where(
            better & (gain > tolerance * p.loss.unit(here.cost)), 0, stalled + counted
        )
        theta = np.where(better[:, None], new, theta)
        for current, accepted in zip(here, trial, strict=True):
            np.copyto(current, accepted, where=better.reshape(-1, *[1] * (current.ndim - 1)))
        damping = np.where(better, np.maximum(damping / 5, 1e-12), damping * 4)

        done = (stalled >= 3) | (damping > 1e10)
        if done.any():
            out[active], out_cost[active] = theta, here.cost
            keep = ~done
            if not keep.any():
                return out, out_cost
            p, here = p.rows(keep, len(keep)), here.where(keep)
            theta, held, active = theta[keep], held[keep], active[keep]
            damping, stalled = damping[keep], stalled[keep]
    out[active], out_cost[active] = theta, here.cost
    return out, out_cost
