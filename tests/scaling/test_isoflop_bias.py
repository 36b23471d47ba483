"""IsoFLOP minima of planted laws without noise, whose optimal sizes are known exactly."""

import numpy as np
import pytest

from scaling.planted import joint
from var_jax.scaling import frontier, isoflop_bias, laws, losses, select_runs, solver, table

COST = frontier.Cost(np.log(6), 1.0, 0.0)
OPTIMUM = 4e8  # best size at the middle budget
WIDE = (1e7, 1.6e10)  # sizes of a grid that is wide for its optima
OFF_CENTER = (5e7, 2e10)  # sizes of which most lie above the optimum
NEAR = (4e7, 4e9)


def planted(alpha, beta, sizes):
    """Returns the exact law and its runs: IsoFLOP levels over a grid of seven sizes."""
    tokens = 1e20 / 6 / OPTIMUM
    # At the optimum the derivatives of both terms by log size are equal.
    log_b = np.log(400 * alpha / beta) - alpha * np.log(OPTIMUM) + beta * np.log(tokens)
    theta = np.array([1.8, np.log(400), alpha, log_b, beta])
    rows = []
    for compute in np.geomspace(1e19, 1e21, 5):
        for size in np.geomspace(*sizes, 7):
            tokens = compute / 6 / size
            loss = float(solver.predict(theta[None], np.log([[size, tokens]]))[0, 0])
            name = f"{compute:.3g}-{size:.3g}"
            rows.append(
                {"run": name, "params": size, "tokens": tokens, "compute": compute, "loss": loss}
            )
    return theta, table.build(rows)


@pytest.mark.parametrize(
    ("alpha", "beta", "sizes"),
    [(0.35, 0.37, WIDE), (0.35, 0.37, OFF_CENTER), (0.45, 0.25, NEAR), (0.45, 0.25, WIDE)],
)
def test_corrected_minima_of_noiseless_laws_are_their_optima(alpha, beta, sizes):
    """The parabolas miss the planted optimum; after the correction by the joint law that is fitted
    to the same runs, sizes, losses and exponent are the planted ones."""
    theta, runs = planted(alpha, beta, sizes)
    curves = frontier.curves(runs, "loss")
    raw = frontier.isoflop(curves)
    sample = select_runs.sample(runs, "loss", ("params", "tokens"))
    fit = laws.fit(solver.problem(sample.x, sample.y, losses.StudentT()), check=False)
    result = isoflop_bias.corrected(raw, curves, fit.theta, COST)
    assert len(raw["minima"]) >= 3 and len(result["minima"]) == len(raw["minima"])
    for before, after in zip(raw["minima"], result["minima"], strict=True):
        best = frontier.optimum(theta[None], COST, after["compute"])[0]
        lowest = float(solver.predict(theta[None], np.log(best)[None])[0, 0])
        assert after["params"] == pytest.approx(best[0], rel=2e-3)
        assert after["loss"] == pytest.approx(lowest, rel=1e-4)
        assert after["bias"] == pytest.approx(before["params"] / best[0] - 1, abs=2e-3)
    assert max(abs(minimum["bias"]) for minimum in result["minima"]) > 0.02
    assert result["exponent"]["value"] == pytest.approx(beta / (alpha + beta), abs=1e-3)
    assert result["exponent"]["parabola"] == raw["exponent"]["value"]
    assert result["warnings"][0].startswith("isoflop-bias")


def test_minima_without_a_joint_law_are_called_uncorrected():
    """Without a joint law the minima stay as they were measured, and a warning says that they are
    uncorrected."""
    _, runs = planted(0.35, 0.37, WIDE)
    curves = frontier.curves(runs, "loss")
    raw = frontier.isoflop(curves)
    result = isoflop_bias.corrected(raw, curves, None, COST)
    assert result["minima"] == raw["minima"]
    assert result["warnings"] == [isoflop_bias.UNCORRECTED]


def test_minima_between_the_budgets_of_runs_share_them():
    """Runs of equal token budgets end at other compute for each size: their minima are read off
    between them, and a warning says that the exponent's interval takes them for independent."""
    x, y, _ = joint((8, 6), noise=1e-3, seed=1)
    rows = [
        {"run": f"r{i}", "params": n, "tokens": d, "compute": 6 * n * d, "loss": loss}
        for i, ((n, d), loss) in enumerate(zip(x, y, strict=True))
    ]
    curves = frontier.curves(table.build(rows), "loss")
    between = frontier.isoflop(curves)
    assert between["interpolated"] and between["exponent"] is not None
    result = isoflop_bias.corrected(between, curves, None, COST)
    assert result["warnings"][-1] == isoflop_bias.SHARED_RUNS
    _, runs = planted(0.35, 0.37, WIDE)
    assert not frontier.isoflop(frontier.curves(runs, "loss"))["interpolated"]
