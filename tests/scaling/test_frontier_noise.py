"""Intervals of a frontier of noisy runs."""

import numpy as np
import pytest

from scaling.planted import joint
from var_jax.scaling import report, report_text, table


def test_frontier_without_tokens_says_that_its_noise_is_not_known():
    """Without tokens there is no joint law that tells how much the runs scatter: at 1 % noise, as
    here, intervals of an envelope held the truth in three of four, so that none is given."""
    x, y, _ = joint((8, 6), noise=0.01, seed=2)
    records = [
        {"run": f"r{i}", "params": n, "compute": 6 * n * d, "loss": loss}
        for i, ((n, d), loss) in enumerate(zip(x, y, strict=True))
    ]
    result, _ = report.fit_table(table.build(records), resamples=0, forms="none")
    law = result["laws"]["loss~compute"]
    assert any(note.startswith("frontier-noise-unknown") for note in law["warnings"])
    for name in ("E", "A", "alpha"):
        assert law[name]["ci95"] == [None, None] and np.isfinite(law[name]["value"])


@pytest.mark.parametrize("noise, withheld", [(0.0005, False), (0.01, True)])
def test_noisy_frontier_has_the_intervals_of_the_joint_law(noise, withheld):
    """Planted sweeps of 48 runs: at 1 % noise, where intervals of an envelope held the truth in
    three of four, none is given, nor one of a prediction; at 0.05 % they are. E and the exponent
    of the joint law's own frontier are given either way, and hold the planted ones."""
    x, y, theta = joint((8, 6), noise=noise, seed=2)
    records = [
        {"run": f"r{i}", "params": n, "tokens": d, "compute": 6 * n * d, "loss": loss}
        for i, ((n, d), loss) in enumerate(zip(x, y, strict=True))
    ]
    result, _ = report.fit_table(
        table.build(records), resamples=20, forms="none", predict=[{"compute": 1e22}]
    )
    law = result["laws"]["loss~compute"]
    for name in ("E", "A", "alpha"):
        assert (law[name]["ci95"] == [None, None]) == withheld
        assert np.isfinite(law[name]["value"])
    assert any(note.startswith("noisy-frontier") for note in law["warnings"]) == withheld
    loss = result["predictions"][0]["loss"]
    assert (loss["ci95"] == [None, None]) == (loss["new_run95"] == [None, None]) == withheld
    floor, _, alpha, _, beta = theta
    entry = law["by_joint_law"]
    for name, truth in (("E", floor), ("alpha", alpha * beta / (alpha + beta))):
        low, high = entry[name]["ci95"]
        assert low < truth < high and low < entry[name]["value"] < high
    assert any("joint law's own frontier" in line for line in report_text.terminal_lines(result))


def test_noisy_frontier_of_a_given_floor_has_no_interval_of_its_exponent():
    """E is as it is given; the exponent's interval is too short all the same, and is withheld."""
    x, y, theta = joint((8, 6), noise=0.01, seed=2)
    records = [
        {"run": f"r{i}", "params": n, "tokens": d, "compute": 6 * n * d, "loss": loss}
        for i, ((n, d), loss) in enumerate(zip(x, y, strict=True))
    ]
    result, _ = report.fit_table(
        table.build(records), resamples=0, forms="none", floors={"": theta[0]}
    )
    law = result["laws"]["loss~compute"]
    assert law["E"]["ci95"][0] is not None and law["alpha"]["ci95"] == [None, None]
    assert law["interval_method"].startswith("none")
