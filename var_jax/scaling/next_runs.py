"""Chooses the next runs of a sweep: those that narrow a prediction of its joint law most.

The variance of a prediction follows from the law's Jacobian at the runs, and from their noise as
the law has it: its growth for small runs, and the part that runs of one size share. Runs are added
one after another until the budget is spent, each time the one that takes most off that variance
for its price. How much the price counts is chosen so that the final variance is the smallest.
Settings that the table has are left out, as they would be the same runs again.

Source: Pukelsheim 2006, Optimal Design of Experiments (c-optimality).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from var_jax.errors import UserError
from var_jax.scaling import frontier, lack_of_fit, solver
from var_jax.scaling.analysis import Law
from var_jax.scaling.frontier import Cost
from var_jax.scaling.solver import Array

TOKEN_BUDGETS = 25  # token budgets of each size among which a run is chosen
FARTHER = 4.0  # longest proposed run in tokens over the longest of the table
MOST_RUNS = 12
AHEAD = 10.0
TARGETS = ({"compute"}, {"params", "tokens"})
FIRST_SEED = 100  # of the new runs; those of a sweep's own repetitions are small
COST_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)


class NextRuns(NamedTuple):
    """Proposed runs.

    Attributes:
      x: params and tokens of each.
      compute: training FLOPs of each.
      narrower: standard error of the prediction with these runs, over that without.
    """

    x: Float[Array, "k 2"]
    compute: Float[Array, " k"]
    narrower: float


def next_runs(law: Law, cost: Cost, budget: float, target: Float[Array, "2"]) -> NextRuns:
    """Returns the runs within a budget that narrow the prediction at `target` most.

    Sizes are those of the law's runs, of which configs exist; tokens go from the fewest of the
    runs to `FARTHER` times the most.

    Args:
      law: a joint law of params and tokens.
      budget: training FLOPs of all new runs together.
      target: params and tokens of the prediction.

    Raises:
      UserError: the budget does not pay for any run.
    """
    sizes, tokens = law.sample.x.T
    grid = np.geomspace(tokens.min(), FARTHER * tokens.max(), TOKEN_BUDGETS)
    candidates = np.array([[size, count] for size in np.unique(sizes) for count in grid])
    half_step = np.log(grid[1] / grid[0]) / 2
    distances = np.abs(np.log(candidates[:, None] / law.sample.x[None]))  # (candidates, runs, 2)
    is_there = ((distances[..., 0] < 1e-6) & (distances[..., 1] < half_step)).any(axis=1)
    candidates = candidates[~is_there]
    compute = cost.per_token(candidates[:, 0]) * candidates[:, 1]
    if not len(compute) or compute.min() > budget:
        raise UserError(
            f"--next {budget:g} does not pay for any run; the cheapest of these sizes that the "
            f"table does not have takes {compute.min(initial=np.inf):.3g} FLOPs"
        )
    mean, theta = law.likelihood.mean, law.likelihood.theta
    free = ~law.likelihood.held

    def slopes(x):
        return solver.log_jacobian(theta[None], np.log(x) - mean)[0][:, free]

    direction = slopes(target[None])[0]
    known = _Information.of_runs(law, slopes(law.sample.x))
    group = np.searchsorted(np.unique(sizes), candidates[:, 0])
    rows = known.scaled(slopes(candidates), np.log(candidates[:, 0]) - mean[0])
    designs = [
        _greedy(known, rows, group, direction, compute / budget, power) for power in COST_POWERS
    ]
    chosen, after = min(designs, key=lambda design: design[1])
    before = _variance(known.total()[None], direction)[0]
    return NextRuns(candidates[chosen], compute[chosen], float(np.sqrt(after / before)))


def plan(
    law: Law | None, cost: Cost | None, budget: float, predict: Sequence[Mapping[str, float]]
) -> dict:
    """Returns the next runs as an entry of fit.json.

    They narrow the first prediction that is asked for, or else that of the compute-optimal run of
    `AHEAD` times the table's largest compute.

    Args:
      law: the joint law of the first loss, or None if it is refused or not determined.
      predict: the inputs of the predictions, of params and tokens or of compute.

    Returns:
      The law, the target, the budget, the runs and what they narrow; "warnings" says if the law
      does not describe the runs that it was fitted to.

    Raises:
      UserError: there is no joint law, or the budget does not pay for any run.
    """
    if law is None or cost is None or cost.slope <= 0:
        raise UserError(
            "--next needs a determined joint law of params and tokens, and compute; run without "
            "--next to see why there is none"
        )
    sizes, tokens = law.sample.x.T
    target = {"compute": AHEAD * float((cost.per_token(sizes) * tokens).max())}
    target = next((dict(at) for at in predict if set(at) in TARGETS), target)
    if "compute" in target:
        x = frontier.optimum(law.fit.theta[None], cost, target["compute"])[0]
    else:
        x = np.array([target["params"], target["tokens"]])
    runs = next_runs(law, cost, budget, x)
    entries = []
    for (size, count), compute in zip(runs.x, runs.compute, strict=True):
        like = str(law.sample.run[int(np.argmin(np.abs(sizes - size)))])
        inputs = {"params": float(size), "tokens": float(count)}
        entries.append({"like": like, **inputs, "compute": float(compute)})
    head = {"law": law.key, "target": target, "budget": budget}
    warnings = []
    if lack_of_fit.is_misfit(law.summary):
        warnings.append(
            f"next-runs-of-misfit: {law.key} does not describe the runs (lack-of-fit), so that "
            "what these runs narrow is the prediction of a wrong law"
        )
    return {
        **head,
        "standard_error_ratio": runs.narrower,
        "warnings": warnings,
        "runs": entries,
    }


@dataclasses.dataclass(frozen=True)
class _Information:
    """What runs tell of a law's parameters, by size: their noise has a part that a size shares.

    Attributes:
      gram: sum over each size's runs of the products of their derivatives.
      total: sum of the derivatives.
      count: number of runs.
      share: fraction of the variance that runs of one size have in common.
      growth, deviation: how noise grows for small runs, as in `whitening.Whitening`.
      reach: smallest and largest log size of the runs, centered; beyond it noise stays.
    """

    gram: Float[Array, "g p p"]
    total_of_size: Float[Array, "g p"]
    count: Float[Array, " g"]
    share: float
    growth: float
    deviation: float
    reach: tuple[float, float]

    @classmethod
    def of_runs(cls, law: Law, slopes: Float[Array, "n p"]) -> "_Information":
        """Returns that of a law's own runs.

        Args:
          slopes: derivatives of their log losses by the fitted parameters.
        """
        maps = law.fit.whitening
        sizes = np.log(law.sample.x[:, 0]) - law.likelihood.mean[0]
        known, group = np.unique(law.sample.x[:, 0], return_inverse=True)
        groups, fitted = len(known), slopes.shape[1]
        empty = cls(
            np.zeros((groups, fitted, fitted)),
            np.zeros((groups, fitted)),
            np.zeros(groups),
            0.0 if maps is None else float(maps.share),
            0.0 if maps is None else float(maps.growth),
            1.0 if maps is None else maps.deviation,
            (sizes.min(), sizes.max()),
        )
        rows = empty.scaled(slopes, sizes) * np.sqrt(law.sample.weights)[:, None]
        for row, size in zip(rows, group, strict=True):
            empty = empty.with_run(row, size)
        return empty

    def scaled(self, slopes: Float[Array, "n p"], sizes: Float[Array, " n"]) -> Float[Array, "n p"]:
        """Returns derivatives over the standard deviation of their runs' noise.

        Args:
          sizes: centered log size of each run.
        """
        place = np.clip(sizes, *self.reach) / self.deviation
        return slopes * np.exp(self.growth * place)[:, None]

    def with_run(self, row: Float[Array, " p"], size: int) -> "_Information":
        """Returns that of one more run."""
        gram, total, count = self.gram.copy(), self.total_of_size.copy(), self.count.copy()
        gram[size] += np.outer(row, row)
        total[size] += row
        count[size] += 1
        return dataclasses.replace(self, gram=gram, total_of_size=total, count=count)

    def of_sizes(
        self,
        gram: Float[Array, "g p p"],
        total: Float[Array, "g p"],
        count: Float[Array, " g"],
    ) -> Float[Array, "g p p"]:
        """Returns the information of each size's runs, whose noise is independent of the others'.

        The covariance of n runs is share times ones plus (1 - share) times the identity, and its
        inverse that of Sherman and Morrison.
        """
        lost = self.share / (1 - self.share + self.share * count)
        return (gram - lost[:, None, None] * total[:, :, None] * total[:, None]) / (1 - self.share)

    def total(self) -> Float[Array, "p p"]:
        """Returns the information of all runs."""
        return self.of_sizes(self.gram, self.total_of_size, self.count).sum(axis=0)

    def with_each(
        self, rows: Float[Array, "c p"], group: Int[Array, " c"]
    ) -> Float[Array, "c p p"]:
        """Returns the information of all runs and one of several others."""
        gram = self.gram[group] + rows[:, :, None] * rows[:, None]
        new = self.of_sizes(gram, self.total_of_size[group] + rows, self.count[group] + 1)
        old = self.of_sizes(self.gram, self.total_of_size, self.count)
        return old.sum(axis=0) - old[group] + new


def _variance(
    information: Float[Array, "c p p"], direction: Float[Array, " p"]
) -> Float[Array, " c"]:
    """Returns a prediction's variance, in that of a run, for each of several informations."""
    return np.einsum("p,cpq,q->c", direction, np.linalg.pinv(information), direction)


def _greedy(
    known: _Information,
    rows: Float[Array, "c p"],
    group: Int[Array, " c"],
    direction: Float[Array, " p"],
    price: Float[Array, " c"],
    power: float,
) -> tuple[list[int], float]:
    """Returns candidates that are chosen one by one, and the prediction's variance with them.

    Args:
      known: the information of the runs that there are.
      rows: derivatives of the log losses of the candidates, over their noise.
      group: the size of each.
      direction: derivatives of the prediction.
      price: share of the budget that each candidate takes.
      power: what a candidate takes off the variance is divided by this power of its price.
    """
    chosen: list[int] = []
    left, is_free = 1.0, np.ones(len(price), bool)
    variance = _variance(known.total()[None], direction)[0]
    while len(chosen) < MOST_RUNS and (is_free & (price <= left)).any():
        after = _variance(known.with_each(rows, group), direction)
        worth = np.where(is_free & (price <= left), (variance - after) / price**power, -np.inf)
        best = int(np.argmax(worth))
        chosen.append(best)
        is_free[best] = False
        left -= price[best]
        known, variance = known.with_run(rows[best], group[best]), after[best]
    return chosen, float(variance)
