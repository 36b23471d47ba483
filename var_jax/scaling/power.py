"""The law of two columns without a floor: y = A x^b, by weighted least squares on logarithms."""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import stats

from var_jax.errors import UserError

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """y = A x^exponent.

    Attributes:
      log_a, exponent: the best line of log y on log x.
      covariance: of the two, the noise's scale taken from the scatter.
      freedom: points less two.
      chi2: scatter over the stated noise (1 when it is right), or None without one.
      pearson: weighted correlation of the logarithms.
    """

    log_a: float
    exponent: float
    covariance: Float[Array, "2 2"]
    freedom: int
    chi2: float | None
    pearson: float

    @property
    def exponent_ci95(self) -> tuple[float, float]:
        half = self._t * float(np.sqrt(self.covariance[1, 1]))
        return self.exponent - half, self.exponent + half

    @property
    def a_ci95(self) -> tuple[float, float]:
        half = self._t * float(np.sqrt(self.covariance[0, 0]))
        return float(np.exp(self.log_a - half)), float(np.exp(self.log_a + half))

    @property
    def _t(self) -> float:
        return float(stats.t.ppf(0.975, self.freedom))

    def predict(self, x: float) -> tuple[float, tuple[float, float]]:
        """The law's value at x, and its 95 % interval."""
        direction = np.array([1.0, np.log(x)])
        center = self.log_a + self.exponent * np.log(x)
        half = self._t * float(np.sqrt(max(direction @ self.covariance @ direction, 0)))
        return float(np.exp(center)), (float(np.exp(center - half)), float(np.exp(center + half)))


def fit(
    x: Float[Array, " n"], y: Float[Array, " n"], sigma: Float[Array, " n"] | None = None
) -> PowerLaw:
    """The best law.

    Intervals are Student's t with the scatter's own scale: a stated `sigma` sets the points'
    relative weights, and chi2 says whether its size is right.

    Args:
      sigma: standard deviation of log y.

    Raises:
      UserError: fewer than three points, or all at one x.
    """
    if len(x) < 3 or np.ptp(np.log(x)) < 1e-9:
        raise UserError(
            f"a power law needs at least 3 points at different x; there are {len(np.unique(x))}"
        )
    weights = np.ones(len(x)) if sigma is None else 1 / sigma**2
    design = np.column_stack([np.ones(len(x)), np.log(x)])
    inverse = np.linalg.inv(design.T @ (weights[:, None] * design))
    log_a, exponent = inverse @ design.T @ (weights * np.log(y))
    r = np.log(y) - design @ [log_a, exponent]
    scatter = float(np.sum(weights * r**2) / (len(x) - 2))
    deviations = [v - np.average(v, weights=weights) for v in (np.log(x), np.log(y))]
    (xx, xy), (_, yy) = ([float(np.sum(weights * a * b)) for b in deviations] for a in deviations)
    pearson = xy / np.sqrt(xx * yy) if xx * yy > 0 else float("nan")
    return PowerLaw(
        float(log_a),
        float(exponent),
        inverse * scatter,
        len(x) - 2,
        None if sigma is None else scatter,
        float(pearson),
    )
