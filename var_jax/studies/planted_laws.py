"""Known laws, and synthetic sweeps of them with clean and with dirty noise."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from var_jax.scaling import frontier, losses, select_runs, solver, table
from var_jax.scaling.solver import Array

COST = frontier.Cost(float(np.log(6)), 1.0, 0.0)  # runs cost 6 N D FLOPs
OUTLIER_SHARE = 0.02
OUTLIER_SIZE = 20.0  # standard deviations of the other runs
SPREAD = 4.0  # standard deviation of the smallest size's noise over the largest size's
SHARED = 0.5  # fraction of the variance that runs of one size have in common
# Log loss at the corners of the grid that a sum of powers has no room for: as much as the noise,
# and as much as the joint law of docs/results/scaling_fashion_long misses.
INTERACTION, LARGE_INTERACTION = 0.005, 0.05


class Noise(NamedTuple):
    """Noise of log losses.

    Attributes:
      errors: the noise of each run.
      information: Fisher information matrix of the log losses, given the noise's distribution.
    """

    errors: Float[Array, " n"]
    information: Float[Array, "n n"]


def normal(logx: Float[Array, "n j"], scale: float, rng: np.random.Generator) -> Noise:
    """Returns independent normal noise with the standard deviation `scale` in every run."""
    return Noise(scale * rng.normal(size=len(logx)), np.eye(len(logx)) / scale**2)


def student_2(logx: Float[Array, "n j"], scale: float, rng: np.random.Generator) -> Noise:
    """Returns Student's t noise with 2 degrees of freedom, whose variance is infinite."""
    return _student(2, len(logx), scale, rng)


def student_4(logx: Float[Array, "n j"], scale: float, rng: np.random.Generator) -> Noise:
    """Returns Student's t noise with 4 degrees of freedom."""
    return _student(4, len(logx), scale, rng)


def _student(degrees: float, runs: int, scale: float, rng: np.random.Generator) -> Noise:
    information = (degrees + 1) / (degrees + 3) / scale**2
    errors = scale * rng.standard_t(degrees, size=runs)
    return Noise(errors, information * np.eye(runs))


def outliers(logx: Float[Array, "n j"], scale: float, rng: np.random.Generator) -> Noise:
    """Returns normal noise with gross outliers; the information counts only the other runs."""
    runs = len(logx)
    is_outlier = rng.random(runs) < OUTLIER_SHARE
    signs = rng.choice([-1.0, 1.0], size=runs)
    errors = np.where(is_outlier, OUTLIER_SIZE * signs, rng.normal(size=runs))
    return Noise(scale * errors, np.diag(~is_outlier / scale**2))


def heteroscedastic(
    logx: Float[Array, "n j"], scale: float, rng: np.random.Generator, spread: float = SPREAD
) -> Noise:
    """Returns normal noise whose standard deviation falls with the first input as a power.

    Args:
      spread: standard deviation at the smallest size over that at the largest.
    """
    sizes = logx[:, 0]
    place = (sizes - sizes.min()) / np.ptp(sizes)
    deviations = scale * spread ** (0.5 - place)
    return Noise(deviations * rng.normal(size=len(logx)), np.diag(deviations**-2))


def correlated(
    logx: Float[Array, "n j"], scale: float, rng: np.random.Generator, shared: float = SHARED
) -> Noise:
    """Returns normal noise with a part that runs of one size share, like branches of a trunk.

    Args:
      shared: that part's fraction of the variance.
    """
    _, size = np.unique(logx[:, 0], return_inverse=True)
    common = rng.normal(size=size.max() + 1)[size]
    errors = shared**0.5 * common + (1 - shared) ** 0.5 * rng.normal(size=len(logx))
    covariance = shared * (size[:, None] == size) + (1 - shared) * np.eye(len(logx))
    return Noise(scale * errors, np.linalg.inv(covariance) / scale**2)


def wrong_form(logx: Float[Array, "n j"], scale: float, rng: np.random.Generator) -> Noise:
    """Returns normal noise plus a product of both inputs' logarithms, which is no sum of powers."""
    return _with_interaction(INTERACTION, logx, scale, rng)


def very_wrong_form(logx: Float[Array, "n j"], scale: float, rng: np.random.Generator) -> Noise:
    """Returns the same with the larger product that a real sweep shows."""
    return _with_interaction(LARGE_INTERACTION, logx, scale, rng)


def _with_interaction(
    size: float, logx: Float[Array, "n j"], scale: float, rng: np.random.Generator
) -> Noise:
    middle = (logx.max(axis=0) + logx.min(axis=0)) / 2
    place = 2 * (logx - middle) / np.ptp(logx, axis=0)
    clean = normal(logx, scale, rng)
    return clean._replace(errors=clean.errors + size * place.prod(axis=1))


@dataclasses.dataclass(frozen=True)
class Planted:
    """A known law, and how its synthetic sweeps are drawn.

    Attributes:
      theta: [E, log A, alpha(, log B, beta)].
      low, high: range of each input, over which runs are evenly spaced in the logarithm.
      shapes: grids (number of runs per input) from which that of each sweep is drawn.
      noise: standard deviation of log loss, or the scale of its distribution.
      kind: draws the noise.
    """

    name: str
    theta: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    shapes: tuple[tuple[int, ...], ...]
    noise: float
    kind: Callable[[Array, float, np.random.Generator], Noise] = normal

    def draw(self, rng: np.random.Generator) -> solver.Problem:
        """Draws a synthetic sweep, to be fitted by the likelihood of normal noise."""
        return self.draw_with_information(rng).problem

    def draw_with_information(self, rng: np.random.Generator) -> "Sweep":
        """Draws a synthetic sweep, with the Fisher information of its losses."""
        shape = self.shapes[rng.integers(len(self.shapes))]
        axes = [
            np.geomspace(low, high, n)
            for low, high, n in zip(self.low, self.high, shape, strict=True)
        ]
        x = np.stack([axis.ravel() for axis in np.meshgrid(*axes)], axis=1)
        exact = solver.predict(np.array([self.theta]), np.log(x))[0]
        noise = self.kind(np.log(x), self.noise, rng)
        normal_noise = losses.StudentT(freedom=math.inf)
        p = solver.problem(x, exact * np.exp(noise.errors), normal_noise)
        return Sweep(p, noise.information)


class Sweep(NamedTuple):
    """A synthetic sweep.

    Attributes:
      problem: the law's fitting problem: inputs and losses.
      information: Fisher information matrix of the log losses, given the noise's distribution.
    """

    problem: solver.Problem
    information: Float[Array, "n n"]


SINGLE = tuple((n,) for n in range(8, 13))
GRIDS = ((6, 4), (5, 5), (7, 4), (6, 5), (8, 4), (7, 5), (6, 6), (8, 5))
# The law of VAR, section 4.2: (2.0 N/1e9)^-0.23 above an irreducible loss of about 4.5.
VAR_LAST = (4.5, float(np.log(2e-9) * -0.23), 0.23)
STUDIES = (
    Planted("E + A x^-alpha, 0.1 % noise", (1.8, np.log(400), 0.34), (2e7,), (2e9,), SINGLE, 0.001),
    Planted("E + A x^-alpha, 0.5 % noise", (1.8, np.log(400), 0.34), (2e7,), (2e9,), SINGLE, 0.005),
    Planted(
        "E + A x^-alpha, 1.5 decades, 0.5 % noise",
        (3.0, np.log(60), 0.25),
        (3e7,),
        (1e9,),
        SINGLE,
        0.005,
    ),
    Planted("VAR's L_last(N), 0.2 % noise", VAR_LAST, (18.5e6,), (2.0e9,), SINGLE, 0.002),
    Planted(
        "joint law, 0.2 % noise",
        (1.82, np.log(478), 0.347, np.log(2143), 0.367),
        (3e7, 6e8),
        (3e9, 6e10),
        GRIDS,
        0.002,
    ),
    Planted(
        "joint law, 1 % noise",
        (1.82, np.log(478), 0.347, np.log(2143), 0.367),
        (3e7, 6e8),
        (3e9, 6e10),
        GRIDS,
        0.01,
    ),
)


NOISE_KINDS = (normal, student_4, student_2, outliers, heteroscedastic)
# A law's index seeds its noise, so that further laws come last.
DIRTY = tuple(
    Planted(
        f"{runs} runs, {kind.__name__}",
        (1.8, float(np.log(400)), 0.34),
        (2e7,),
        (2e9,),
        ((runs,),),
        0.005,
        kind,
    )
    for runs in (10, 30, 120)
    for kind in NOISE_KINDS
) + tuple(
    Planted(
        f"joint law, {shape[0] * shape[1]} runs, {kind.__name__}",
        (1.82, float(np.log(478)), 0.347, float(np.log(2143)), 0.367),
        (3e7, 6e8),
        (3e9, 6e10),
        (shape,),
        0.005,
        kind,
    )
    for kinds in ((*NOISE_KINDS, correlated, wrong_form), (very_wrong_form,))
    for shape in ((4, 3), (6, 5), (12, 10))
    for kind in kinds
)

# Laws, run counts and noise on which no constant of the estimator was tuned. That growth of the
# noise is tried with few runs followed from a first look at them. The joint law is that of
# Hoffmann et al. 2022.
OTHER_NOISE = {
    "normal": normal,
    "noise differing 2 times": functools.partial(heteroscedastic, spread=2.0),
    "noise differing 8 times": functools.partial(heteroscedastic, spread=8.0),
}
OTHER_SHARED = {
    "a quarter shared": functools.partial(correlated, shared=0.25),
    "three quarters shared": functools.partial(correlated, shared=0.75),
}
HOFFMANN = (1.69, float(np.log(406.4)), 0.34, float(np.log(410.7)), 0.28)
UNSEEN = tuple(
    Planted(
        f"VAR's L_last(N), {runs} runs, {name}", VAR_LAST, (18.5e6,), (2e9,), ((runs,),), 2e-3, kind
    )
    for runs in (8, 12, 20)
    for name, kind in OTHER_NOISE.items()
) + tuple(
    Planted(
        f"Hoffmann's joint law, {shape[0]} x {shape[1]} runs, {name}",
        HOFFMANN,
        (7e7, 5e9),
        (1.6e10, 1e11),
        (shape,),
        0.005,
        kind,
    )
    for shape in ((4, 3), (6, 4), (7, 6))
    for name, kind in (OTHER_NOISE | OTHER_SHARED).items()
)


@dataclasses.dataclass(frozen=True)
class PlantedFrontier(Planted):
    """A joint law whose compute-optimal frontier is fitted.

    Runs cost 6 N D FLOPs, so losses at the optimum fall as compute to the power
    -alpha beta / (alpha + beta).
    """

    def draw(self, rng: np.random.Generator) -> select_runs.Sample:
        """Draws a synthetic sweep and returns the points of its frontier."""
        return self.envelope(super().draw(rng))

    def draw_runs(self, rng: np.random.Generator) -> solver.Problem:
        """Draws a synthetic sweep and returns its runs, as the joint law's problem."""
        return super().draw(rng)

    @staticmethod
    def envelope(p: solver.Problem) -> select_runs.Sample:
        """Returns the points of the frontier of a sweep's runs."""
        x, y = np.exp(p.logx), np.exp(p.logy)
        rows = [
            {
                "run": f"{n:.4g} {d:.4g}",
                "params": n,
                "tokens": d,
                "compute": 6 * n * d,
                "loss": loss,
            }
            for (n, d), loss in zip(x, y, strict=True)
        ]
        return select_runs.sample(table.build(rows), "loss", ("compute",))

    @property
    def truth(self) -> Float[Array, " p"]:
        """[E, log A, alpha] of the frontier."""
        e, log_a, alpha, log_b, beta = self.theta
        low, high = np.log(self.low).sum() + np.log(6), np.log(self.high).sum() + np.log(6)
        budgets = np.exp(np.array([low, high]))
        theta = np.array([self.theta])
        best = np.concatenate([frontier.optimum(theta, COST, budget) for budget in budgets])
        logs = np.log(solver.predict(theta, np.log(best))[0] - e)
        exponent = alpha * beta / (alpha + beta)
        return np.array([e, logs[0] + exponent * low, exponent])


FRONTIERS = tuple(
    PlantedFrontier(
        f"frontier of a joint law, {noise:.1%} noise".replace("%", " %"),
        (1.82, float(np.log(478)), 0.347, float(np.log(2143)), 0.367),
        (3e7, 6e8),
        (3e9, 6e10),
        ((7, 4), (6, 6), (8, 5), (8, 6)),
        noise,
    )
    for noise in (0.002, 0.01)
)
