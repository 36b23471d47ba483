"""95 % intervals of fitted laws by profile likelihood, of the likelihood that the law maximizes.

A parameter is moved away from its most likely value and the others, with the noise's scale, are
refitted. With d twice the rise of the negative log likelihood, n runs and p fitted parameters, the
interval ends where (n - p) (exp(d / n) - 1) reaches the F quantile for (1, n - p) degrees of
freedom, which leaves 2.5 % of Student's t on either side. Under normal noise that is the textbook's
region of least squares. Where runs of one size share noise, the quantile is that of each quantity's
own degrees of freedom (`whitening.satterthwaite`). Noise that grows for small runs takes two
degrees more, and so do heavy tails; few runs, which cannot show such growth, count a little less.
E divides its 5 % unequally, see `E_TAILS`. The search starts at the reported value, so each
interval contains it.

How often these intervals contain the true value of synthetic sweeps is in
docs/results/interval_coverage.md. With 8 to 12 runs those of the bootstrap and BCa are 1.2 to 2
times as wide.

Source: Bates and Watts 1988, section 6.1.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import special

from var_jax.scaling import interval_limits, laws, losses, solver
from var_jax.scaling.crossings import RISE_TOLERANCE, Refitted, crossings
from var_jax.scaling.solver import Array
from var_jax.scaling.whitening import satterthwaite

CONFIDENCE_LEVEL = 0.95
EQUAL_TAILS = ((1 - CONFIDENCE_LEVEL) / 2, (1 - CONFIDENCE_LEVEL) / 2)
# Probabilities below and above E's interval. E cannot exceed the smallest loss, so a stricter upper
# end hardly widens the interval; below, the likelihood is so flat that a looser lower end shortens
# it by a quarter. The tails are fixed, because tails chosen to make each sweep's interval the
# shortest miss the true value more often.
E_TAILS = (0.04, 0.01)
# Curvature, per squared standard error, of the penalty that moves a quantity along its profile. The
# profile does not depend on it; with a stronger one the solver's steps get stuck along its valley.
PIN_STRENGTH = 1e3
REFIT_TOLERANCE = 1e-5  # of a refit's log likelihood, far below what ends may fall short of
BAND_TOLERANCE = 0.02  # the same for the bands of plots: one hundredth of their width


class PredictionProfile(NamedTuple):
    """A law's loss at a point, in raw units.

    Attributes:
      value: the loss.
      interval: its 95 % interval.
      new_run_interval: the 95 % interval of the loss of a new run.
    """

    value: float
    interval: Float[Array, "2"]
    new_run_interval: Float[Array, "2"]


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The most likely law, and what its intervals are computed from.

    Attributes:
      problem: the problem with log x centered by `mean`; its loss is the likelihood.
      mean: mean of log x.
      raw_theta: the most likely law's parameters in raw units.
      theta: the same for centered log x.
      cost: the negative log likelihood at `theta`.
      scale: the most likely scale of the whitened noise.
      runs: number of runs, n.
      freedom: degrees of freedom, n - p; without any there is no interval.
      held: parameters that are given rather than fitted.
    """

    problem: solver.Problem
    mean: Float[Array, " j"]
    raw_theta: Float[Array, " p"]
    theta: Float[Array, " p"]
    cost: float
    scale: float
    runs: float
    freedom: float
    held: Bool[Array, " p"]

    @property
    def noise(self) -> float:
        """Scale of the noise of a run of average size; with normal noise its standard deviation.

        It is not biased low by the fit.
        """
        whitening = self.problem.whitening
        return self._whitened_noise * (1 if whitening is None else whitening.unit)

    @property
    def _whitened_noise(self) -> float:
        return self.scale * math.sqrt(self.runs / max(self.freedom, 1e-9))

    @property
    def noise_freedom(self) -> float:
        """Degrees of freedom of the noise's distribution, infinite for normal noise."""
        loss = self.problem.loss
        return loss.freedom if isinstance(loss, losses.StudentT) else math.inf

    def noise_at(self, logx: Float[Array, " j"]) -> float:
        """Scale of the noise of a run at centered log x; beyond the runs it is that of the last."""
        whitening = self.problem.whitening
        if whitening is None:
            return self.noise
        place = whitening.place
        at = np.clip(logx[0] / whitening.deviation, place.min(), place.max())
        return self.noise * float(np.exp(-whitening.growth * at))

    def rise(
        self, tails: Float[Array, " k"], freedom: Float[Array, " k"] | None = None
    ) -> Float[Array, " k"]:
        """Returns the rises of the cost at ends beyond which lie the probabilities `tails`.

        Args:
          freedom: degrees of freedom of each quantity, if not all runs' own.
        """
        return interval_limits.rise(tails, self.runs, self.freedom, freedom)

    def freedom_of(self, p: solver.Problem, slopes: Float[Array, "m p"]) -> Float[Array, " m"]:
        """Returns the degrees of freedom of quantities with these derivatives.

        Args:
          p: the problem whose parameters the derivatives are by.
        """
        whitening = p.whitening
        if whitening is None or not whitening.is_shared:
            return np.full(len(slopes), self.freedom)
        free = ~self.held
        theta = self.raw_theta if p is not self.problem else self.theta
        jacobian = solver.log_jacobian(theta[None], p.logx)[0][:, free]
        return np.minimum(satterthwaite(whitening, jacobian, slopes[:, free]), self.freedom)

    def standard_errors(self, p: solver.Problem, slopes: Float[Array, "m p"]) -> Float[Array, " m"]:
        """Returns the standard errors of quantities with these derivatives, by linearization.

        Args:
          p: the problem whose parameters the derivatives are by.
        """
        free = ~self.held
        theta = self.raw_theta if p is not self.problem else self.theta
        jacobian = solver.log_jacobian(theta[None], p.logx).swapaxes(1, 2)[:, free]
        jacobian = p.whitened(jacobian)[0]
        normal = np.einsum("pn,n,qn->pq", jacobian, p.weights, jacobian)
        covariance = np.linalg.pinv(normal) * self._whitened_noise**2
        variance = np.einsum("mp,pq,mq->m", slopes[:, free], covariance, slopes[:, free])
        return np.sqrt(np.maximum(variance, 0))


def likelihood(p: solver.Problem, fit: laws.Fit, floor: float | None = None) -> Likelihood:
    """Returns the likelihood around its maximum.

    Args:
      p: the problem in raw units; its weights count runs or fractions of runs.
      fit: the law of the same runs, whose objective becomes the problem's.
      floor: a fixed E, or None.
    """
    centered, mean = laws.center(fit.objective(p))
    held = np.zeros(p.parameters, bool)
    held[0] = floor is not None
    theta = laws.shift(fit.theta, -mean)
    r = solver.residuals(centered, theta[None])
    scale = centered.loss.scale(r, p.weights[None])
    cost = centered.loss.cost(r, p.weights[None], scale)
    runs = float(p.weights.sum())
    tails = fit.loss.freedom if isinstance(fit.loss, losses.StudentT) else math.inf
    growth = 0.0 if fit.whitening is None else fit.whitening.growth
    freedom = interval_limits.degrees_of_freedom(
        runs, int(np.sum(~held)), np.array(tails), np.array(growth)
    )
    return Likelihood(
        problem=centered,
        mean=mean,
        raw_theta=fit.theta,
        theta=theta,
        cost=float(cost[0]),
        scale=float(scale[0]),
        runs=runs,
        freedom=float(freedom),
        held=held,
    )


def profile(likelihood: Likelihood, e_tails: tuple[float, float] = E_TAILS) -> Float[Array, "p 2"]:
    """Returns the 95 % intervals of [E, A, alpha, ...] by profile likelihood, in raw units.

    The interval of an amplitude is that of log A, the fitted parameter, exponentiated. An interval
    that does not close ends at the parameter's bound (`solver.bounds`). All are NaN without degrees
    of freedom.

    Args:
      e_tails: probabilities below and above the interval of E.
    """
    count = len(likelihood.theta)
    if likelihood.freedom <= 0:
        return np.full((count, 2), np.nan)
    out = np.empty((count, 2))
    out[::2] = _limits(likelihood, likelihood.problem, np.arange(0, count, 2), e_tails)
    # Amplitudes are those at x = 1: their profile needs log x as it is.
    raw = dataclasses.replace(likelihood.problem, logx=likelihood.problem.logx + likelihood.mean)
    out[1::2] = _limits(likelihood, raw, np.arange(1, count, 2), e_tails)
    return laws.with_amplitudes(out.T).T


def _limits(
    likelihood: Likelihood,
    p: solver.Problem,
    indices: Array,
    e_tails: tuple[float, float],
) -> Float[Array, "i 2"]:
    """Returns the parameter values, below and above, at which each profile reaches its limit.

    Args:
      p: the likelihood's problem, or the same in raw units.
      indices: the parameters.
    """
    theta = likelihood.theta if p is likelihood.problem else likelihood.raw_theta
    out = np.stack([theta[indices], theta[indices]], axis=1)
    free = np.flatnonzero(~likelihood.held[indices])
    if not len(free):
        return out
    # One row for each end that is searched.
    index = np.repeat(indices[free], 2)
    sign = np.tile([-1.0, 1.0], len(free))
    row = np.arange(len(index))
    slopes = np.eye(len(theta))
    errors = likelihood.standard_errors(p, slopes)[index]
    tails = np.where((index == 0)[:, None], e_tails, EQUAL_TAILS)
    allowed = likelihood.rise(
        np.where(sign < 0, tails[:, 0], tails[:, 1]), likelihood.freedom_of(p, slopes)[index]
    )
    lower, upper = solver.bounds(p)
    held = np.tile(likelihood.held, (len(index), 1))
    held[row, index] = True

    def refit(values, rows):
        initial = rows.copy()
        initial[row, index] = values
        ends, costs = solver.solve(p, initial, held, iterations=100, tolerance=REFIT_TOLERANCE)
        return Refitted(values, ends, costs - likelihood.cost)

    size = np.maximum(np.abs(theta[index]), 1e-3)
    ends = crossings(
        refit,
        np.tile(theta, (len(index), 1)),
        theta[index],
        sign * np.clip(errors, 1e-6 * size, 2.0),
        np.where(sign < 0, lower[index], upper[index]),
        allowed,
    )
    out[free] = ends.reshape(-1, 2)
    return out


def profile_quantities(
    likelihood: Likelihood,
    quantity: solver.Quantity,
    inputs: Float[Array, "g k"],
    tolerance: float = RISE_TOLERANCE,
) -> Float[Array, "g 2"]:
    """Returns the 95 % intervals of quantities of the law, by the profile likelihood of each.

    A penalty on the squared distance from a target moves the quantity, within the bounds of E and
    the exponents. Each law that minimizes cost plus penalty lies exactly on the profile, wherever
    short of the target it stays: another law with the same quantity has the same penalty, so its
    cost cannot be lower. Neither can the quantity lie on the far side of its most likely value,
    where both cost and penalty are higher than at the most likely law, so the interval contains
    the value. Where no law reaches a target, the interval ends at the last value that a law has.

    The intervals are NaN without degrees of freedom.

    Args:
      quantity: a smooth function of rows of parameters for centered log x, and of rows of inputs;
        it must be of order one in its variation, such as the logarithm of a loss or of a size.
      inputs: one row for each quantity.
      tolerance: share of the interval's rise that its ends may fall short of.
    """
    count = len(inputs)
    if likelihood.freedom <= 0:
        return np.full((count, 2), np.nan)
    best = quantity(np.tile(likelihood.theta, (count, 1)), inputs)
    nothing = np.zeros(count)
    slopes = solver.Pin(quantity, inputs, nothing, nothing).jacobian(
        np.tile(likelihood.theta, (count, 1))
    )[:, 0]
    errors = likelihood.standard_errors(likelihood.problem, slopes)
    freedom = np.repeat(likelihood.freedom_of(likelihood.problem, slopes), 2)
    # One row for each end that is searched.
    errors, ends_inputs = np.repeat(errors, 2), np.repeat(inputs, 2, axis=0)
    strength = PIN_STRENGTH / np.maximum(errors, 1e-6) ** 2
    bare = likelihood.problem

    def refit(values, rows):
        pinned = dataclasses.replace(bare, pin=solver.Pin(quantity, ends_inputs, values, strength))
        ends, _ = solver.solve(
            pinned, rows, likelihood.held, iterations=100, tolerance=REFIT_TOLERANCE
        )
        rise = solver.objective(bare, ends) - likelihood.cost
        return Refitted(quantity(ends, ends_inputs), ends, rise)

    ends = crossings(
        refit,
        np.tile(likelihood.theta, (2 * count, 1)),
        np.repeat(best, 2),
        np.tile([-1.0, 1.0], count) * np.maximum(errors, 1e-7),
        np.tile([-np.inf, np.inf], count),
        likelihood.rise(np.tile(EQUAL_TAILS, count), freedom),
        tolerance=tolerance,
    )
    return ends.reshape(-1, 2)


def profile_quantity(
    likelihood: Likelihood, quantity: Callable[[Float[Array, "r p"]], Float[Array, " r"]]
) -> Float[Array, "2"]:
    """Returns the 95 % interval of one quantity of the law, as `profile_quantities` does."""
    return profile_quantities(likelihood, lambda theta, _: quantity(theta), np.zeros((1, 0)))[0]


def log_loss(theta: Float[Array, "r p"], logx: Float[Array, "r j"]) -> Float[Array, " r"]:
    """Returns each law's log loss at the inputs in the same row."""
    terms = np.exp(np.clip(theta[:, 1::2] - theta[:, 2::2] * logx, -700, 700))
    return np.log(theta[:, 0] + terms.sum(axis=1) + losses.TINY)


def log_reducible(theta: Float[Array, "r p"], logx: Float[Array, "r j"]) -> Float[Array, " r"]:
    """Returns the logarithm of each law's loss above E at the inputs in the same row."""
    exponents = theta[:, 1::2] - theta[:, 2::2] * logx
    return np.logaddexp.reduce(exponents, axis=1)


def band(
    likelihood: Likelihood, x: Float[Array, "g j"], *, reducible: bool = False
) -> Float[Array, "g 2"]:
    """Returns the 95 % interval of the law's loss at each x, or of its loss above E.

    It is that of `profile_prediction`, computed to what a plot can show.
    """
    quantity = log_reducible if reducible else log_loss
    logx = np.log(x) - likelihood.mean
    return np.exp(profile_quantities(likelihood, quantity, logx, BAND_TOLERANCE))


def profile_prediction(likelihood: Likelihood, x: Float[Array, " j"]) -> PredictionProfile:
    """Returns the law's loss at x with its 95 % intervals.

    The noise of a new run is added in quadrature.
    """
    where = (np.log(x) - likelihood.mean)[None]
    best = log_loss(likelihood.theta[None], where)[0]
    ends = profile_quantities(likelihood, log_loss, where)[0]
    if likelihood.freedom <= 0:
        return PredictionProfile(float(np.exp(best)), ends, ends)
    freedom = min(likelihood.freedom, likelihood.noise_freedom)
    quantile = float(special.stdtrit(freedom, (1 + CONFIDENCE_LEVEL) / 2))
    of_run = likelihood.noise_at(where[0]) * quantile
    run = best + np.array([-1.0, 1.0]) * np.sqrt((ends - best) ** 2 + of_run**2)
    return PredictionProfile(float(np.exp(best)), np.exp(ends), np.exp(run))
