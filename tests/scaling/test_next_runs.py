"""The next runs that are chosen for a sweep, by simulation of what they are for."""

import pytest

from var_jax.errors import UserError
from var_jax.scaling import next_runs
from var_jax.studies import next_runs_gain
from var_jax.studies.next_runs_gain import BUDGET, COST


@pytest.fixture(scope="module")
def law():
    return next_runs_gain.planted_law()


def test_next_runs_narrow_a_prediction_more_than_equal_spacing(law):
    """At the same cost, refits of simulated sweeps scatter less with the chosen runs than with
    runs of equal cost at evenly spaced sizes, and by about as much less as was promised."""
    gain = next_runs_gain.gain(law)
    assert gain.compute <= BUDGET
    assert gain.chosen < 0.92 * gain.spaced < gain.spaced < 1
    assert gain.chosen == pytest.approx(gain.promised, abs=0.12)


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
