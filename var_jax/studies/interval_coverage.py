"""Measures how often each method's 95 % intervals contain the true value, and how wide they are.

Many synthetic sweeps of known laws are fitted by every method. `python -m
var_jax.studies.interval_coverage` prints the tables of docs/results/interval_coverage.md; with
`--resampled 0` only those of the profiles, in a quarter of an hour on one core. Widths are those of
the fitted parameters: E, log amplitudes and exponents.
"""

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from var_jax.scaling import analysis, frontier, intervals, laws, select_runs, solver, table
from var_jax.scaling.solver import Array

RESAMPLES = 500
REPORTED, TEXTBOOK, UNBIASED = (
    "profile, F (reported)",
    "profile, chi-square",
    "profile, chi-square, RSS/(n-p)",
)
METHODS = (REPORTED, TEXTBOOK, UNBIASED, "bootstrap over runs", "BCa")


@dataclasses.dataclass(frozen=True)
class Planted:
    """A known law, and how its synthetic sweeps are drawn.

    Attributes:
      theta: [E, log A, alpha(, log B, beta)].
      low, high: range of each input, over which runs are evenly spaced in the logarithm.
      shapes: grids (number of runs per input) from which that of each sweep is drawn.
      noise: standard deviation of log loss.
    """

    name: str
    theta: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    shapes: tuple[tuple[int, ...], ...]
    noise: float

    def draw(self, random: np.random.Generator) -> solver.Problem:
        """Draws a synthetic sweep."""
        shape = self.shapes[random.integers(len(self.shapes))]
        axes = [
            np.geomspace(low, high, n)
            for low, high, n in zip(self.low, self.high, shape, strict=True)
        ]
        x = np.stack([axis.ravel() for axis in np.meshgrid(*axes)], axis=1)
        exact = solver.predict(np.array([self.theta]), np.log(x))[0]
        return solver.problem(
            x, exact * np.exp(self.noise * random.normal(size=len(x))), laws.DELTA
        )


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


@dataclasses.dataclass(frozen=True)
class PlantedFrontier(Planted):
    """A joint law whose compute-optimal frontier is fitted.

    Runs cost 6 N D FLOPs, so losses at the optimum fall as compute to the power
    -alpha beta / (alpha + beta).
    """

    def draw(self, random: np.random.Generator) -> select_runs.Sample:
        """Draws a synthetic sweep and returns the points of its frontier."""
        p = super().draw(random)
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
        price = frontier.Cost(float(np.log(6)), 1.0, 0.0)
        theta = np.array([self.theta])
        best = np.concatenate([frontier.optimum(theta, price, budget) for budget in budgets])
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


def reference(
    p: solver.Problem, likelihood: intervals.Likelihood, *, unbiased: bool = False
) -> Float[Array, "p 2"]:
    """Returns intervals by the textbook's profile likelihood: normal noise, chi-square quantile.

    Args:
      unbiased: whether the noise variance is RSS/(n - p) and taken as known, rather than unknown
        and profiled (RSS/n).
    """
    problem = dataclasses.replace(likelihood.problem, delta=np.full_like(p.delta, np.inf))
    ends, costs = solver.solve(problem, likelihood.theta[None], likelihood.held)
    quantile = stats.chi2.ppf(intervals.LEVEL, 1)
    runs = float(p.weights.sum())
    allowed = costs[0] * (quantile / likelihood.freedom if unbiased else np.expm1(quantile / runs))
    profiled = dataclasses.replace(
        likelihood, problem=problem, theta=ends[0], cost=costs[0], allowed=allowed
    )
    return intervals.profile(profiled, intervals.EQUAL_TAILS)


def bca(
    p: solver.Problem, theta: Float[Array, " p"], samples: Float[Array, "r p"]
) -> Float[Array, "p 2"]:
    """Returns the bias-corrected and accelerated bootstrap intervals (Efron 1987).

    The acceleration is that of the jackknife over runs. scipy's `bootstrap(method="BCa")` evaluates
    the statistic on one sample at a time; here all refits are one batch.
    """
    count = len(p.logx)
    left_out = intervals.refits(p, theta, p.weights * (1 - np.eye(count)))
    gap = left_out.mean(axis=0) - left_out
    spread = np.sum(gap**2, axis=0)
    acceleration = np.sum(gap**3, axis=0) / (6 * np.maximum(spread, 1e-300) ** 1.5)
    below = np.mean(samples < theta, axis=0) + np.mean(samples == theta, axis=0) / 2
    bias = stats.norm.ppf(np.clip(below, 0.5 / len(samples), 1 - 0.5 / len(samples)))
    z = bias + stats.norm.ppf([[(1 - intervals.LEVEL) / 2], [(1 + intervals.LEVEL) / 2]])
    levels = stats.norm.cdf(bias + z / (1 - acceleration * z))
    levels = np.nan_to_num(levels, nan=0.5)
    values = laws.with_amplitudes(samples)
    return np.array([np.quantile(values[:, i], levels[:, i]) for i in range(values.shape[1])])


def study(planted: Planted, sweeps: int, resampled: int, seed: Sequence[int]) -> list[str]:
    """Returns the table's rows for one planted law.

    Args:
      sweeps: number of synthetic sweeps.
      resampled: number of sweeps, from the first, for which the bootstrap and BCa are computed.
      seed: seed of the noise.
    """
    truth = laws.with_amplitudes(
        planted.truth if isinstance(planted, PlantedFrontier) else np.array(planted.theta)
    )
    limits: dict[str, list[Array]] = {name: [] for name in METHODS}
    values, efficient = [], []
    for sweep in range(sweeps):
        sample = planted.draw(np.random.default_rng([*seed, sweep]))
        p = (
            analysis.problem(sample, laws.DELTA)
            if isinstance(sample, select_runs.Sample)
            else sample
        )
        fit = laws.fit(p)
        likelihood = intervals.likelihood(p, fit.theta)
        limits[REPORTED].append(intervals.profile(likelihood))
        limits[TEXTBOOK].append(reference(p, likelihood))
        limits[UNBIASED].append(reference(p, likelihood, unbiased=True))
        values.append(laws.with_amplitudes(fit.theta))
        efficient.append(laws.with_amplitudes(laws.shift(likelihood.theta, likelihood.mean)))
        if sweep >= resampled:
            continue
        if isinstance(sample, select_runs.Sample):
            bootstrap_laws = analysis.bootstrap_samples(sample, p, fit, None, RESAMPLES)
            if bootstrap_laws is not None:
                limits["bootstrap over runs"].append(intervals.percentile(bootstrap_laws))
        else:
            bootstrap_laws = intervals.bootstrap(p, fit.theta, RESAMPLES, seed=sweep)
            limits["bootstrap over runs"].append(intervals.percentile(bootstrap_laws))
            limits["BCa"].append(bca(p, fit.theta, bootstrap_laws))
    names = laws.NAMES[len(truth) // 2]
    exponents = [i for i, name in enumerate(names) if name in ("alpha", "beta")]
    for label, estimates in (("reported value", values), ("the interval's own", efficient)):
        errors = np.array(estimates) - truth
        parts = []
        for i in exponents:
            bias, standard_error = errors[:, i].mean(), errors[:, i].std() / sweeps**0.5
            rms = np.mean(errors[:, i] ** 2) ** 0.5
            parts.append(f"{names[i]} bias {bias:+.4f} +- {standard_error:.4f}, rms {rms:.4f}")
        print(f"{planted.name}, {label}: {', '.join(parts)}", flush=True)
    return [
        _row(
            planted.name,
            name,
            truth,
            np.array(rows),
            np.array(limits[TEXTBOOK]),
            np.array(limits[UNBIASED]),
        )
        for name, rows in limits.items()
        if rows
    ]


def _row(
    title: str,
    method: str,
    truth: Float[Array, " p"],
    rows: Float[Array, "s p 2"],
    textbook: Float[Array, "s p 2"],
    unbiased: Float[Array, "s p 2"],
) -> str:
    names = laws.NAMES[len(truth) // 2]
    inside = np.mean((rows[..., 0] <= truth) & (truth <= rows[..., 1]), axis=0)
    cells = [", ".join(f"{n} {share:.1%}" for n, share in zip(names, inside, strict=True))]
    for other in (textbook, unbiased):
        ratios = widths(rows) / widths(other[: len(rows)])  # over the same sweeps
        cells.append(", ".join(f"{n} {ratio:.2f}" for n, ratio in zip(names, ratios, strict=True)))
    return f"| {title} | {method} | {len(rows)} | " + " | ".join(cells) + " |"


def widths(rows: Float[Array, "s p 2"]) -> Float[Array, " p"]:
    """Returns the median widths of the intervals of [E, log A, alpha, ...]."""
    ends = np.array(rows)
    ends[:, 1::2] = np.log(np.maximum(ends[:, 1::2], solver.TINY))
    return np.median(ends[..., 1] - ends[..., 0], axis=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=200)
    parser.add_argument(
        "--resampled", type=int, default=200, help="sweeps for which bootstrap and BCa are drawn"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="studies whose name contains this")
    args = parser.parse_args()
    print(
        "| planted law | interval | sweeps | truth inside the 95 % interval | "
        "median width over chi-square profile's, RSS/n | RSS/(n-p) |\n|---|---|---|---|---|---|"
    )
    # The index of a study seeds its noise, so that no two studies use the same draws.
    for index, planted in enumerate((*STUDIES, *FRONTIERS)):
        if args.only in planted.name:
            print(
                "\n".join(study(planted, args.sweeps, args.resampled, (args.seed, index))),
                flush=True,
            )


if __name__ == "__main__":
    main()
