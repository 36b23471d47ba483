"""Mean and covariance of features in float64, gathered batch by batch."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Moments(NamedTuple):
    """Attributes:
      count: rows seen.
      mean: (d,) float64.
      scatter: (d, d) float64, the sum of outer products of the rows less their mean.
    """

    count: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]

    @classmethod
    def empty(cls, dimensions: int) -> "Moments":
        return cls(0, np.zeros(dimensions), np.zeros((dimensions, dimensions)))

    @classmethod
    def of(cls, rows: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"] | None = None) -> "Moments":
        """Of rows, each counted as often as its whole-number weight says."""
        rows = np.asarray(rows, np.float64)
        weights = np.ones(len(rows)) if weights is None else weights
        count = int(weights.sum())
        if not count:
            return cls.empty(rows.shape[1])
        mean = weights @ rows / count
        scaled = (rows - mean) * np.sqrt(weights)[:, None]
        return cls(count, mean, scaled.T @ scaled)

    def merge(self, other: "Moments") -> "Moments":
        """Of both sets (Chan, Golub and LeVeque 1983), which loses no digits as a sum of squares would."""
        count = self.count + other.count
        if not other.count or not self.count:
            return self if self.count else other
        apart = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, self.mean + apart * (other.count / count), scatter)

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Unbiased, as the published FID code takes it; of two rows at least."""
        return self.scatter / (self.count - 1)
