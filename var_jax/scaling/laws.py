"""Fits of E + A x^-alpha and E + A N^-alpha + B D^-beta (Hoffmann et al. 2022, appendix D.3; VAR,
section 4.2).

Two independent ways must agree: scipy's `least_squares` from many starts, and variable projection,
which searches the exponents on a grid and needs no start.
"""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Float
from scipy import optimize

from var_jax.scaling import solver
from var_jax.scaling.solver import Array, Problem

DELTA = 1e-3  # of Hoffmann et al.; near it a fit is one of least absolute relative errors
AGREE = 1e-3  # share of the objective by which two starts may differ and still be one optimum
EXACT = 1e-13  # objective of a run that the law passes through within 5e-7
NAMES = {1: ("E", "A", "alpha"), 2: ("E", "A", "alpha", "B", "beta")}
FORMS = {1: "E + A * x**-alpha", 2: "E + A * N**-alpha + B * D**-beta"}


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
      theta: [E, log A, alpha(, log B, beta)] in the raw units of x.
      cost: the objective there.
      starts_agreeing: share of the starts that ended in the best optimum found.
      projected: the objective that variable projection found, to be held against `cost`.
    """

    theta: Float[Array, " p"]
    cost: float
    starts_agreeing: float
    projected: float

    @property
    def values(self) -> dict[str, float]:
        return dict(zip(NAMES[len(self.theta) // 2], natural(self.theta), strict=True))

    def predict(self, x: Float[Array, "n j"]) -> Float[Array, " n"]:
        return solver.predict(self.theta[None], np.log(x))[0]


def natural(theta: Float[Array, "*r p"]) -> Float[Array, "*r p"]:
    """[E, A, alpha, ...] of [E, log A, alpha, ...]."""
    out = np.array(theta, float)
    out[..., 1::2] = np.exp(np.clip(out[..., 1::2], -700, 700))
    return out


def center(p: Problem) -> tuple[Problem, Float[Array, " j"]]:
    """The problem in log x minus its mean, where amplitude and exponent hardly correlate; and that
    mean."""
    mean = p.logx.mean(axis=0)
    return dataclasses.replace(p, logx=p.logx - mean), mean


def shift(theta: Float[Array, "*r p"], by: Float[Array, " j"]) -> Float[Array, "*r p"]:
    """The same laws for log x larger by `by`: what takes parameters of a centred problem to raw
    units."""
    out = np.array(theta, float)
    out[..., 1::2] += out[..., 2::2] * by
    return out


def starts(
    p: Problem, floor: float | None, exponents=(0.02, 0.1, 0.3, 0.8), shares=(0.0, 0.5, 0.9)
) -> Float[Array, "r p"]:
    """A grid of exponents and floors (shares of the smallest loss); amplitudes pass through the
    mean log loss."""
    terms_count = p.logx.shape[1]
    smallest, typical = np.exp(p.logy.min()), np.exp(np.average(p.logy, weights=p.weights))
    floors = [floor] if floor is not None else [share * smallest for share in shares]
    rows = []
    for e, alphas in itertools.product(floors, itertools.product(exponents, repeat=terms_count)):
        a = np.log(max(typical - e, 1e-3 * typical) / terms_count)
        rows.append([e, *itertools.chain.from_iterable((a, alpha) for alpha in alphas)])
    return np.array(rows)


def fit(p: Problem, floor: float | None = None, starts_count: int = 12) -> Fit:
    """The best law.

    Args:
      p: not centred, without a batch axis.
      floor: E when it is given rather than fitted; 0 makes a pure power law.
      starts_count: how many of the grid of starts scipy refines, spread evenly over it.
    """
    centered, mean = center(p)
    grid = starts(centered, floor)
    chosen = grid[np.unique(np.linspace(0, len(grid) - 1, starts_count).astype(int))]
    held = np.arange(p.parameters) < (floor is not None)
    # In the valley where E and a small exponent trade, scipy's steps shrink short of the bound of
    # E: the ends are finished by the solver that can stand on it.
    ends, costs = solver.solve(
        centered, np.array([_least_squares(centered, start, floor) for start in chosen]), held
    )
    projected, projected_cost = variable_projection(centered, floor)
    best = ends[int(np.argmin(costs))] if costs.min() <= projected_cost else projected
    cost = min(costs.min(), projected_cost)
    agreeing = float(np.mean([same_optimum(found, cost, len(p.logy)) for found in costs]))
    return Fit(shift(best, mean), float(cost), agreeing, float(projected_cost))


def same_optimum(cost: float, best: float, runs: int) -> bool:
    """Whether two fits are one: their objectives differ by little, or by what is nothing for `runs`
    log losses."""
    return bool(cost <= best * (1 + AGREE) + runs * EXACT)


def _least_squares(
    p: Problem, start: Float[Array, " p"], floor: float | None
) -> Float[Array, " p"]:
    lower, upper = solver.bounds(p)
    free = np.arange(p.parameters) >= (0 if floor is None else 1)

    def whole(free_values):
        theta = start.copy()
        theta[free] = free_values
        return theta[None]

    def weighted_huber(
        z,
    ):  # scipy's rho of (r / delta)^2 with its two derivatives, each run's times its weight
        root = np.sqrt(np.maximum(z, 1))
        return p.weights * np.array(
            [np.where(z <= 1, z, 2 * root - 1), 1 / root, np.where(z <= 1, 0, -0.5 / root**3)]
        )

    span = upper - lower
    inside = np.clip(start, lower + 1e-6 * span, upper - 1e-6 * span)
    result = optimize.least_squares(
        lambda v: solver.residuals(p, whole(v))[0],
        inside[free],
        jac=lambda v: -solver.log_jacobian(whole(v), p.logx)[0][:, free],  # type: ignore[arg-type]
        bounds=(lower[free], upper[free]),
        loss=weighted_huber,  # type: ignore[arg-type]
        f_scale=float(p.delta[0]),
        x_scale="jac",
        ftol=1e-10,
        xtol=1e-10,
        gtol=1e-14,
        max_nfev=200,
    )
    return whole(result.x)[0]


def variable_projection(p: Problem, floor: float | None = None) -> tuple[Float[Array, " p"], float]:
    """The law by search over the exponents alone: for each, E and the amplitudes are solved for.

    A logarithmic grid of exponents, then finer grids around the best: no start to be lucky with.
    """
    terms_count = p.logx.shape[1]
    count = 60 if terms_count == 1 else 16
    axes = [np.geomspace(0.003, 3.0, count)] * terms_count
    held = np.zeros(p.parameters, bool)
    held[2::2] = True
    held[0] = floor is not None
    first = starts(p, floor, exponents=(0.3,), shares=(0.5,))[0]
    best, cost = first, np.inf
    for zoom in range(4):
        exponents = np.array(list(itertools.product(*axes)))
        rows = np.tile(first if zoom == 0 else best, (len(exponents), 1))
        rows[:, 2::2] = exponents
        ends, costs = solver.solve(p, rows, held, iterations=60, tolerance=1e-7)
        if costs.min() < cost:
            best, cost = ends[np.argmin(costs)], costs.min()
        ratio = (axes[0][1] / axes[0][0]) ** 1.5
        count = 15 if terms_count == 1 else 7
        axes = [np.geomspace(alpha / ratio, alpha * ratio, count) for alpha in best[2::2]]
    held[2::2] = False
    end, end_cost = solver.solve(p, best[None], held)
    return end[0], float(end_cost[0])
