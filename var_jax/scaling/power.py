"""Fits the pure power law y = A x^b to two columns by weighted least squares on logarithms."""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import special

from var_jax.errors import UserError

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """The fitted power law y = A x^exponent.

    Attributes:
      log_a, exponent: intercept and slope of the line of log y on log x.
      covariance: covariance of (log_a, exponent), with the noise variance estimated from residuals.
      freedom: degrees of freedom, the number of points - 2.
      chi2: reduced chi-square of the given standard deviations (1 when they are right), or None.
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
        """The 95 % interval of the exponent."""
        half = self._t * float(np.sqrt(self.covariance[1, 1]))
        return self.exponent - half, self.exponent + half

    @property
    def a_ci95(self) -> tuple[float, float]:
        """The 95 % interval of the amplitude A."""
        half = self._t * float(np.sqrt(self.covariance[0, 0]))
        return float(np.exp(self.log_a - half)), float(np.exp(self.log_a + half))

    @property
    def _t(self) -> float:
        return float(special.stdtrit(self.freedom, 0.975))

    def predict(self, x: float) -> tuple[float, tuple[float, float]]:
        """Returns the law's value at x and its 95 % interval."""
        direction = np.array([1.0, np.log(x)])
        center = self.log_a + self.exponent * np.log(x)
        half = self._t * float(np.sqrt(max(direction @ self.covariance @ direction, 0)))
        return float(np.exp(center)), (float(np.exp(center - half)), float(np.exp(center + half)))


def fit(
    x: Float[Array, " n"], y: Float[Array, " n"], sigma: Float[Array, " n"] | None = None
) -> PowerLaw:
    """Fits y = A x^exponent.

    Intervals use Student's t with the noise variance estimated from the residuals. `sigma` sets
    only the relative weights of the points, and chi2 says whether its size is right.

    Args:
      sigma: standard deviation of log y.

    Raises:
      UserError: there are fewer than three points, or all have the same x.
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
