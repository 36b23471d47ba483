"""Fréchet distance of two Gaussians (Heusel et al., arXiv 1706.08500, equation 6; Dowson and Landau
1982)."""

from typing import NamedTuple

import numpy as np
import scipy.linalg
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
    def of(
        cls, rows: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"] | None = None
    ) -> "Moments":
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
        """Of both sets (Chan, Golub and LeVeque 1983), which loses no digits as a sum of squares
        would."""
        count = self.count + other.count
        if not other.count or not self.count:
            return self if self.count else other
        apart = other.mean - self.mean
        scatter = (
            self.scatter
            + other.scatter
            + np.outer(apart, apart) * (self.count * other.count / count)
        )
        return Moments(count, self.mean + apart * (other.count / count), scatter)

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Unbiased, as the published FID code takes it; of two rows at least."""
        return self.scatter / (self.count - 1)


ROWS = 4096  # at once in float64


class Frechet:
    """Distances to one reference, whose root is taken once.

    |m - m'|^2 + tr C + tr C' - 2 tr (C C')^(1/2), where tr (C C')^(1/2) is the sum of the roots of the eigenvalues of
    C^(1/2) C' C^(1/2): symmetric and positive semi-definite, so no complex roots come up and no
    offset is added, and it is right for singular covariances too (fewer rows than dimensions), to
    about 1e-8 of the variance a dimension, the root of a rounding error. Eigenvalues below zero are
    rounding errors of zero, and taken as it.
    """

    def __init__(self, reference: Moments):
        self.reference = reference
        values, vectors = scipy.linalg.eigh(reference.covariance, driver="evd")
        self._root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

    def distance(self, other: Moments) -> float:
        covariance = other.covariance
        values = scipy.linalg.eigvalsh(self._root @ covariance @ self._root)
        mixed = np.sqrt(np.maximum(values, 0)).sum()
        apart = np.sum((self.reference.mean - other.mean) ** 2)
        found = apart + np.trace(self.reference.covariance) + np.trace(covariance) - 2 * mixed
        return float(np.maximum(found, 0))  # equal sets come out a rounding error below zero

    def deviation(self, rows: Float[np.ndarray, "n d"], resamples: int, seed: int) -> float:
        """Standard deviation of the distance over bootstrap resamples of rows, the reference
        fixed."""
        random, distances = np.random.default_rng(seed), []
        for _ in range(resamples):
            weights = random.multinomial(len(rows), np.full(len(rows), 1 / len(rows))).astype(
                np.float64
            )
            distances.append(self.distance(moments(rows, weights)))
        return float(np.std(distances, ddof=1))


def moments(
    rows: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"] | None = None
) -> Moments:
    """`Moments.of` many rows of float32, without a copy of all of them in float64."""
    total = Moments.empty(rows.shape[1])
    for start in range(0, len(rows), ROWS):
        part = None if weights is None else weights[start : start + ROWS]
        total = total.merge(Moments.of(rows[start : start + ROWS], part))
    return total


def frechet_distance(a: Moments, b: Moments) -> float:
    """Between the Gaussians of two sets of at least two rows each."""
    return Frechet(a).distance(b)
