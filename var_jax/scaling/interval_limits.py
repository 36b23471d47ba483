"""How far the likelihood may fall at the ends of an interval, by what the runs leave of freedom."""

import numpy as np
from jaxtyping import Float
from scipy import special

from var_jax.scaling.solver import Array

# Degrees of freedom that heavy tails take, and noise that grows for small runs. Each is one fitted
# number, but that they are chosen where they seem clear makes intervals of 30 runs a little shorter
# than their coverage allows, which a second degree makes up for.
NOISE_DEGREES = 2.0
# Share of the degrees of freedom that is left of fewer than `FEW`, where runs are too few to show
# surely whether their noise grows for small ones. Noise of unequal sizes is known less well than
# their number says; 10 runs whose noise differs by a factor of 4 need this much.
LEFT_OF_FEW, FEW = 0.85, 20


def rise(
    tails: Float[Array, " k"],
    runs: float,
    freedom: float | Float[Array, " k"],
    of_quantities: Float[Array, " k"] | None = None,
) -> Float[Array, " k"]:
    """Returns the rises of the negative log likelihood at the ends of intervals.

    Args:
      tails: probabilities beyond the ends.
      runs: number of runs, n.
      freedom: degrees of freedom, n - p, of all or of each end's sweep.
      of_quantities: degrees of freedom of each end's quantity, if fewer.
    """
    quantiles = special.stdtrit(freedom if of_quantities is None else of_quantities, 1 - tails)
    return runs / 2 * np.log1p(quantiles**2 / freedom)


def degrees_of_freedom(
    runs: float, fitted: int, tails: Float[Array, "*s"], growth: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    """Returns the degrees of freedom that are left of the runs, n - p, at least one if any.

    Args:
      fitted: number of the law's fitted parameters.
      tails: degrees of freedom of Student's t; if finite they are fitted too.
      growth: how the noise grows for small runs; if not zero it is fitted too.
    """
    left = runs - fitted
    counted = left if left >= FEW else LEFT_OF_FEW * left
    taken = NOISE_DEGREES * (np.isfinite(tails).astype(float) + (growth != 0))
    return np.maximum(counted - taken, min(left, 1.0))
