"""Fits any function to log losses by least squares, many rows of parameters and losses at once.

`solver` has the derivatives of a sum of powers; this one takes them by differences, for the forms
that are compared with it. Refits to hundreds of noisy copies of the losses are one array program.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Array = np.ndarray

ITERATIONS = 60
STEP = 1e-6  # of the differences
MOST_DAMPING = 1e9
STALLED = 1e-6  # share of its cost by which a row must improve to go on


def solve(
    function: Callable[[Float[Array, "r p"]], Float[Array, "r n"]],
    logy: Float[Array, "*r n"],
    weights: Float[Array, " n"],
    start: Float[Array, "r p"],
    bounds: tuple[Float[Array, " p"], Float[Array, " p"]],
    iterations: int = ITERATIONS,
) -> tuple[Float[Array, "r p"], Float[Array, " r"]]:
    """Minimizes the weighted sum of squared residuals from all rows of `start`.

    The method is Levenberg-Marquardt with bounds.

    Args:
      function: log losses of rows of parameters.
      logy: measured log losses; with a leading axis, different ones for each row.

    Returns:
      The parameters and sums of squares of all rows.
    """
    lower, upper = bounds
    theta = np.clip(start, lower, upper)
    count, size = theta.shape
    logy = np.broadcast_to(logy, (count, logy.shape[-1]))
    value = function(theta)
    cost = np.sum(weights * (logy - value) ** 2, axis=1)
    damping = np.full(count, 1e-3)
    active = np.ones(count, bool)
    for _ in range(iterations):
        rows = np.flatnonzero(active)
        if not len(rows):
            break
        here, r = theta[rows], logy[rows] - value[rows]

        # Slopes by differences, away from the nearer bound.
        step = STEP * np.maximum(np.abs(here), 1.0)
        step = np.where(here + step > upper, -step, step)
        moved = here[:, None] + step[:, None] * np.eye(size)
        slopes = function(moved.reshape(-1, size)).reshape(len(rows), size, -1)
        slopes = (slopes - value[rows][:, None]) / step[..., None]

        gradient = -((slopes * weights) @ r[..., None])[..., 0]
        held = ((here <= lower) & (gradient > 0)) | ((here >= upper) & (gradient < 0))
        held |= upper <= lower
        normal = (slopes * weights) @ slopes.swapaxes(1, 2)
        normal = np.where(held[:, None] | held[:, :, None], 0, normal)
        diagonal = np.einsum("rpp->rp", normal)
        ridge = damping[rows, None] * diagonal + 1e-12 * (1 + diagonal.max(1, keepdims=True)) + held
        change = np.linalg.solve(
            normal + ridge[:, :, None] * np.eye(size), -np.where(held, 0, gradient)[..., None]
        )[..., 0]
        new = np.clip(here + np.clip(change, -2.0, 2.0), lower, upper)

        # Rows that improved take the step; the others search nearer to where they are.
        new_value = function(new)
        new_cost = np.sum(weights * (logy[rows] - new_value) ** 2, axis=1)
        better = new_cost < cost[rows]
        gain = cost[rows] - new_cost
        active[rows[better & (gain <= STALLED * cost[rows])]] = False
        damping[rows] = np.where(better, np.maximum(damping[rows] / 5, 1e-10), damping[rows] * 5)
        active[rows[damping[rows] > MOST_DAMPING]] = False
        taken = rows[better]
        theta[taken], value[taken], cost[taken] = new[better], new_value[better], new_cost[better]
    return theta, cost
