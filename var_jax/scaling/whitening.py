"""Turns the residuals of runs with unequal or shared noise into independent ones of one size.

The noise's standard deviation may change with the size of a run, and runs of one size may have a
part of it in common. The map is linear and of determinant one, so that a likelihood of the mapped
residuals is that of the residuals themselves.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Whitening:
    """The map from residuals to independent ones.

    Attributes:
      place: log of each run's size in standard deviations, from its mean.
      members: 1 where the run in the column belongs to the size in the row.
      deviation: standard deviation of the log of the sizes.
      growth: the standard deviation of the noise is exp(-growth place); it may have a row axis.
      share: fraction of the variance that runs of one size have in common; it may have a row axis.
    """

    place: Float[Array, " n"]
    members: Float[Array, "g n"]
    deviation: float
    growth: Float[Array, "*r"]
    share: Float[Array, "*r"]

    def where(self, rows, count: int) -> "Whitening":
        """Returns the map of the given rows of a batch of `count` fits."""
        growth, share = (
            np.broadcast_to(value, count)[rows] if np.ndim(value) else value
            for value in (self.growth, self.share)
        )
        return dataclasses.replace(self, growth=growth, share=share)

    @property
    def is_shared(self) -> bool:
        """Whether runs of one size share noise, in any row."""
        return bool(np.any(self.share))

    def __call__(self, values: Float[Array, "r *q n"]) -> Float[Array, "r *q n"]:
        """Returns the residuals, or their derivatives, of independent noise."""
        axes = [1] * (values.ndim - 1)
        growth = np.reshape(self.growth, (-1, *axes)) if np.ndim(self.growth) else self.growth
        values = values * np.exp(growth * self.place)
        if not self.is_shared:
            return values
        counts, left = self._mean_left()
        middle = values @ (self.members.T / counts)
        lost = (1 - left).reshape(-1, *axes[1:], len(counts)) if left.ndim > 1 else 1 - left
        factor = np.reshape(self._factor(counts, left), (-1, *axes))
        return factor * (values - (lost * middle) @ self.members)

    def _mean_left(self) -> tuple[Float[Array, " g"], Float[Array, "*r g"]]:
        """Returns the runs of each size, and what the map keeps of their mean residual."""
        counts, share = self.members.sum(axis=1), np.asarray(self.share)[..., None]
        return counts, np.sqrt((1 - share) / (1 - share + share * counts))

    def _factor(self, counts, left) -> Float[Array, "*r"]:
        """Returns the factor that makes the determinant one."""
        return np.exp(-np.log(left).sum(axis=-1) / counts.sum())

    @property
    def exponent(self) -> float:
        """Exponent with which the standard deviation falls as the size grows."""
        return float(self.growth / self.deviation)

    @property
    def unit(self) -> float:
        """Standard deviation of a run of average size, over that of the mapped residuals."""
        return float(1 / (self._factor(*self._mean_left()) * np.sqrt(1 - self.share)))


def independent(logx: Float[Array, "n j"], weights: Float[Array, "*r n"]) -> Whitening:
    """Returns the map that leaves residuals as they are, to be given its growth and share.

    Args:
      logx: log of the inputs; the first is the size.
      weights: weight of each run.
    """
    sizes, weights = logx[:, 0], np.broadcast_to(weights, (len(logx),))
    mean = np.average(sizes, weights=weights)
    deviation = np.sqrt(np.average((sizes - mean) ** 2, weights=weights))
    _, owner = np.unique(np.round(sizes, 6), return_inverse=True)
    members = (np.arange(owner.max() + 1)[:, None] == owner).astype(float)
    place = (sizes - mean) / max(deviation, 1e-12)
    return Whitening(place, members, float(deviation), np.zeros(()), np.zeros(()))


def satterthwaite(
    whitening: Whitening, jacobian: Float[Array, "n p"], slopes: Float[Array, "m p"]
) -> Float[Array, " m"]:
    """Returns the degrees of freedom that the variance of quantities of a law has.

    What runs of one size share is known from the number of sizes, the rest from the number of runs.
    Which of them a quantity depends on is in its variance (Satterthwaite 1946), whose uncertainty
    comes from the Fisher information of both variances under restricted likelihood.

    Args:
      whitening: the map, with one share.
      jacobian: derivatives of the runs' log losses, not yet mapped.
      slopes: derivatives of the quantities by the same parameters.
    """
    # Divided by exp(-growth place), residuals have the variances of known matrices: 1 for each run
    # alone, and `shared` for all pairs of runs of one size.
    scaled = jacobian * np.exp(whitening.growth * whitening.place)[:, None]
    pairs = whitening.members.T @ whitening.members
    shared = whitening.share / (1 - whitening.share)
    inverse = np.linalg.inv(shared * pairs + np.eye(len(pairs)))
    covariance = np.linalg.pinv(scaled.T @ inverse @ scaled)
    influence = inverse @ scaled @ covariance
    # The inverse without the law's directions, as it is in the restricted likelihood.
    outside = inverse - influence @ scaled.T @ inverse
    parts = (outside @ pairs, outside)
    information = [[np.sum(first * second.T) / 2 for second in parts] for first in parts]
    reach = slopes @ influence.T
    slope = np.stack([np.sum((reach @ whitening.members.T) ** 2, axis=1), np.sum(reach**2, axis=1)])
    variance = np.einsum("mp,pq,mq->m", slopes, covariance, slopes)
    spread = np.einsum("im,ij,jm->m", slope, np.linalg.pinv(np.array(information)), slope)
    freedom = 2 * variance**2 / np.maximum(spread, 1e-300)
    return np.clip(freedom, 1.0, len(jacobian) - jacobian.shape[1])
