"""The next runs that are chosen for a sweep, by simulation of what they are for."""

import dataclasses

import numpy as np
import pytest

from var_jax.errors import UserError
from var_jax.scaling import next_runs, solver, whitening
from var_jax.studies import next_runs_gain
from var_jax.studies.next_runs_gain import BUDGET, NEW_SIZES
from var_jax.studies.planted_laws import COST


@pytest.fixture(scope="module")
def law():
    case = next_runs_gain.CASES[0]
    x = next_runs_gain.KEPT
    noise = next_runs_gain.NOISE * np.random.default_rng(1).normal(size=len(x))
    return next_runs_gain.fitted(x, case.log_loss(x) + noise)


@pytest.mark.long
def test_next_runs_narrow_a_prediction_more_than_equal_spacing(law):
    """At the same cost, intervals of simulated sweeps are narrower with the chosen runs than with
    runs of equal cost at evenly spaced sizes, and than without new runs."""
    row = next_runs_gain.measure(next_runs_gain.CASES[0], sweeps=12, seed=0)
    widths = [row[f"{count} spaced"]["width"] for count in next_runs_gain.SPACED]
    assert row["chosen"]["width"] < 0.92 * min(widths) < min(widths) < 1
    runs = next_runs.next_runs(law, COST, BUDGET, next_runs_gain.target_of(next_runs_gain.CASES[0]))
    assert runs.compute.sum() <= BUDGET


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


def with_noise(law, share, growth):
    """The law with another choice of its runs' noise."""
    logx = np.log(law.sample.x)
    maps = whitening.independent(logx, law.sample.weights)
    maps = dataclasses.replace(maps, share=np.array(share), growth=np.array(growth))
    return dataclasses.replace(law, fit=dataclasses.replace(law.fit, whitening=maps))


def variance(law, x, target, share, growth):
    """The variance of the prediction by generalized least squares with the runs' covariance."""
    mean, theta = law.likelihood.mean, law.likelihood.theta
    slopes, direction = (
        solver.log_jacobian(theta[None], np.log(rows) - mean)[0] for rows in (x, target[None])
    )
    sizes = np.log(x[:, 0])
    known = np.log(law.sample.x[:, 0])
    place = (np.clip(sizes, known.min(), known.max()) - known.mean()) / known.std()
    same = np.abs(sizes[:, None] - sizes) < 1e-6
    noise = np.exp(-growth * place)
    covariance = (share * same + (1 - share) * np.eye(len(x))) * np.outer(noise, noise)
    information = slopes.T @ np.linalg.inv(covariance) @ slopes
    return float(direction[0] @ np.linalg.inv(information) @ direction[0])


@pytest.mark.parametrize("share, growth", [(0.0, 0.0), (0.8, 0.0), (0.0, 0.6), (0.5, 0.4)])
def test_promise_is_that_of_the_noise_that_the_law_has(law, share, growth):
    """The ratio of standard errors is that of generalized least squares with the covariance of all
    runs. Where runs of one size share most of their noise, more of them are of different sizes
    and the promise is smaller than independent runs would give."""
    noisy = with_noise(law, share, growth)
    target = np.array([1e10, 1e11])
    runs = next_runs.next_runs(noisy, COST, BUDGET, target, new_sizes=NEW_SIZES)
    before, after = (
        variance(law, x, target, share, growth)
        for x in (law.sample.x, np.concatenate([law.sample.x, runs.x]))
    )
    assert runs.narrower == pytest.approx((after / before) ** 0.5, rel=1e-6)


def test_new_sizes_are_proposed_where_runs_of_one_size_share_noise(law):
    """Independent runs are of the sizes that have configs; where most noise is a size's own,
    further sizes lie between them, and a run of one names both neighbors."""
    settings = next_runs.settings(law, new_sizes=NEW_SIZES)
    assert np.isin(settings[:, 0], law.sample.x[:, 0]).all()
    noisy = with_noise(law, 0.8, 0.0)
    target = [{"params": 1e10, "tokens": 1e11}]
    plan = next_runs.plan(noisy, COST, BUDGET, target, new_sizes=NEW_SIZES)
    new = [run for run in plan["runs"] if "between" in run]
    assert new
    for run in new:
        below, above = (end["params"] for end in run["between"])
        assert below < run["params"] < above
        assert not ((law.sample.x[:, 0] > below) & (law.sample.x[:, 0] < above)).any()


def test_settings_that_the_table_has_are_not_proposed(law):
    """A run of the same size and tokens would be the same run again."""
    runs = next_runs.next_runs(law, COST, BUDGET, np.array([1e10, 1e11]))
    distances = np.abs(np.log(runs.x[:, None] / law.sample.x)).max(axis=-1)
    assert distances.min() > 0.05


def test_plan_refuses_a_budget_of_no_run_and_a_missing_law(law):
    """A budget below the cheapest run is refused, and so is a plan without a determined joint law;
    both messages name the option."""
    with pytest.raises(UserError, match="--next 1e\\+10.*cheapest"):
        next_runs.plan(law, COST, 1e10, [])
    with pytest.raises(UserError, match="--next needs a determined joint law"):
        next_runs.plan(None, COST, 1e21, [])
