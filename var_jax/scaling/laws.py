"""Fits the scaling laws E + A x^-alpha and E + A N^-alpha + B D^-beta.

Two independent methods must agree: descent from many starting points, and variable projection,
which searches the exponents on a grid and needs no starting point.

Source: Hoffmann et al. 2022, appendix D.3; VAR, section 4.2.
"""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Float

from var_jax.scaling import losses, solver
from var_jax.scaling.solver import Array, Problem
from var_jax.scaling.whitening import Whitening

DELTA = 1e-3  # Huber constant of Hoffmann et al.; it makes nearly a least-absolute-error fit
# A descent on Huber's loss passes these constants first: the loss is nearly quadratic at the first,
# and each is an approximation of the next, whose kinks would stop a descent from far away.
WIDER_DELTAS = (1.0, 0.1, 0.01)
PARAMETER_NAMES = {1: ("E", "A", "alpha"), 2: ("E", "A", "alpha", "B", "beta")}
FORMS = {1: "E + A * x**-alpha", 2: "E + A * N**-alpha + B * D**-beta"}


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
      theta: [E, log A, alpha(, log B, beta)] in the raw units of x.
      cost: the objective at `theta`.
      starts_agreeing: fraction of the starts that converged to the best optimum.
      projected: the objective that variable projection reached, for comparison with `cost`; NaN
        if it was left out.
      loss: the loss that `theta` minimizes.
      whitening: what it minimizes that loss of, if not of residuals as they are.
    """

    theta: Float[Array, " p"]
    cost: float
    starts_agreeing: float
    projected: float
    loss: losses.Loss
    whitening: Whitening | None = None

    @property
    def values(self) -> dict[str, float]:
        """The law's parameters by name, with amplitudes instead of their logarithms."""
        return dict(
            zip(PARAMETER_NAMES[len(self.theta) // 2], with_amplitudes(self.theta), strict=True)
        )

    @property
    def is_shared(self) -> bool:
        """Whether runs of one size share noise, under the objective that `theta` minimizes."""
        return self.whitening is not None and self.whitening.is_shared

    def objective(self, p: Problem) -> Problem:
        """Returns the problem of the same runs whose objective `theta` minimizes."""
        return dataclasses.replace(p, loss=self.loss, whitening=self.whitening)

    def predict(self, x: Float[Array, "n j"]) -> Float[Array, " n"]:
        """Returns the loss that the law predicts at the inputs x (raw units, not logs)."""
        return solver.predict(self.theta[None], np.log(x))[0]


def with_amplitudes(theta: Float[Array, "*r p"]) -> Float[Array, "*r p"]:
    """Converts [E, log A, alpha, ...] to [E, A, alpha, ...]."""
    out = np.array(theta, float)
    out[..., 1::2] = np.exp(np.clip(out[..., 1::2], -700, 700))
    return out


def center(p: Problem) -> tuple[Problem, Float[Array, " j"]]:
    """Returns the problem with log x centered at zero, and the mean that was subtracted.

    Amplitude and exponent hardly correlate there, which makes the fit well conditioned.
    """
    mean = p.logx.mean(axis=0)
    return dataclasses.replace(p, logx=p.logx - mean), mean


def shift(theta: Float[Array, "*r p"], by: Float[Array, " j"]) -> Float[Array, "*r p"]:
    """Returns the parameters of the same laws when log x is larger by `by`.

    With the mean that `center` returns, this takes parameters of a centered problem to raw units.
    """
    out = np.array(theta, float)
    out[..., 1::2] += out[..., 2::2] * by
    return out


def starts(
    p: Problem, floor: float | None, exponents=(0.02, 0.1, 0.3, 0.8), shares=(0.0, 0.5, 0.9)
) -> Float[Array, "r p"]:
    """Returns starting points on a grid of exponents and values of E.

    The amplitudes are such that each law passes through the mean log loss.

    Args:
      floor: a fixed E, or None.
      exponents: the exponents of the grid.
      shares: values of E when it is not fixed, as fractions of the smallest loss.
    """
    num_terms = p.logx.shape[1]
    smallest, typical = np.exp(p.logy.min()), np.exp(np.average(p.logy, weights=p.weights))
    floors = [floor] if floor is not None else [share * smallest for share in shares]
    rows = []
    for e, alphas in itertools.product(floors, itertools.product(exponents, repeat=num_terms)):
        a = np.log(max(typical - e, 1e-3 * typical) / num_terms)
        rows.append([e, *itertools.chain.from_iterable((a, alpha) for alpha in alphas)])
    return np.array(rows)


def fit(
    p: Problem,
    floor: float | None = None,
    num_starts: int = 12,
    near: Float[Array, "r p"] | None = None,
    *,
    check: bool = True,
) -> Fit:
    """Fits a law to the losses of a problem.

    Args:
      p: the problem in raw units (not centered), without a batch axis.
      floor: a fixed value of E, or None to fit it; 0 makes a pure power law.
      num_starts: number of starting points, spread evenly over the grid.
      near: further laws to start from, in raw units.
      check: whether variable projection, which takes most of the time, checks the optimum.
    """
    centered, mean = center(p)
    grid = starts(centered, floor)
    chosen = grid[np.unique(np.linspace(0, len(grid) - 1, num_starts).astype(int))]
    held = np.arange(p.parameters) < (floor is not None)
    if isinstance(p.loss, losses.Huber):
        for delta in WIDER_DELTAS:
            wider = dataclasses.replace(centered, loss=losses.Huber(max(delta, p.loss.delta)))
            chosen, _ = solver.solve(wider, chosen, held, iterations=100, tolerance=1e-4)
    if near is not None:
        chosen = np.concatenate([chosen, shift(near, -mean)])
    ends, costs = solver.solve(centered, chosen, held, tolerance=1e-8)
    # Only the best one is worth all digits.
    (best,), (cost,) = solver.solve(centered, ends[[int(np.argmin(costs))]], held)
    agreeing = float(np.mean([p.loss.same(end, cost, len(p.logy)) for end in costs]))
    result = Fit(shift(best, mean), float(cost), agreeing, np.nan, p.loss, p.whitening)
    return checked(p, result, floor) if check else result


def checked(p: Problem, fit: Fit, floor: float | None = None) -> Fit:
    """Returns the fit beside what variable projection reaches, whose law it takes if it is better.

    Args:
      p: the problem that was fitted, in raw units.
      floor: the fixed value of E, or None.
    """
    centered, mean = center(p)
    projected, cost = variable_projection(centered, floor)
    if cost < fit.cost:
        fit = dataclasses.replace(fit, theta=shift(projected, mean), cost=cost)
    return dataclasses.replace(fit, projected=cost)


def variable_projection(p: Problem, floor: float | None = None) -> tuple[Float[Array, " p"], float]:
    """Fits a law by a grid search over the exponents, and returns it with its objective.

    E (unless `floor` fixes it) and the amplitudes are solved for at each grid point. Finer grids
    follow around the best point of a coarse logarithmic one, and a last solve refines all free
    parameters together. No list of starting exponents is needed.

    Args:
      p: the problem; the law is returned in its units (centered if it is).
      floor: a fixed value of E, or None to fit it.
    """
    num_terms = p.logx.shape[1]
    count = 60 if num_terms == 1 else 16
    axes = [np.geomspace(0.003, 3.0, count)] * num_terms
    held = np.zeros(p.parameters, bool)
    held[2::2] = True
    held[0] = floor is not None
    first = starts(p, floor, exponents=(0.3,), shares=(0.5,))[0]
    best, cost = first, np.inf
    for zoom in range(4):
        exponents = np.array(list(itertools.product(*axes)))
        rows = np.tile(first if zoom == 0 else best, (len(exponents), 1))
        rows[:, 2::2] = exponents
        ends, costs = solver.solve(p, rows, held, iterations=60, tolerance=1e-4)
        if costs.min() < cost:
            best, cost = ends[np.argmin(costs)], costs.min()
        ratio = (axes[0][1] / axes[0][0]) ** 1.5
        count = 15 if num_terms == 1 else 7
        axes = [np.geomspace(alpha / ratio, alpha * ratio, count) for alpha in best[2::2]]
    held[2::2] = False
    end, end_cost = solver.solve(p, best[None], held)
    return end[0], float(end_cost[0])
