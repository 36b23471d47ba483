"""E of a frontier of noisy runs."""

import numpy as np
import pytest

from scaling.planted import joint
from var_jax.scaling import report, table


def test_frontier_without_tokens_says_that_its_noise_is_not_known():
    """Without tokens there is no joint law that tells how much the runs scatter."""
    x, y, _ = joint((8, 6), noise=0.01, seed=2)
    records = [
        {"run": f"r{i}", "params": n, "compute": 6 * n * d, "loss": loss}
        for i, ((n, d), loss) in enumerate(zip(x, y, strict=True))
    ]
    result, _ = report.fit_table(table.build(records), resamples=0, forms="none")
    notes = result["laws"]["loss~compute"]["warnings"]
    assert any(note.startswith("frontier-noise-unknown") for note in notes)


@pytest.mark.parametrize("noise, refused", [(0.001, False), (0.01, True)])
def test_floor_of_a_noisy_frontier_has_no_interval(noise, refused):
    """Planted sweeps of 48 runs: at 1 % noise, where an interval of E held the truth in three of
    four, none is given and the reason names the law to look at; at 0.1 % it is."""
    x, y, _ = joint((8, 6), noise=noise, seed=2)
    records = [
        {"run": f"r{i}", "params": n, "tokens": d, "compute": 6 * n * d, "loss": loss}
        for i, ((n, d), loss) in enumerate(zip(x, y, strict=True))
    ]
    result, _ = report.fit_table(table.build(records), resamples=0, forms="none")
    law = result["laws"]["loss~compute"]
    assert (law["E"]["ci95"] == [None, None]) == refused
    assert any(note.startswith("noisy-frontier") for note in law["warnings"]) == refused
    assert np.isfinite(law["E"]["value"]) and law["alpha"]["ci95"][0] > 0
    joint_law = result["laws"]["loss~params+tokens"]
    assert joint_law["E"]["ci95"][0] < 1.82 < joint_law["E"]["ci95"][1]
