"""The next runs that are chosen for a sweep, by simulation of what they are for."""

import numpy as np
import pytest

from scaling.planted import JOINT, joint
from var_jax.errors import UserError
from var_jax.scaling import analysis, frontier, laws, losses, next_runs, select_runs, solver, table

COST = frontier.Cost(np.log(6), 1.0, 0.0)
NOISE = 0.005


@pytest.fixture(scope="module")
def law():
    x, y, _ = joint((6, 5), noise=NOISE, seed=1)
    records = [
        {"run": f"r{i}", "params": size, "tokens": tokens, "loss": loss}
        for i, ((size, tokens), loss) in enumerate(zip(x, y, strict=True))
    ]
    sample = select_runs.sample(table.build(records), "loss", ("params", "tokens"))
    return analysis.analyze("loss~params+tokens", sample, resamples=0)


def spread(x, target):
    """Returns the standard deviation of the predicted log loss over 400 noisy sweeps of runs x."""
    exact = np.log(solver.predict(np.array([JOINT]), np.log(x))[0])
    noise = NOISE * np.random.default_rng(0).normal(size=(400, len(x)))
    p = solver.Problem(np.log(x), exact + noise, np.ones(len(x)), losses.StudentT())
    centered, mean = laws.center(p)
    start = np.tile(laws.shift(np.array(JOINT), -mean), (400, 1))
    theta, _ = solver.solve(centered, start, np.zeros(5, bool))
    return np.log(solver.predict(theta, np.log(target)[None] - mean)[:, 0]).std()


def test_next_runs_narrow_a_prediction_more_than_equal_spacing(law):
    """At the same cost, refits of simulated sweeps scatter less with the chosen runs than with
    runs of equal cost at evenly spaced sizes, and by about as much less as was promised."""
    compute = 10 * 6 * law.sample.x[:, 0].max() * law.sample.x[:, 1].max()
    target = frontier.optimum(law.fit.theta[None], COST, compute)[0]
    runs = next_runs.next_runs(law, COST, 1e21, target)
    assert runs.compute.sum() <= 1e21
    sizes = np.geomspace(*law.sample.x[[0, -1], 0], len(runs.x))
    equal = np.stack([sizes, runs.compute.sum() / len(sizes) / 6 / sizes], axis=1)
    before = spread(law.sample.x, target)
    chosen = spread(np.concatenate([law.sample.x, runs.x]), target)
    spaced = spread(np.concatenate([law.sample.x, equal]), target)
    assert chosen < 0.92 * spaced < spaced < before
    assert chosen / before == pytest.approx(runs.narrower, abs=0.12)


def test_plan_names_a_run_of_each_size(law):
    """Each planned run has the size of the sweep's run that it names, and its FLOPs agree with its
    size and tokens. The target is the compute budget that is to be predicted, and the plan lowers
    the prediction's standard error."""
    plan = next_runs.plan(law, COST, 1e21, [{"params": 1e10}, {"compute": 1e23}])
    assert plan["target"] == {"compute": 1e23} and plan["standard_error_ratio"] < 1
    size_by_run = dict(zip(law.sample.run, law.sample.x[:, 0], strict=True))
    for run in plan["runs"]:
        assert size_by_run[run["like"]] == pytest.approx(run["params"])
        assert run["compute"] == pytest.approx(6 * run["params"] * run["tokens"])


def test_plan_refuses_a_budget_of_no_run_and_a_missing_law(law):
    """A budget below the cheapest run is refused, and so is a plan without a determined joint law;
    both messages name the option."""
    with pytest.raises(UserError, match="--next 1e\\+10.*cheapest"):
        next_runs.plan(law, COST, 1e10, [])
    with pytest.raises(UserError, match="--next needs a determined joint law"):
        next_runs.plan(None, COST, 1e21, [])
