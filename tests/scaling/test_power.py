"""Pure power laws of two columns."""

import pathlib

import numpy as np
import pytest
from scipy import stats

from var_jax.errors import UserError
from var_jax.scaling import power, report, table

REFINEDWEB = pathlib.Path(__file__).parent / "data" / "optimal_pairs_refinedweb.csv"
# Porian et al. 2024: exponent and its 95 % interval, in the order of the file's settings.
PUBLISHED = {
    "rw|base|long|kaplan|kaplan": (0.8353, 0.824, 0.846),
    "rw|base|long|kaplan|standard": (0.7065, 0.691, 0.717),
    "rw|base|short|kaplan|standard": (0.6020, 0.591, 0.617),
    "rw|base|short|chinchilla|standard": (0.5715, 0.560, 0.589),
    "rw|tuned|short|const|standard": (0.4969, 0.491, 0.505),
}


def test_fit_recovers_five_published_exponents():
    """Exponents agree to the published digits, and intervals of both contain the other's value."""
    runs = table.read(str(REFINEDWEB), required=("n", "flops", "n_star_std"), text=("setting",))
    result, _ = report.fit_power(runs, "n", "flops", sigma="n_star_std", group="setting")
    assert len(result["laws"]) == 5
    for setting, (value, low, high) in PUBLISHED.items():
        law = result["laws"][f"n~flops[{setting}]"]["exponent"]
        assert law["value"] == pytest.approx(value, abs=5e-5)
        assert low <= law["value"] <= high
        assert law["ci95"][0] <= value <= law["ci95"][1]


def test_fit_without_weights_is_linear_regression():
    """Slope, correlation and both intervals are SciPy's in logarithms."""
    random = np.random.default_rng(0)
    x = np.geomspace(1, 1e3, 9)
    y = 3 * x**0.7 * np.exp(0.1 * random.normal(size=9))
    law, line = power.fit(x, y), stats.linregress(np.log(x), np.log(y))
    half = stats.t.ppf(0.975, 7) * line.stderr
    assert law.exponent == pytest.approx(line.slope)
    assert law.pearson == pytest.approx(line.rvalue)
    assert law.exponent_ci95 == pytest.approx((line.slope - half, line.slope + half))
    assert law.predict(1.0)[0] == pytest.approx(np.exp(line.intercept))
    assert law.predict(1.0)[1] == pytest.approx(law.a_ci95)


def test_fit_weights_by_sigma_and_chi2_gives_its_size():
    """Weights improve the exponent where half of the points are noisy, and chi2 is 1 for true
    sigmas."""
    random = np.random.default_rng(1)
    x, sigma = np.geomspace(1, 1e6, 400), np.tile([0.01, 0.5], 200)
    y = x**-0.3 * np.exp(sigma * random.normal(size=400))
    law = power.fit(x, y, sigma)
    assert law.exponent == pytest.approx(-0.3, abs=1e-3)
    assert law.chi2 == pytest.approx(1, abs=0.25)
    assert abs(power.fit(x, y).exponent + 0.3) > abs(law.exponent + 0.3)


def test_fit_refuses_two_points_or_one_x():
    """Two points, and three points at the same x, are refused, because they determine no exponent
    with an error."""
    for x in ([1.0, 2.0], [3.0, 3.0, 3.0]):
        with pytest.raises(UserError, match="at least 3 points"):
            power.fit(np.array(x), np.ones(len(x)))
