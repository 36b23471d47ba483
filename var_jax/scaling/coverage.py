"""Do the intervals hold what they promise? Planted laws, many synthetic sweeps, every method side by side.

`python -m var_jax.scaling.coverage` prints the tables of docs/scaling.md (a quarter of an hour on one core).
"""

import argparse
import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import stats

from var_jax.scaling import intervals, laws, solver
from var_jax.scaling.solver import Array

RESAMPLES = 500


@dataclasses.dataclass(frozen=True)
class Planted:
    """A law, its sweeps' sizes and their noise.

    Attributes:
      theta: [E, log A, alpha(, log B, beta)].
      low, high: range of each input; runs are evenly spaced on its logarithm.
      shapes: grids (runs an input) that a sweep's is drawn from.
      noise: standard deviation of log loss.
    """

    name: str
    theta: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    shapes: tuple[tuple[int, ...], ...]
    noise: float

    def draw(self, random: np.random.Generator) -> solver.Problem:
        shape = self.shapes[random.integers(len(self.shapes))]
        axes = [np.geomspace(low, high, n) for low, high, n in zip(self.low, self.high, shape, strict=True)]
        x = np.stack([axis.ravel() for axis in np.meshgrid(*axes)], axis=1)
        exact = solver.predict(np.array([self.theta]), np.log(x))[0]
        return solver.problem(x, exact * np.exp(self.noise * random.normal(size=len(x))), laws.DELTA)


SINGLE = tuple((n,) for n in range(8, 13))
GRIDS = ((6, 4), (5, 5), (7, 4), (6, 5), (8, 4), (7, 5), (6, 6), (8, 5))
VAR_LAST = (4.5, float(np.log(2e-9) * -0.23), 0.23)  # facts of VAR, section 4.2: (2.0 N/1e9)^-0.23 above about 4.5
STUDIES = (
    Planted("E + A x^-alpha, 0.1 % noise", (1.8, np.log(400), 0.34), (2e7,), (2e9,), SINGLE, 0.001),
    Planted("E + A x^-alpha, 0.5 % noise", (1.8, np.log(400), 0.34), (2e7,), (2e9,), SINGLE, 0.005),
    Planted("E + A x^-alpha, 1.5 decades, 0.5 % noise", (3.0, np.log(60), 0.25), (3e7,), (1e9,), SINGLE, 0.005),
    Planted("VAR's L_last(N), 0.2 % noise", VAR_LAST, (18.5e6,), (2.0e9,), SINGLE, 0.002),
    Planted("joint law, 0.2 % noise", (1.82, np.log(478), 0.347, np.log(2143), 0.367), (3e7, 6e8), (3e9, 6e10), GRIDS,
            0.002),
    Planted("joint law, 1 % noise", (1.82, np.log(478), 0.347, np.log(2143), 0.367), (3e7, 6e8), (3e9, 6e10), GRIDS,
            0.01),
)


def reference(p: solver.Problem, like: intervals.Likelihood) -> Float[Array, "p 2"]:
    """The textbook's profile likelihood: normal noise of unknown variance, the chi-square quantile."""
    problem = dataclasses.replace(like.problem, delta=np.full_like(p.delta, np.inf))
    ends, costs = solver.solve(problem, like.theta[None], like.held)
    runs = len(p.logx)
    allowed = costs[0] * np.expm1(stats.chi2.ppf(intervals.LEVEL, 1) / runs)
    return intervals.profile(dataclasses.replace(like, problem=problem, theta=ends[0], cost=costs[0], allowed=allowed))


def study(planted: Planted, sweeps: int, seed: int) -> list[str]:
    """Rows of the table."""
    truth = laws.natural(np.array(planted.theta))
    limits = {name: [] for name in ("profile, F (reported)", "profile, chi-square", "bootstrap over runs", "BCa")}
    values, efficient = [], []
    for sweep in range(sweeps):
        p = planted.draw(np.random.default_rng([seed, sweep]))
        fit = laws.fit(p)
        like = intervals.likelihood(p, fit.theta)
        samples = intervals.bootstrap(p, fit.theta, RESAMPLES, seed=sweep)
        for name, found in zip(limits, (intervals.profile(like), reference(p, like), intervals.percentile(samples),
                                        intervals.bca(p, fit.theta, samples)), strict=True):
            limits[name].append(found)
        values.append(laws.natural(fit.theta))
        efficient.append(laws.natural(laws.shift(like.theta, like.mean)))
    names = laws.NAMES[len(truth) // 2]
    exponents = [i for i, name in enumerate(names) if name in ("alpha", "beta")]
    for label, found in (("reported value", values), ("the interval's own", efficient)):
        errors = np.array(found) - truth
        print(f"{planted.name}, {label}: " + ", ".join(
            f"{names[i]} bias {errors[:, i].mean():+.4f} +- {errors[:, i].std() / sweeps**0.5:.4f}, "
            f"rms {np.mean(errors[:, i] ** 2) ** 0.5:.4f}" for i in exponents), flush=True)
    widths: dict[str, Array] = {}
    for name, rows in limits.items():
        widths[name] = np.median(np.array(rows)[..., 1] - np.array(rows)[..., 0], axis=0)
    lines = []
    for name, rows in limits.items():
        inside = np.mean((np.array(rows)[..., 0] <= truth) & (truth <= np.array(rows)[..., 1]), axis=0)
        ratio = widths[name] / widths["profile, chi-square"]
        lines.append(f"| {planted.name} | {name} | " + ", ".join(
            f"{n} {share:.1%}" for n, share in zip(names, inside, strict=True)) + " | " + ", ".join(
            f"{n} {r:.2f}" for n, r in zip(names, ratio, strict=True)) + " |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="studies whose name contains this")
    args = parser.parse_args()
    chosen = [planted for planted in STUDIES if args.only in planted.name]
    tables = [study(planted, args.sweeps, args.seed) for planted in chosen]
    print("\n| planted law | interval | truth inside the 95 % interval | median width over chi-square profile's |")
    print("|---|---|---|---|")
    print("\n".join(line for table in tables for line in table))


if __name__ == "__main__":
    main()
