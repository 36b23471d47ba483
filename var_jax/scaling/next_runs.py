"""Chooses the next runs of a sweep: those that narrow a prediction of its joint law most.

The variance of a prediction follows from the law's Jacobian at the runs, and from their noise as
the law has it: its growth for small runs, and the part that runs of one size share. Runs are added
one after another until the budget is spent, each time the one that takes most off that variance
for its price. How much the price counts is chosen so that the final variance is the smallest.
Settings that the table has are left out, as they would be the same runs again.

Source: Pukelsheim 2006, Optimal Design of Experiments (c-optimality).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from var_jax.errors import UserError
from var_jax.scaling import form_prediction, frontier, lack_of_fit, solver
from var_jax.scaling.analysis import Law
from var_jax.scaling.form_fit import FittedForm
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


def next_runs(
    law: Law,
    cost: Cost,
    budget: float,
    target: Float[Array, "2"],
    form: FittedForm | None = None,
    new_sizes: Sequence[float] = (),
) -> NextRuns:
    """Returns the runs within a budget that narrow the prediction at `target` most.

    Sizes are those of `sizes`; tokens go from the fewest of the runs to `FARTHER` times the most.

    Args:
      law: a joint law of params and tokens.
      budget: training FLOPs of all new runs together.
      target: params and tokens of the prediction.
      form: another form of the law that is to predict, fitted to the same runs, if any.
      new_sizes: params of sizes that no run has, as in `sizes`.

    Raises:
      UserError: the budget does not pay for any run.
    """
    candidates = settings(law, form, new_sizes)
    compute = cost.per_token(candidates[:, 0]) * candidates[:, 1]
    if not len(compute) or compute.min() > budget:
        raise UserError(
            f"--next {budget:g} does not pay for any run; the cheapest of these sizes that the "
            f"table does not have takes {compute.min(initial=np.inf):.3g} FLOPs"
        )
    direction = _slopes(law, target[None], form)[0]
    groups = sizes(law, form, new_sizes)
    rows, prior = _rows(law, law.sample.x, form, groups)
    weights = law.sample.weights[:, None]
    covariance = np.linalg.pinv(rows.T @ (weights * rows) + np.diag(prior))
    direction = np.concatenate([direction, np.zeros(len(prior) - len(direction))])
    candidate_rows, _ = _rows(law, candidates, form, groups)
    designs = [
        _greedy(candidate_rows, direction, covariance, compute / budget, power)
        for power in COST_POWERS
    ]
    chosen, after = min(designs, key=lambda design: design[1])
    before = direction @ covariance @ direction
    return NextRuns(candidates[chosen], compute[chosen], float(np.sqrt(after / before)))


def settings(
    law: Law, form: FittedForm | None = None, new_sizes: Sequence[float] = ()
) -> Float[Array, "c 2"]:
    """Returns params and tokens of the runs among which next runs are chosen."""
    tokens = law.sample.x[:, 1]
    grid = np.geomspace(tokens.min(), FARTHER * tokens.max(), TOKEN_BUDGETS)
    candidates = np.array([[size, count] for size in sizes(law, form, new_sizes) for count in grid])
    half_step = np.log(grid[1] / grid[0]) / 2
    distances = np.abs(np.log(candidates[:, None] / law.sample.x[None]))  # (candidates, runs, 2)
    is_there = ((distances[..., 0] < 1e-6) & (distances[..., 1] < half_step)).any(axis=1)
    return candidates[~is_there]


def sizes(
    law: Law, form: FittedForm | None = None, new_sizes: Sequence[float] = ()
) -> Float[Array, " s"]:
    """Returns the params of next runs, in ascending order.

    They are those of the law's runs. Where runs of one size share noise, more runs of a size tell
    little, and new sizes within their range are among them too.

    Args:
      new_sizes: params of further sizes of which configs exist.
    """
    known = np.unique(law.sample.x[:, 0])
    inside = [size for size in new_sizes if known[0] < size < known[-1]]
    return np.union1d(known, inside) if _noise(law, form)[1] else known


def _noise(law: Law, form: FittedForm | None) -> tuple[float, float]:
    """Returns the exponent with which noise falls with size, and the share that sizes have."""
    if form is not None:
        return 0.0, form.points.share
    maps = law.fit.whitening
    return (0.0, 0.0) if maps is None else (maps.exponent, float(maps.share))


def plan(
    law: Law | None,
    cost: Cost | None,
    budget: float,
    predict: Sequence[Mapping[str, float]],
    form: FittedForm | None = None,
    new_sizes: Sequence[float] = (),
) -> dict:
    """Returns the next runs as an entry of fit.json.

    They narrow the first prediction that is asked for, or else that of the compute-optimal run of
    `AHEAD` times the table's largest compute.

    Args:
      law: the joint law of the first loss, or None if it is refused or not determined.
      predict: the inputs of the predictions, of params and tokens or of compute.
      form: the form that the runs tell from that law and that predicts better, if there is one.
        The prediction is then by that form.
      new_sizes: params of sizes that no run has, as in `sizes`.

    Returns:
      The law, the form, the target, the budget, the runs and what they narrow. There are no runs,
      and "warnings" says why, if neither the law nor another form describes the runs, or the loss
      has no minimum at the compute of the target.

    Raises:
      UserError: there is no joint law, or the budget does not pay for any run.
    """
    if law is None or cost is None or cost.slope <= 0:
        raise UserError(
            "--next needs a determined joint law of params and tokens, and compute; run without "
            "--next to see why there is none"
        )
    params, tokens = law.sample.x.T
    target = {"compute": AHEAD * float((cost.per_token(params) * tokens).max())}
    target = next((dict(at) for at in predict if set(at) in TARGETS), target)
    entry = {
        "law": law.key,
        "form": "joint" if form is None else form.form.name,
        "target": target,
        "budget": budget,
        "standard_error_ratio": None,
        "warnings": [],
        "runs": [],
    }
    if lack_of_fit.is_misfit(law.summary) and (
        form is None or form_prediction.is_misfit(law, form)
    ):
        better = "no other form is known to predict better"
        if form is not None:
            better = f"neither does {form.form.name}, which predicts better"
        reason = (
            f"next-runs-of-misfit: {law.key} does not describe the runs (lack-of-fit), and "
            f"{better}, so that no runs are proposed"
        )
        return {**entry, "warnings": [reason]}
    if "compute" not in target:
        x = np.array([target["params"], target["tokens"]])
    elif form is None:
        x = frontier.optimum(law.fit.theta[None], cost, target["compute"])[0]
    else:
        x = form_prediction.optimum(form, cost, target["compute"], params)
        if x is None:
            reason = (
                f"next-runs-without-target: by the form {form.form.name} the loss has no minimum "
                f"at {target['compute']:.3g} FLOPs; name params and tokens with --predict"
            )
            return {**entry, "warnings": [reason]}
    runs = next_runs(law, cost, budget, x, form, new_sizes)
    for (size, count), compute in zip(runs.x, runs.compute, strict=True):
        inputs = {"params": float(size), "tokens": float(count)}
        run = {**_like(law, size), **inputs, "compute": float(compute)}
        entry["runs"].append(run)
    return {**entry, "standard_error_ratio": runs.narrower}


def _like(law: Law, size: float) -> dict:
    """Returns the run of the law whose size is nearest.

    For a size that no run has, "between" is the runs of the next smaller and the next larger size.
    """
    params, names = law.sample.x[:, 0], law.sample.run.astype(str)
    like = {"like": str(names[int(np.argmin(np.abs(np.log(params / size))))])}
    if (params == size).any():
        return like
    ends = params[params < size].max(), params[params > size].min()
    between = [
        {"run": str(names[int(np.argmax(params == end))]), "params": float(end)} for end in ends
    ]
    return {**like, "between": between}


def _slopes(law: Law, x: Float[Array, "n 2"], form: FittedForm | None) -> Float[Array, "n p"]:
    """Returns the derivatives of log losses by the fitted parameters of the law or the form."""
    if form is not None:
        return form.slopes(np.log(x))
    mean, theta = law.likelihood.mean, law.likelihood.theta
    return solver.log_jacobian(theta[None], np.log(x) - mean)[0][:, ~law.likelihood.held]


def _rows(
    law: Law, x: Float[Array, "n 2"], form: FittedForm | None, groups: Float[Array, " s"]
) -> tuple[Float[Array, "n q"], Float[Array, " q"]]:
    """Returns derivatives over the standard deviation of the noise that runs have alone.

    What runs of one size share is a parameter of that size, with a normal prior, so that runs are
    independent given the parameters.

    Args:
      x: params and tokens of runs.
      groups: params of all sizes that runs may have.

    Returns:
      The derivatives by the law's parameters and those of the sizes, and the prior's precisions.
    """
    slopes = _slopes(law, x, form)
    prior = np.concatenate([np.zeros(slopes.shape[1]), np.ones(len(groups))])
    of_size = (x[:, :1] == groups).astype(float)
    exponent, share = _noise(law, form)
    scaled = slopes * np.exp(exponent * (np.log(x[:, :1]) - law.likelihood.mean[0]))
    rows = np.concatenate([scaled, np.sqrt(share) * of_size], axis=1)
    return rows / np.sqrt(1 - share), prior


def _greedy(
    rows: Float[Array, "c q"],
    direction: Float[Array, " q"],
    covariance: Float[Array, "q q"],
    price: Float[Array, " c"],
    power: float,
) -> tuple[list[int], float]:
    """Returns candidates that are chosen one by one, and the prediction's variance with them.

    Args:
      rows: derivatives of the candidates over their noise.
      direction: those of the prediction.
      covariance: that of the parameters without new runs, per variance of a run.
      price: share of the budget that each candidate takes.
      power: what a candidate takes off the variance is divided by this power of its price.
    """
    chosen: list[int] = []
    left, is_free = 1.0, np.ones(len(price), bool)
    while len(chosen) < MOST_RUNS and (is_free & (price <= left)).any():
        # What each candidate takes off the variance (Sherman and Morrison).
        spread = rows @ covariance
        gains = (spread @ direction) ** 2 / (1 + np.sum(spread * rows, axis=1))
        worth = np.where(is_free & (price <= left), gains / price**power, -np.inf)
        best = int(np.argmax(worth))
        chosen.append(best)
        is_free[best] = False
        left -= price[best]
        along = covariance @ rows[best]
        covariance = covariance - np.outer(along, along) / (1 + rows[best] @ along)
    return chosen, float(direction @ covariance @ direction)
