"""Measures what chosen next runs gain over equally spaced ones of the same cost, by simulation.

`python -m var_jax.studies.next_runs_gain` plants a joint law at 30 runs with 0.5 % noise, lets
`next_runs` choose up to 12 more for a prediction at ten times the compute, and refits 400 noisy
sweeps with the chosen runs, with equally spaced ones and with none. It prints the standard
deviations of the prediction over that without new runs.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from var_jax.scaling import analysis, frontier, laws, losses, next_runs, select_runs, solver, table
from var_jax.scaling.solver import Array
from var_jax.studies.planted_laws import Planted

LAW = (1.82, float(np.log(478)), 0.347, float(np.log(2143)), 0.367)
COST = frontier.Cost(float(np.log(6)), 1.0, 0.0)
NOISE = 0.005
PLANTED = Planted("", LAW, (3e7, 6e8), (3e9, 6e10), ((6, 5),), NOISE)
BUDGET = 1e21  # FLOPs of all new runs
AHEAD = 10  # the prediction's compute over the largest run's
SWEEPS = 400


class Gain(NamedTuple):
    """Standard deviations of the prediction over that without new runs.

    Attributes:
      chosen: with the chosen runs.
      spaced: with as many runs of equal cost at evenly spaced sizes.
      promised: the standard error's ratio that `next_runs` states.
      runs: number of new runs.
      compute: FLOPs of the chosen ones.
    """

    chosen: float
    spaced: float
    promised: float
    runs: int
    compute: float


def planted_law() -> analysis.Law:
    """Returns the joint law that is fitted to one noisy sweep."""
    p = PLANTED.draw(np.random.default_rng(1))
    records = [
        {"run": f"r{i}", "params": size, "tokens": tokens, "loss": loss}
        for i, ((size, tokens), loss) in enumerate(zip(np.exp(p.logx), np.exp(p.logy), strict=True))
    ]
    sample = select_runs.sample(table.build(records), "loss", ("params", "tokens"))
    return analysis.analyze("loss~params+tokens", sample, resamples=0)


def spread(x: Float[Array, "n 2"], target: Float[Array, "2"]) -> float:
    """Returns the standard deviation of the predicted log loss over noisy sweeps of runs x."""
    exact = np.log(solver.predict(np.array([LAW]), np.log(x))[0])
    noise = NOISE * np.random.default_rng(0).normal(size=(SWEEPS, len(x)))
    p = solver.Problem(np.log(x), exact + noise, np.ones(len(x)), losses.StudentT())
    centered, mean = laws.center(p)
    start = np.tile(laws.shift(np.array(LAW), -mean), (SWEEPS, 1))
    theta, _ = solver.solve(centered, start, np.zeros(5, bool))
    return float(np.log(solver.predict(theta, np.log(target)[None] - mean)[:, 0]).std())


def gain(law: analysis.Law) -> Gain:
    """Returns what runs that are chosen for a law gain, and what equally spaced ones do."""
    sizes, tokens = law.sample.x.T
    compute = AHEAD * 6 * sizes.max() * tokens.max()
    target = frontier.optimum(law.fit.theta[None], COST, compute)[0]
    runs = next_runs.next_runs(law, COST, BUDGET, target)
    spaced = np.geomspace(sizes.min(), sizes.max(), len(runs.x))
    equal = np.stack([spaced, runs.compute.sum() / len(spaced) / 6 / spaced], axis=1)
    before = spread(law.sample.x, target)
    return Gain(
        spread(np.concatenate([law.sample.x, runs.x]), target) / before,
        spread(np.concatenate([law.sample.x, equal]), target) / before,
        runs.narrower,
        len(runs.x),
        float(runs.compute.sum()),
    )


def main():
    """Prints the gains."""
    result = gain(planted_law())
    print(f"{result.runs} chosen runs: {result.chosen:.2f} (promised {result.promised:.2f})")
    print(f"{result.runs} equally spaced runs of the same cost: {result.spaced:.2f}")


if __name__ == "__main__":
    main()
