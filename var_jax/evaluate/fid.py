"""Fréchet distance of two Gaussians.

Source: Heusel et al., arXiv 1706.08500, equation 6; Dowson and Landau 1982.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float


class Gaussian(NamedTuple):
    """A mean and a covariance, such as published statistics of images' features.

    Attributes:
      mean: float64.
      covariance: float64, symmetric.
    """

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]


class Moments(NamedTuple):
    """The first two moments of a set of rows, such as features of images.

    Attributes:
      count: number of rows.
      mean: their mean, float64.
      scatter: sum of the outer products of the rows minus their mean, float64.
    """

    count: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]

    @classmethod
    def empty(cls, dimensions: int) -> "Moments":
        """Returns the moments of no rows."""
        return cls(0, np.zeros(dimensions), np.zeros((dimensions, dimensions)))

    @classmethod
    def of(
        cls, rows: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"] | None = None
    ) -> "Moments":
        """Returns the moments of rows, each counted as often as its integer weight."""
        rows = np.asarray(rows, np.float64)
        weights = np.ones(len(rows)) if weights is None else weights
        count = int(weights.sum())
        if not count:
            return cls.empty(rows.shape[1])
        mean = weights @ rows / count
        scaled = (rows - mean) * np.sqrt(weights)[:, None]
        return cls(count, mean, scaled.T @ scaled)

    def merge(self, other: "Moments") -> "Moments":
        """Returns the moments of both sets together (Chan, Golub and LeVeque 1983).

        It loses no digits, as a plain sum of squares would.
        """
        count = self.count + other.count
        if not other.count or not self.count:
            return self if self.count else other
        difference = other.mean - self.mean
        scatter = (
            self.scatter
            + other.scatter
            + np.outer(difference, difference) * (self.count * other.count / count)
        )
        return Moments(count, self.mean + difference * (other.count / count), scatter)

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Returns the unbiased covariance of at least two rows, as in the published FID code."""
        return self.scatter / (self.count - 1)


ROWS_AT_ONCE = 4096  # rows that are converted to float64 at once


class Frechet:
    """Fréchet distances to one reference, the root of whose covariance is computed once.

    The distance is |m - m'|^2 + tr C + tr C' - 2 tr (C C')^(1/2), where tr (C C')^(1/2) is computed
    as the sum of the roots of the eigenvalues of C^(1/2) C' C^(1/2). That matrix is symmetric and
    positive semi-definite: no complex roots come up, no offset is added to the covariances, and the
    result holds for singular ones too (fewer rows than dimensions), to about 1e-8 of the variance
    per dimension, the root of a rounding error. Eigenvalues below zero are rounding errors of zero
    and are set to zero.
    """

    def __init__(self, reference: Moments | Gaussian):
        self.reference = reference
        values, vectors = scipy.linalg.eigh(reference.covariance, driver="evd")
        self._root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

    def distance(self, other: Moments | Gaussian) -> float:
        """Returns the Fréchet distance of another set from the reference."""
        covariance = other.covariance
        values = scipy.linalg.eigvalsh(self._root @ covariance @ self._root)
        mixed = np.sqrt(np.maximum(values, 0)).sum()
        between_means = np.sum((self.reference.mean - other.mean) ** 2)
        distance = between_means + np.trace(self.reference.covariance) + np.trace(covariance)
        distance -= 2 * mixed
        return float(np.maximum(distance, 0))  # equal sets come out a rounding error below zero

    def standard_error(self, rows: Float[np.ndarray, "n d"], resamples: int, seed: int) -> float:
        """Returns the bootstrap standard error of the distance of these rows.

        It is the standard deviation over resamples of the rows; the reference stays fixed.
        """
        rng, distances = np.random.default_rng(seed), []
        for _ in range(resamples):
            counts = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)))
            weights = counts.astype(np.float64)
            distances.append(self.distance(moments(rows, weights)))
        return float(np.std(distances, ddof=1))


def moments(
    rows: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"] | None = None
) -> Moments:
    """Returns the moments of float32 rows as `Moments.of` does, without a float64 copy of all."""
    total = Moments.empty(rows.shape[1])
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = None if weights is None else weights[start : start + ROWS_AT_ONCE]
        total = total.merge(Moments.of(rows[start : start + ROWS_AT_ONCE], part))
    return total


def frechet_distance(a: Moments | Gaussian, b: Moments | Gaussian) -> float:
    """Returns the distance of two Gaussians, or of two sets of at least two rows each."""
    return Frechet(a).distance(b)
