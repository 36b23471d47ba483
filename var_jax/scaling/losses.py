"""Objectives of fitted laws: Huber's loss and Student's t likelihood of residuals in log loss.

`Huber` is the objective of the literature (Hoffmann et al. 2022, appendix D.3). `StudentT` is a
likelihood: its minimum is the reported law, and its profile gives the intervals.
"""

import dataclasses
import math
from typing import Protocol

import numpy as np
from jaxtyping import Float

Array = np.ndarray

TINY = 1e-300
# Losses are written with about seven digits: residuals below this are rounding, not noise.
SMALLEST_SCALE = 1e-8
AGREE = 1e-3  # relative difference of Huber's loss within which two fits count as one optimum
EXACT_RESIDUAL = 5e-7  # residual of a run that the law passes through
EXACT = 1e-13  # Huber's loss of such a run
AGREE_LIKELIHOOD = 0.01  # difference of log likelihoods within which two fits are one optimum
SCALE_ITERATIONS = 30
MAX_LOG_STEP = 1.0  # of the scale in one iteration of its search


class Loss(Protocol):
    """What the solver minimizes: a function of residuals, their weights and the noise's scale."""

    def scale(
        self,
        residuals: Float[Array, "r n"],
        weights: Float[Array, "r n"],
        start: Float[Array, " r"] | None = None,
    ) -> Float[Array, " r"]:
        """Returns the noise's scale at which the cost of each row is lowest."""
        ...

    def cost(
        self,
        residuals: Float[Array, "r n"],
        weights: Float[Array, "r n"],
        scale: Float[Array, " r"],
    ) -> Float[Array, " r"]:
        """Returns the cost of each row."""
        ...

    def influence(
        self,
        residuals: Float[Array, "r n"],
        weights: Float[Array, "r n"],
        scale: Float[Array, " r"],
    ) -> Float[Array, "r n"]:
        """Returns the weights of iteratively reweighted least squares.

        They are the derivative of the cost by each residual, over that residual.
        """
        ...

    def unit(self, cost: Float[Array, " r"]) -> Float[Array, " r"]:
        """Returns the scale of cost differences: the cost itself if they are relative, else 1."""
        ...

    def same(self, cost: float, best: float, runs: int) -> bool:
        """Returns whether a fit of `runs` losses with this cost is as good as the best one."""
        ...


@dataclasses.dataclass(frozen=True)
class Huber:
    """Huber's loss: r^2 / 2 within delta, linear beyond. It has no scale of its own.

    Attributes:
      delta: residual of log loss beyond which the loss is linear.
    """

    delta: float

    def scale(self, residuals, weights, start=None):
        """Returns ones: the loss does not depend on the noise's scale."""
        return np.ones(len(residuals))

    def cost(self, residuals, weights, scale):
        """Returns the weighted sums of Huber's losses."""
        size = np.abs(residuals)
        loss = np.where(size <= self.delta, residuals**2 / 2, self.delta * (size - self.delta / 2))
        return np.sum(weights * loss, axis=-1)

    def influence(self, residuals, weights, scale):
        """Returns 1 within delta and delta / |r| beyond, weighted."""
        return weights * np.minimum(1, self.delta / np.maximum(np.abs(residuals), TINY))

    def unit(self, cost):
        """Returns the cost itself: improvements count relative to it."""
        return cost

    def same(self, cost, best, runs):
        """Returns whether the costs differ by a small share, or negligibly for that many runs."""
        return bool(cost <= best * (1 + AGREE) + runs * EXACT)


@dataclasses.dataclass(frozen=True)
class StudentT:
    """The negative log likelihood of Student's t noise, minimized over the noise's scale.

    A row's cost is the sum over losses of log scale + log(1 + r^2 / (nu scale^2)) (nu + 1) / 2 and
    of the constants of the density; a weight counts a loss several times or in part. With infinite
    degrees of freedom the noise is normal, and the minimum is that of least squares.

    Attributes:
      freedom: degrees of freedom nu of the noise, `math.inf` for normal noise.
    """

    freedom: float = math.inf

    def scale(self, residuals, weights, start=None):
        """Returns the most likely scale of each row, at least `SMALLEST_SCALE`.

        The likelihood is convex in the logarithm of the scale, in which Newton's method searches,
        from the standard deviation unless `start` is given.
        """
        total = np.maximum(weights.sum(axis=-1), TINY)
        squares = residuals**2
        deviation = np.sqrt(np.sum(weights * squares, axis=-1) / total)
        if math.isinf(self.freedom):
            return np.maximum(deviation, SMALLEST_SCALE)
        scale = np.maximum(deviation if start is None else start, SMALLEST_SCALE)
        for _ in range(SCALE_ITERATIONS):
            ratio = squares / (self.freedom * scale[:, None] ** 2)
            share = ratio / (1 + ratio)
            slope = total - (self.freedom + 1) * np.sum(weights * share, axis=-1)
            bend = 2 * (self.freedom + 1) * np.sum(weights * share * (1 - share), axis=-1)
            step = np.clip(-slope / np.maximum(bend, 1e-12 * total), -MAX_LOG_STEP, MAX_LOG_STEP)
            new = np.maximum(scale * np.exp(step), SMALLEST_SCALE)
            if np.all(np.abs(new - scale) <= 1e-7 * scale):
                return new
            scale = new
        return scale

    def cost(self, residuals, weights, scale):
        """Returns the negative log likelihoods."""
        total = weights.sum(axis=-1)
        squares = (residuals / scale[:, None]) ** 2
        if math.isinf(self.freedom):
            constant = math.log(2 * math.pi) / 2
            losses = squares / 2
        else:
            nu = self.freedom
            constant = math.lgamma(nu / 2) - math.lgamma((nu + 1) / 2) + math.log(nu * math.pi) / 2
            losses = (nu + 1) / 2 * np.log1p(squares / nu)
        return total * (np.log(scale) + constant) + np.sum(weights * losses, axis=-1)

    def influence(self, residuals, weights, scale):
        """Returns (nu + 1) / (nu + (r / scale)^2) / scale^2, weighted."""
        variance = scale[:, None] ** 2
        if math.isinf(self.freedom):
            return weights / variance
        return weights * (self.freedom + 1) / (self.freedom * variance + residuals**2)

    def unit(self, cost):
        """Returns ones: a log likelihood is measured in absolute units."""
        return np.ones_like(cost)

    def same(self, cost, best, runs):
        """Returns whether the likelihoods differ by less than any interval would notice.

        Laws that pass through all runs but for rounding are equally good.
        """
        close = np.full((1, runs), EXACT_RESIDUAL)
        exact = self.cost(close, np.ones((1, runs)), np.array([EXACT_RESIDUAL]))[0]
        return bool(cost <= max(best + AGREE_LIKELIHOOD, exact))
