"""Predictions and next runs by a form that the runs tell from the joint law."""

import dataclasses

import numpy as np
import pytest

from var_jax.scaling import (
    analysis,
    compare_forms,
    form_fit,
    form_prediction,
    forms,
    frontier,
    next_runs,
    prediction,
    report,
    report_text,
    select_runs,
    solver,
    table,
)
from var_jax.studies import form_choice, planted_laws

KEY = "loss~params+tokens"
COST = planted_laws.COST
BENT = form_choice.size_exponent(0.2)


def records(log_loss, noise=0.002, seed=0):
    x = form_choice.runs()
    logy = log_loss(x) + noise * np.random.default_rng(seed).normal(size=len(x))
    return [
        {"run": f"r{i}", "params": n, "tokens": d, "compute": 6 * n * d, "loss": loss}
        for i, ((n, d), loss) in enumerate(zip(x, np.exp(logy), strict=True))
    ]


def law_of(rows):
    sample = select_runs.sample(table.build(rows), "loss", ("params", "tokens"))
    return analysis.analyze(KEY, sample, resamples=0)


def compared(seed):
    """The joint law of runs whose exponent of data grows with size, and the better form."""
    law = law_of(records(BENT, seed=seed))
    result = compare_forms.compare(law)
    law.summary.update(result.entry)
    return law, result.better


@pytest.fixture(scope="module")
def bent():
    return compared(0)


@pytest.fixture(scope="module")
def joint_form():
    """The joint law as a form, fitted to runs that it describes."""
    law = law_of(records(form_choice.joint))
    points = form_fit.points(
        law.sample, np.ones(len(law.sample.y), bool), law.fit, 2e-3, np.inf, None
    )
    return law, form_fit.fit(forms.JOINT, points)


@pytest.mark.long
def test_better_form_predicts_what_the_joint_law_misses(bent):
    """Four times beyond size and tokens, in three of four sweeps at least, the interval of the form
    holds the planted loss, where that of the joint law never does; the form's value lies inside
    its own interval, and that within a new run's."""
    at = {"params": 4 * form_choice.SIZES[-1], "tokens": 4 * form_choice.TOKENS[-1]}
    truth = np.exp(BENT(np.array([list(at.values())]))[0])
    holds = []
    for seed in range(4):
        law, form = bent if seed == 0 else compared(seed)
        assert form.form.name in ("size_exponent", "farseer")
        (by_law,) = prediction.predict({KEY: law}, COST, at)
        (by_form,) = form_prediction.predict({KEY: law}, {KEY: form}, COST, at)
        low, high = by_form["loss"]["ci95"]
        assert low < by_form["loss"]["value"] < high
        assert by_form["loss"]["new_run95"][0] < low and high < by_form["loss"]["new_run95"][1]
        holds.append(low < truth < high)
        low, high = by_law["loss"]["ci95"]
        assert not low < truth < high
    assert sum(holds) >= 3


def test_form_of_a_joint_law_has_its_optimum_slopes_and_width(joint_form):
    """The joint law as a form has the optimum of the closed formula, the derivatives of the
    solver, and an interval about as wide as the law's own."""
    law, form = joint_form
    theta = solver_theta(form)
    best = frontier.optimum(theta[None], COST, 1e14)[0]
    closest = form_prediction.optimum(form, COST, 1e14, law.sample.x[:, 0])
    np.testing.assert_allclose(np.log(closest), np.log(best), atol=0.01)
    logx = np.log(law.sample.x[:5])
    slopes = solver.log_jacobian(form.theta[None], logx - form.points.center)[0]
    np.testing.assert_allclose(form.slopes(logx), slopes, rtol=1e-5, atol=1e-8)
    at = {"params": 3e6, "tokens": 1.6e7}
    (by_law,) = prediction.predict({KEY: law}, COST, at)
    own, ends = (np.ptp(np.log(loss["ci95"])) for loss in (by_law["loss"], of_form(form, at)))
    assert ends == pytest.approx(own, rel=0.25)


def solver_theta(form):
    theta = form.theta.copy()
    theta[1::2] += theta[2::2] * form.points.center
    return theta


def of_form(form, at):
    return form_prediction.predicted_loss(form, np.array(list(at.values())))


def test_form_has_the_noise_of_its_own_residuals(joint_form):
    """Runs of one size that share most of their noise have that share in the form's residuals, and
    independent runs have none, whatever the law's likelihood chose."""
    law, form = joint_form
    counts = np.ones(len(law.sample.y))
    assert form_fit.fit_by_own_noise(forms.JOINT, form.points, counts).points.share == 0
    rng = np.random.default_rng(0)
    _, owner = np.unique(law.sample.x[:, 0], return_inverse=True)
    common = 0.01 * rng.normal(size=owner.max() + 1)[owner]
    logy = form_choice.joint(law.sample.x) + common + 0.002 * rng.normal(size=len(counts))
    shared = form_fit.fit_by_own_noise(forms.JOINT, form.points._replace(logy=logy), counts)
    assert 0.6 < shared.points.share < 1


def test_loss_without_a_minimum_has_no_optimum(joint_form):
    """Where tokens do not help, the loss falls with size up to the end of what is searched."""
    _, form = joint_form
    flat = dataclasses.replace(form, theta=np.array([1.0, 1.0, 0.5, -30.0, 0.5]))
    assert form_prediction.optimum(flat, COST, 1e14, form_choice.SIZES) is None
    (entry,) = form_prediction.predict({KEY: joint_form[0]}, {KEY: flat}, COST, {"compute": 1e14})
    assert entry["loss"] is None and entry["warnings"][0].startswith("no-optimum")


def test_next_runs_are_those_of_the_better_form(bent):
    """The plan names the form, and its runs narrow the form's prediction as much as is stated, by
    the form's own derivatives."""
    law, form = bent
    plan = next_runs.plan(law, COST, 3e13, [{"params": 3e6, "tokens": 1.6e7}], form)
    assert plan["form"] == "size_exponent" and 0 < plan["standard_error_ratio"] < 1
    x = np.array([[run["params"], run["tokens"]] for run in plan["runs"]])
    target = form.slopes(np.log([[3e6, 1.6e7]]))[0]

    def variance(points):
        slopes = form.slopes(np.log(points))
        return target @ np.linalg.inv(slopes.T @ slopes) @ target

    assert form.points.share == 0
    ratio = variance(np.concatenate([law.sample.x, x])) / variance(law.sample.x)
    assert plan["standard_error_ratio"] == pytest.approx(ratio**0.5, rel=1e-3)


def test_form_that_does_not_describe_the_runs_either_warns_and_plans_nothing(bent):
    """Repeated runs that speak against the better form too: its prediction is warned of, and no
    runs are planned by it."""
    law, form = bent
    entry = law.summary["forms"]["size_exponent"]
    tested = {**entry, "lack_of_fit": {**entry["lack_of_fit"], "p": 1e-4}}
    forms_entry = {**law.summary["forms"], "size_exponent": tested}
    wrong = dataclasses.replace(law, summary={**law.summary, "forms": forms_entry})
    at = {"params": 3e6, "tokens": 1.6e7}
    for one, is_warned in ((law, False), (wrong, True)):
        (entry,) = form_prediction.predict({KEY: one}, {KEY: form}, COST, at)
        assert any(note.startswith("form-misfit") for note in entry["warnings"]) == is_warned
        plan = next_runs.plan(one, COST, 3e13, [at], form)
        assert bool(plan["runs"]) != is_warned
    assert "neither does size_exponent" in plan["warnings"][0]


def test_gross_outlier_moves_the_better_form_little(bent):
    """One run at 1.2 times its loss, a hundred standard deviations: the form's prediction moves by
    less than its interval is wide, and its noise stays of the runs' size."""
    law, form = bent
    logy = form.points.logy.copy()
    logy[17] += np.log(1.2)
    counts = np.ones(len(logy))
    other = form_fit.fit_by_own_noise(form.form, form.points._replace(logy=logy), counts)
    x = np.array([3e6, 1.6e7])
    value, moved = (form_prediction.predicted_loss(one, x) for one in (form, other))
    low, high = value["ci95"]
    assert low < moved["value"] < high
    assert other.noise[0] < 1.5 * form.noise[0]


def test_no_runs_are_proposed_by_a_law_that_does_not_describe_the_runs(bent):
    """Repeated runs speak against the joint law, and no other form is given: the plan is empty and
    says why, where it would narrow the prediction of a wrong law."""
    law, _ = bent
    plan = next_runs.plan(law, COST, 3e13, [])
    assert plan["runs"] == [] and plan["standard_error_ratio"] is None
    assert plan["warnings"][0].startswith("next-runs-of-misfit")
    assert report_text.next_lines(plan)[0].startswith("no next runs")


@pytest.mark.long
def test_fit_predicts_and_plans_by_the_form_that_it_chose():
    """The command's result has the form's prediction after the laws', and its text says so."""
    result, _ = report.fit_table(
        table.build(records(BENT)), resamples=0, predict=[{"compute": 1e15}], next_budget=3e13
    )
    names = [entry.get("form") for entry in result["predictions"]]  # of compute, and of both
    assert names == [None, None, "size_exponent"] and result["next"]["form"] == "size_exponent"
    lines = report_text.terminal_lines(result)
    assert sum("of the form size_exponent" in line for line in lines) == 2
    tested = result["laws"][KEY]["forms"]
    assert tested["joint"]["lack_of_fit"]["p"] < 0.01 < tested["size_exponent"]["lack_of_fit"]["p"]
