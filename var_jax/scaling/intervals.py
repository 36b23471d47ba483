"""95 % intervals of fitted laws: by profile likelihood (the reported ones), bootstrap and BCa.

The profile likelihood is reported because on synthetic sweeps of known laws its intervals are the
shortest that contain the true value as often as they should (docs/results/interval_coverage.md).
With 8 to 12 runs those of the bootstrap and BCa are 1.2 to 2 times as wide.

For the profile, a parameter is moved away from its best value and the others are refitted. The
interval ends where the objective has risen by the noise variance times the F quantile for
(1, runs - parameters) degrees of freedom, which leaves 2.5 % of Student's t on either side. E
divides its 5 % unequally, see `E_TAILS`.

Source: Bates and Watts 1988, section 6.1.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from var_jax.scaling import laws, solver
from var_jax.scaling.solver import Array, Problem

# Residuals beyond this many standard deviations count linearly: 99 % efficient for normal noise,
# robust against a stray run.
OUTLIER = 2.5
LEVEL = 0.95
EQUAL_TAILS = ((1 - LEVEL) / 2, (1 - LEVEL) / 2)
# Probabilities below and above E's interval. E cannot exceed the smallest loss, so a stricter upper
# end hardly widens the interval; below, the likelihood is so flat that a looser lower end shortens
# it by a quarter. The tails are fixed, because tails chosen to make each sweep's interval the
# shortest miss the true value more often.
E_TAILS = (0.04, 0.01)
CONSTRAINT = 1e6  # weight of the pseudo-run that fixes a prediction along its profile


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
    """The law and noise that intervals are computed from.

    With the published Huber constant a fit nearly minimizes absolute errors, which is inefficient
    by a third on clean data. The objective here is quadratic except for outliers.

    Attributes:
      problem: the problem with the interval's own Huber constant and log x centered by `mean`.
      mean: mean of log x.
      theta: the best law's parameters, for centered log x.
      cost: the objective at `theta`.
      variance: noise variance of a run's log loss.
      freedom: degrees of freedom, runs - free parameters; without any there is no interval.
      allowed: increase of the objective within an interval.
      held: parameters that are given rather than fitted.
    """

    problem: Problem
    mean: Float[Array, " j"]
    theta: Float[Array, " p"]
    cost: float
    variance: float
    freedom: float
    allowed: float
    held: Bool[Array, " p"]


def likelihood(p: Problem, theta: Float[Array, " p"], floor: float | None = None) -> Likelihood:
    """Returns the robust likelihood of a problem's losses.

    Args:
      p: the problem in raw units; its weights count runs or fractions of runs.
      theta: the point fit in raw units, from which the best law of the likelihood is searched.
      floor: a fixed E, or None.
    """
    centered, mean = laws.center(p)
    held = np.zeros(p.parameters, bool)
    held[0] = floor is not None
    freedom = float(p.weights.sum() - np.sum(~held))
    start = laws.shift(theta, -mean)
    scale = _noise_scale(solver.residuals(centered, start[None])[0], int(np.sum(~held)))
    delta = np.maximum(p.delta, OUTLIER * scale)
    centered = dataclasses.replace(centered, delta=delta)
    grid = np.concatenate([start[None], laws.starts(centered, floor)])
    if p.parameters > 3:
        # The point fit has searched thoroughly; a few other starts guard against a local optimum.
        grid = grid[:: max(1, len(grid) // 8)]
    ends, costs = solver.solve(centered, grid, held)
    best = int(np.argmin(costs))
    r = solver.residuals(centered, ends[best][None])[0]
    within = np.average(np.abs(r) <= delta, weights=p.weights)
    variance = np.sum(p.weights * np.minimum(np.abs(r), delta) ** 2) / max(freedom, 1e-9) / within
    allowed = float(variance * stats.f.ppf(LEVEL, 1, freedom) / 2) if freedom > 0 else np.inf
    return Likelihood(
        centered, mean, ends[best], float(costs[best]), float(variance), freedom, allowed, held
    )


def _noise_scale(r: Float[Array, " n"], parameters: int) -> float:
    """Returns the noise's standard deviation from the median absolute residual.

    The `parameters` smallest residuals are left out, because a fit of nearly least absolute errors
    passes exactly through that many runs.
    """
    return float(1.4826 * np.median(np.sort(np.abs(r))[min(parameters, len(r) - 1) :]))


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
    ends = _limits(
        likelihood.problem, likelihood.theta, likelihood, list(range(0, count, 2)), e_tails
    )
    # Amplitudes are those at x = 1: their profile needs log x as it is.
    raw = dataclasses.replace(likelihood.problem, logx=likelihood.problem.logx + likelihood.mean)
    amplitudes = _limits(
        raw,
        laws.shift(likelihood.theta, likelihood.mean),
        likelihood,
        list(range(1, count, 2)),
        e_tails,
    )
    out = np.empty((count, 2))
    for index, limits in {**ends, **amplitudes}.items():
        out[index] = limits
    return laws.with_amplitudes(out.T).T


def _limits(
    p: Problem,
    theta: Float[Array, " p"],
    likelihood: Likelihood,
    indices: list[int],
    e_tails: tuple[float, float],
) -> dict[int, Array]:
    """Returns the parameter values, below and above, at which each profile reaches its limit."""
    lower, upper = solver.bounds(p)
    jacobian = solver.log_jacobian(theta[None], p.logx)[0]
    normal = np.einsum("np,n,nq->pq", jacobian, p.weights, jacobian)[
        np.ix_(~likelihood.held, ~likelihood.held)
    ]
    wald = np.zeros(len(theta))
    with np.errstate(invalid="ignore"):
        wald[~likelihood.held] = np.sqrt(
            np.maximum(np.diag(np.linalg.pinv(normal)), 0) * 2 * likelihood.allowed
        )
    sides = [(i, sign) for i in indices if not likelihood.held[i] for sign in (-1, 1)]
    out = {i: np.array([theta[i], theta[i]]) for i in indices}
    if not sides:
        return out
    index = np.array([i for i, _ in sides])
    sign = np.array([s for _, s in sides])
    quantiles = stats.t.ppf([1 - tail for tail in (*e_tails, *EQUAL_TAILS)], likelihood.freedom)
    share = (quantiles[:2] / quantiles[2:]) ** 2
    allowed = likelihood.allowed * np.where(index == 0, np.where(sign < 0, *share), 1.0)
    edge = np.where(sign < 0, lower[index], upper[index])
    held = np.tile(likelihood.held, (len(sides), 1))
    held[np.arange(len(sides)), index] = True

    def refit(values, rows):
        initial = rows.copy()
        initial[np.arange(len(sides)), index] = values
        return solver.solve(p, initial, held, iterations=100, tolerance=1e-9)

    def bounded(values):
        return np.where(sign < 0, np.maximum(values, edge), np.minimum(values, edge))

    inner, inner_theta = theta[index].copy(), np.tile(theta, (len(sides), 1))
    step = np.clip(wald[index], 1e-6 * np.maximum(np.abs(inner), 1e-3), 2.0)
    outer = bounded(inner + sign * step)
    # Step outward until each profile exceeds the limit or the parameter is at its bound.
    for _ in range(60):
        trial, cost = refit(outer, inner_theta)
        below = cost - likelihood.cost <= allowed
        inner = np.where(below, outer, inner)
        inner_theta = np.where(below[:, None], trial, inner_theta)
        if np.all(~below | (outer == edge)):
            break
        step = step * np.where(below, 1.6, 1)
        outer = np.where(below, bounded(outer + sign * step), outer)
    # Bisect between the last value within the limit and the first beyond it.
    for _ in range(18):
        middle = (inner + outer) / 2
        trial, cost = refit(middle, inner_theta)
        below = cost - likelihood.cost <= allowed
        inner = np.where(below, middle, inner)
        inner_theta = np.where(below[:, None], trial, inner_theta)
        outer = np.where(below, outer, middle)
    for i, s, value in zip(index, sign, inner, strict=True):
        out[i][0 if s < 0 else 1] = value
    return out


def profile_prediction(likelihood: Likelihood, x: Float[Array, " j"]) -> PredictionProfile:
    """Returns the law's loss at x with its 95 % intervals.

    The prediction is fixed by a pseudo-run of very large weight, so that E respects its bound along
    the profile. The noise of a new run is added in quadrature.
    """
    where = np.log(x) - likelihood.mean
    best = float(np.log(solver.predict(likelihood.theta[None], where[None])[0, 0]))
    if likelihood.freedom <= 0:
        return PredictionProfile(float(np.exp(best)), np.full(2, np.nan), np.full(2, np.nan))
    p = likelihood.problem
    jacobian = solver.log_jacobian(likelihood.theta[None], np.vstack([p.logx, where]))[0][
        :, ~likelihood.held
    ]
    normal = np.einsum("np,n,nq->pq", jacobian[:-1], p.weights, jacobian[:-1])
    wald = float(
        np.sqrt(
            max(jacobian[-1] @ np.linalg.pinv(normal) @ jacobian[-1], 0) * 2 * likelihood.allowed
        )
    )
    weights = np.append(p.weights, CONSTRAINT)
    delta = np.append(p.delta, np.inf)
    sign = np.array([-1.0, 1.0])

    def rise(values, rows):
        logy = np.column_stack([np.tile(p.logy, (2, 1)), values])
        q = Problem(np.vstack([p.logx, where]), logy, weights, delta)
        theta, _ = solver.solve(q, rows, likelihood.held, iterations=100, tolerance=1e-9)
        # A prediction that no law reaches, such as one that needs E < 0, has no likelihood at all.
        missed = (
            np.abs(np.log(solver.predict(theta, where[None]))[:, 0] - values)
            > 1e-4 * max(wald, 1e-6) + 1e-6
        )
        fit = Problem(p.logx, p.logy, p.weights, p.delta)
        return theta, np.where(missed, np.inf, solver.objective(fit, theta) - likelihood.cost)

    inner, inner_theta = np.full(2, best), np.tile(likelihood.theta, (2, 1))
    step = np.full(2, max(wald, 1e-7))
    outer = inner + sign * step
    for _ in range(40):
        trial, up = rise(outer, inner_theta)
        below = up <= likelihood.allowed
        inner, inner_theta = (
            np.where(below, outer, inner),
            np.where(below[:, None], trial, inner_theta),
        )
        if not below.any():
            break
        step = step * np.where(below, 1.6, 1)
        outer = np.where(below, outer + sign * step, outer)
    for _ in range(16):
        middle = (inner + outer) / 2
        trial, up = rise(middle, inner_theta)
        below = up <= likelihood.allowed
        inner, inner_theta = (
            np.where(below, middle, inner),
            np.where(below[:, None], trial, inner_theta),
        )
        outer = np.where(below, outer, middle)
    noise = likelihood.variance * float(stats.t.ppf((1 + LEVEL) / 2, likelihood.freedom)) ** 2
    run = best + sign * np.sqrt((inner - best) ** 2 + noise)
    return PredictionProfile(float(np.exp(best)), np.exp(inner), np.exp(run))


def bootstrap(
    p: Problem,
    theta: Float[Array, " p"],
    resamples: int,
    *,
    floor: float | None = None,
    groups: Float[Array, " n"] | None = None,
    seed: int = 0,
) -> Float[Array, "r p"]:
    """Returns laws refitted to bootstrap resamples of the runs.

    Args:
      theta: the law of all runs, from which the refits start.
      groups: the run of each row; rows of a run are drawn together. By default every row is a run.

    Returns:
      [E, log A, alpha, ...] of each resample in raw units.
    """
    _, owner = np.unique(np.arange(len(p.logx)) if groups is None else groups, return_inverse=True)
    runs = owner.max() + 1
    draws = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=resamples)
    return refits(p, theta, draws[:, owner] * p.weights, floor)


def refits(
    p: Problem,
    theta: Float[Array, " p"],
    weights: Float[Array, "r n"],
    floor: float | None = None,
    logy: Float[Array, "r n"] | None = None,
) -> Float[Array, "r p"]:
    """Returns the best law for each row of weights.

    Each fit starts from the law `theta` and from one with half its exponents, and the better result
    is taken.

    Args:
      weights: weights of the losses, one row per fit.
      logy: log losses of each fit, if they differ from the problem's.
    """
    centered, mean = laws.center(p)
    held = np.zeros(p.parameters, bool)
    held[0] = floor is not None
    first = laws.shift(theta, -mean)
    second = first.copy()
    second[2::2] /= 2
    if floor is None:
        second[0] *= 0.8
    logy = centered.logy if logy is None else np.concatenate([logy, logy])
    batch = dataclasses.replace(centered, weights=np.concatenate([weights, weights]), logy=logy)
    rows = np.repeat(np.stack([first, second]), len(weights), axis=0)
    ends, costs = solver.solve(batch, rows, held, iterations=150, tolerance=1e-6)
    ends, costs = ends.reshape(2, len(weights), -1), costs.reshape(2, -1)
    return laws.shift(ends[costs.argmin(axis=0), np.arange(len(weights))], mean)


def percentile(samples: Float[Array, "r p"]) -> Float[Array, "p 2"]:
    """Returns intervals of [E, A, alpha, ...] between the 2.5 % and 97.5 % bootstrap quantiles."""
    return np.quantile(laws.with_amplitudes(samples), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T
