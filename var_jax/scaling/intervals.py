"""95 % intervals of fitted laws: profile likelihood (what is reported), bootstrap over runs, and
BCa.

Profile likelihood is reported because it holds the truth as often as it says at the least width on
planted laws (docs/scaling.md); with 8 to 12 runs the bootstrap and BCa are 1.2 to 2 times as wide.
A parameter is moved away from its best value, the others refitted, and the interval ends where the
objective has risen by the F quantile for (1, runs
- parameters) degrees of freedom times the noise variance (Bates and Watts 1988, section 6.1): 2.5 %
of Student's t on either side. E shares its 5 % unequally, see `E_TAILS`.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from var_jax.scaling import laws, solver
from var_jax.scaling.solver import Array, Problem

# Noise scales beyond which a run counts linearly: 99 % efficient on clean noise, safe with a stray
# run
OUTLIER = 2.5
LEVEL = 0.95
EQUAL_TAILS = ((1 - LEVEL) / 2, (1 - LEVEL) / 2)
# What lies below and above E's interval. Above, the smallest loss is a wall and a stricter end
# costs next to no width; below, the likelihood is so flat over a short range that a looser end
# saves a quarter of it. Fixed: tails picked for each sweep's shortest interval miss the truth more
# often.
E_TAILS = (0.04, 0.01)
CONSTRAINT = 1e6  # weight of a pseudo-run that holds a prediction


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The law and the noise that intervals are drawn around.

    The published Huber constant makes a fit of nearly least absolute errors, which wastes a third
    of clean data; the interval's objective is quadratic but for outliers.

    Attributes:
      problem: with the interval's own Huber constant, log x centred by `mean`.
      theta: the centred parameters of its best law.
      cost: the objective there.
      variance: of the noise of a run's log loss.
      freedom: runs less free parameters; 0 or less leaves no interval.
      allowed: by how much the objective may rise within an interval.
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
    """The robust likelihood of runs around the law `theta` (raw units); weights count runs, or
    shares of them."""
    centered, mean = laws.center(p)
    held = np.zeros(p.parameters, bool)
    held[0] = floor is not None
    freedom = float(p.weights.sum() - np.sum(~held))
    start = laws.shift(theta, -mean)
    scale = _noise_scale(solver.residuals(centered, start[None])[0], int(np.sum(~held)))
    delta = np.maximum(p.delta, OUTLIER * scale)
    centered = dataclasses.replace(centered, delta=delta)
    grid = np.concatenate([start[None], laws.starts(centered, floor)])
    if (
        p.parameters > 3
    ):  # the point fit has searched; a few other starts guard against its local optimum
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
    """From the median absolute residual, without the `parameters` runs that such a fit passes
    through exactly."""
    return float(1.4826 * np.median(np.sort(np.abs(r))[min(parameters, len(r) - 1) :]))


def profile(like: Likelihood, e_tails: tuple[float, float] = E_TAILS) -> Float[Array, "p 2"]:
    """95 % intervals of [E, A, alpha, ...] in raw units; NaN without degrees of freedom.

    Those of amplitudes are drawn for log A, the fitted parameter, and raised to e. An interval that
    does not close ends at the parameter's bound (`solver.bounds`).
    """
    count = len(like.theta)
    if like.freedom <= 0:
        return np.full((count, 2), np.nan)
    ends = _limits(like.problem, like.theta, like, list(range(0, count, 2)), e_tails)
    # Amplitudes are those at x = 1: their profile needs log x as it is.
    raw = dataclasses.replace(like.problem, logx=like.problem.logx + like.mean)
    amplitudes = _limits(
        raw, laws.shift(like.theta, like.mean), like, list(range(1, count, 2)), e_tails
    )
    out = np.empty((count, 2))
    for index, limits in {**ends, **amplitudes}.items():
        out[index] = limits
    return laws.natural(out.T).T


def _limits(
    p: Problem,
    theta: Float[Array, " p"],
    like: Likelihood,
    indices: list[int],
    e_tails: tuple[float, float],
) -> dict[int, Array]:
    """Where the profile of each parameter rises by what is allowed, below and above."""
    lower, upper = solver.bounds(p)
    jacobian = solver.log_jacobian(theta[None], p.logx)[0]
    normal = np.einsum("np,n,nq->pq", jacobian, p.weights, jacobian)[np.ix_(~like.held, ~like.held)]
    wald = np.zeros(len(theta))
    with np.errstate(invalid="ignore"):
        wald[~like.held] = np.sqrt(
            np.maximum(np.diag(np.linalg.pinv(normal)), 0) * 2 * like.allowed
        )
    sides = [(i, sign) for i in indices if not like.held[i] for sign in (-1, 1)]
    out = {i: np.array([theta[i], theta[i]]) for i in indices}
    if not sides:
        return out
    index = np.array([i for i, _ in sides])
    sign = np.array([s for _, s in sides])
    quantiles = stats.t.ppf([1 - tail for tail in (*e_tails, *EQUAL_TAILS)], like.freedom)
    share = (quantiles[:2] / quantiles[2:]) ** 2
    allowed = like.allowed * np.where(index == 0, np.where(sign < 0, *share), 1.0)
    edge = np.where(sign < 0, lower[index], upper[index])
    held = np.tile(like.held, (len(sides), 1))
    held[np.arange(len(sides)), index] = True

    def refit(values, rows):
        begin = rows.copy()
        begin[np.arange(len(sides)), index] = values
        return solver.solve(p, begin, held, iterations=100, tolerance=1e-9)

    def bounded(values):
        return np.where(sign < 0, np.maximum(values, edge), np.minimum(values, edge))

    inner, inner_theta = theta[index].copy(), np.tile(theta, (len(sides), 1))
    step = np.clip(wald[index], 1e-6 * np.maximum(np.abs(inner), 1e-3), 2.0)
    outer = bounded(inner + sign * step)
    for _ in range(60):  # outward until all have risen enough, or stand at their bound
        trial, cost = refit(outer, inner_theta)
        below = cost - like.cost <= allowed
        inner = np.where(below, outer, inner)
        inner_theta = np.where(below[:, None], trial, inner_theta)
        if np.all(~below | (outer == edge)):
            break
        step = step * np.where(below, 1.6, 1)
        outer = np.where(below, bounded(outer + sign * step), outer)
    for _ in range(18):
        middle = (inner + outer) / 2
        trial, cost = refit(middle, inner_theta)
        below = cost - like.cost <= allowed
        inner = np.where(below, middle, inner)
        inner_theta = np.where(below[:, None], trial, inner_theta)
        outer = np.where(below, outer, middle)
    for i, s, value in zip(index, sign, inner, strict=True):
        out[i][0 if s < 0 else 1] = value
    return out


def profile_prediction(
    like: Likelihood, x: Float[Array, " j"]
) -> tuple[float, Float[Array, "2"], Float[Array, "2"]]:
    """The law's loss at x by the likelihood, its 95 % interval, and that of one new run's loss.

    The prediction is held by a pseudo-run of enormous weight, so E keeps its bound along the
    profile. A new run adds its own noise, in quadrature.
    """
    where = np.log(x) - like.mean
    best = float(np.log(solver.predict(like.theta[None], where[None])[0, 0]))
    if like.freedom <= 0:
        return float(np.exp(best)), np.full(2, np.nan), np.full(2, np.nan)
    p = like.problem
    jacobian = solver.log_jacobian(like.theta[None], np.vstack([p.logx, where]))[0][:, ~like.held]
    normal = np.einsum("np,n,nq->pq", jacobian[:-1], p.weights, jacobian[:-1])
    wald = float(
        np.sqrt(max(jacobian[-1] @ np.linalg.pinv(normal) @ jacobian[-1], 0) * 2 * like.allowed)
    )
    weights = np.append(p.weights, CONSTRAINT)
    delta = np.append(p.delta, np.inf)
    sign = np.array([-1.0, 1.0])

    def rise(values, rows):
        logy = np.column_stack([np.tile(p.logy, (2, 1)), values])
        q = Problem(np.vstack([p.logx, where]), logy, weights, delta)
        theta, _ = solver.solve(q, rows, like.held, iterations=100, tolerance=1e-9)
        # What could not be reached (below E = 0, say) is infinitely unlikely, not merely expensive.
        missed = (
            np.abs(np.log(solver.predict(theta, where[None]))[:, 0] - values)
            > 1e-4 * max(wald, 1e-6) + 1e-6
        )
        fit = Problem(p.logx, p.logy, p.weights, p.delta)
        return theta, np.where(missed, np.inf, solver.objective(fit, theta) - like.cost)

    inner, inner_theta = np.full(2, best), np.tile(like.theta, (2, 1))
    step = np.full(2, max(wald, 1e-7))
    outer = inner + sign * step
    for _ in range(40):
        trial, up = rise(outer, inner_theta)
        below = up <= like.allowed
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
        below = up <= like.allowed
        inner, inner_theta = (
            np.where(below, middle, inner),
            np.where(below[:, None], trial, inner_theta),
        )
        outer = np.where(below, outer, middle)
    noise = like.variance * float(stats.t.ppf((1 + LEVEL) / 2, like.freedom)) ** 2
    run = best + sign * np.sqrt((inner - best) ** 2 + noise)
    return float(np.exp(best)), np.exp(inner), np.exp(run)


def bootstrap(
    p: Problem,
    theta: Float[Array, " p"],
    resamples: int,
    *,
    floor: float | None = None,
    groups: Float[Array, " n"] | None = None,
    seed: int = 0,
) -> Float[Array, "r p"]:
    """Laws refitted to runs drawn with replacement, [E, log A, alpha, ...] in raw units.

    Args:
      groups: the run that each row belongs to; all rows of a run are drawn together. By default a
        row is a run.
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
    """The best law for each row of weights, from the law `theta` and from one with half its
    exponents.

    Args:
      logy: other log losses for each row.
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
    """Bootstrap interval between the 2.5 % and 97.5 % quantiles, of [E, A, alpha, ...]."""
    return np.quantile(laws.natural(samples), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T


def bca(
    p: Problem, theta: Float[Array, " p"], samples: Float[Array, "r p"], floor: float | None = None
) -> Float[Array, "p 2"]:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987), acceleration by leaving out a
    run at a time.

    scipy's `bootstrap(method="BCa")` takes a statistic of one sample at a time; here all refits are
    one batch.
    """
    count = len(p.logx)
    left_out = refits(p, theta, p.weights * (1 - np.eye(count)), floor)
    gap = left_out.mean(axis=0) - left_out
    spread = np.sum(gap**2, axis=0)
    acceleration = np.sum(gap**3, axis=0) / (6 * np.maximum(spread, 1e-300) ** 1.5)
    below = np.mean(samples < theta, axis=0) + np.mean(samples == theta, axis=0) / 2
    bias = stats.norm.ppf(np.clip(below, 0.5 / len(samples), 1 - 0.5 / len(samples)))
    z = bias + stats.norm.ppf([[(1 - LEVEL) / 2], [(1 + LEVEL) / 2]])
    levels = stats.norm.cdf(bias + z / (1 - acceleration * z))
    levels = np.nan_to_num(levels, nan=0.5)
    values = laws.natural(samples)
    return np.array([np.quantile(values[:, i], levels[:, i]) for i in range(values.shape[1])])
