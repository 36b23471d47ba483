"""Compute-optimal frontiers: envelopes, IsoFLOP minima and optima of joint laws."""

import numpy as np
import pytest
from scipy import optimize

from scaling.planted import JOINT
from var_jax.scaling import frontier, select_runs, solver, table
from var_jax.studies import planted_laws


def grid_table(sizes=8, budgets=12, flops_per_param=6.0, low=3e7, high=3e9):
    """An exact joint law on a grid of sizes and tokens."""
    rows = []
    for n in np.geomspace(low, high, sizes):
        for d in np.geomspace(6e8, 6e10, budgets):
            loss = float(solver.predict(np.array([JOINT]), np.log([[n, d]]))[0, 0])
            rows.append(
                {
                    "run": f"{n:.3g}-{d:.3g}",
                    "params": n,
                    "tokens": d,
                    "compute": flops_per_param * n * d,
                    "loss": loss,
                }
            )
    return table.build(rows)


def test_envelope_is_below_every_curve_and_drops_single_curve_edges():
    """At every point at least two curves overlap, weights sum to the runs, and the best size grows
    with compute."""
    curves = frontier.curves(grid_table(), "loss")
    edge = frontier.envelope(curves)
    for curve in curves:
        assert np.all(edge.loss <= curve.at(edge.compute) + 1e-12)
    alone = [sum(np.isfinite(curve.at(np.array([c])))[0] for curve in curves) for c in edge.compute]
    assert min(alone) >= 2
    assert edge.compute[0] > min(c.compute[0] for c in curves)
    assert edge.weights.sum() == pytest.approx(len(set(edge.run)))
    assert np.all(np.diff(np.log(edge.params)) >= 0)


def test_sample_refuses_a_frontier_of_few_sizes():
    """A frontier of two model sizes is refused with that number, and the frontier of the whole grid
    has at least four."""
    with pytest.raises(
        select_runs.Refused, match="few-sizes: the frontier touches 2 different sizes"
    ):
        select_runs.sample(grid_table(sizes=3), "loss", ("compute",))
    assert len(np.unique(select_runs.sample(grid_table(), "loss", ("compute",)).group)) >= 4


def test_resampled_losses_are_above_the_envelope_or_infinite():
    """Leaving out runs can only raise the lowest loss, or leave no run at a budget."""
    curves = frontier.curves(grid_table(sizes=5, budgets=5), "loss")
    edge = frontier.envelope(curves)
    resampled = frontier.resampled_losses(curves, edge.compute, 50)
    assert resampled.shape == (50, len(edge.compute))
    assert np.all(resampled >= edge.loss * (1 - 1e-12))
    assert np.any(np.isinf(resampled)) and np.any(resampled > edge.loss * 1.0001)


def test_planted_frontier_is_the_law_of_the_joint_optimum():
    """The loss at the joint law's optimum is that of the planted frontier, at two budgets."""
    planted = planted_laws.FRONTIERS[0]
    truth = planted.truth
    for compute in (1e20, 1e21):
        best = frontier.optimum(
            np.array([planted.theta]), frontier.Cost(np.log(6), 1.0, 0.0), compute
        )
        loss = solver.predict(np.array([planted.theta]), np.log(best))[0, 0]
        assert solver.predict(truth[None], np.log([[compute]]))[0, 0] == pytest.approx(loss)


def test_curves_drop_the_warm_up():
    """The first tenth of the compute of each run is left out."""
    rows = [
        {"run": run, "params": p, "tokens": t, "compute": p * t, "loss": 10 - np.log(p * t)}
        for run, p in (("a", 1), ("b", 2))
        for t in range(1, 101)
    ]
    for curve in frontier.curves(table.build(rows), "loss"):
        assert curve.compute[0] == pytest.approx(0.1 * curve.compute[-1])


def test_envelope_of_single_points_is_none():
    """Final losses alone do not overlap in compute; each run is then one point."""
    runs = table.build(
        [{"run": str(i), "params": 10**i, "compute": 10.0**i, "loss": 9 - i} for i in range(1, 6)]
    )
    assert frontier.envelope(frontier.curves(runs, "loss")) is None
    result = select_runs.sample(runs, "loss", ("compute",))
    assert result.runs == 5 and result.selection == "the last row of every run"


def test_isoflop_minima_follow_the_planted_optimum():
    """The exponent is beta / (alpha + beta), and each minimum lies near the joint law's optimum."""
    result = frontier.isoflop(frontier.curves(grid_table(sizes=12), "loss"))
    alpha, beta = JOINT[2], JOINT[4]
    assert result["exponent"]["value"] == pytest.approx(beta / (alpha + beta), abs=0.03)
    for minimum in result["minima"]:
        assert 3e7 < minimum["params"] < 3e9
        best = frontier.optimum(
            np.array([JOINT]), frontier.Cost(np.log(6), 1.0, 0.0), minimum["compute"]
        )[0, 0]
        assert minimum["params"] == pytest.approx(best, rel=0.12)


def test_isoflop_refuses_a_minimum_outside_the_sampled_sizes():
    """With optimal sizes far above the runs no minimum is given, and each refusal has its
    reason."""
    rows = []
    for c in (1e20, 1e21):  # optimal sizes are far above these
        for n in np.geomspace(1e6, 1e7, 6):
            loss = float(solver.predict(np.array([JOINT]), np.log([[n, c / 6 / n]]))[0, 0])
            rows.append(
                {"run": f"{c}{n}", "params": n, "tokens": c / 6 / n, "compute": c, "loss": loss}
            )
    result = frontier.isoflop(frontier.curves(table.build(rows), "loss"))
    assert not result["minima"] and result["exponent"] is None
    assert len(result["refused"]) == 2
    assert all(
        "minimum" in r["reason"] or "smallest or largest" in r["reason"] for r in result["refused"]
    )


@pytest.mark.parametrize("slope", [1.0, 0.94])
def test_optimum_agrees_with_a_numerical_search(slope):
    """A bounded search over sizes finds the same size, and the tokens cost the whole budget."""
    cost, compute = frontier.Cost(np.log(7.0), slope, 0.0), 1e21

    def loss(log_n):
        x = [[log_n, np.log(compute) - cost.intercept - cost.slope * log_n]]
        return float(solver.predict(np.array([JOINT]), np.array(x))[0, 0])

    result = optimize.minimize_scalar(
        loss, bounds=(10, 30), method="bounded", options={"xatol": 1e-9}
    )
    params, tokens = frontier.optimum(np.array([JOINT]), cost, compute)[0]
    assert np.log(params) == pytest.approx(result.x, abs=1e-4)
    assert cost.per_token(params) * tokens == pytest.approx(compute)


def test_cost_recovers_flops_per_token():
    """Planted costs of 5 N FLOPs per token are found exactly; a table without compute has none."""
    cost = frontier.cost(grid_table(flops_per_param=5.0))
    assert (np.exp(cost.intercept), cost.slope) == pytest.approx((5.0, 1.0))
    assert cost.scatter == pytest.approx(0, abs=1e-9)
    assert frontier.cost(table.build([{"run": "a", "params": 1, "loss": 2}])) is None


def test_resampled_losses_are_those_of_curves_without_the_other_runs():
    """Each resample's envelope equals the one that is computed from its runs' curves one by one."""
    curves = frontier.curves(grid_table(sizes=5, budgets=6), "loss")
    compute = frontier.envelope(curves).compute
    losses = frontier.resampled_losses(curves, compute, 20)
    runs = np.unique(np.concatenate([curve.run for curve in curves]).astype(str))
    random = np.random.default_rng(0)
    draws = random.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=20)
    for row, counts in zip(losses, draws, strict=True):
        parts = [curve.where(np.isin(curve.run.astype(str), runs[counts > 0])) for curve in curves]
        alone = np.stack([part.at(compute) for part in parts if len(part.compute) > 1])
        shared = np.isfinite(alone).sum(axis=0) >= 2
        np.testing.assert_allclose(row[shared], alone.min(axis=0)[shared], rtol=1e-12)
        assert np.isinf(row[~shared]).all() and shared.any()
