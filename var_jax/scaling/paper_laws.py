"""The scaling laws that VAR reports (section 4.2), for comparison.

The Pearson correlations that the paper reports are -0.998 (size) and -0.99 (compute).
"""

import numpy as np
from jaxtyping import Float

# (factor, unit of x, exponent) stands for (factor x / unit)^-exponent. The losses are cross-entropy
# minus an irreducible part that the paper does not state: about 4.5 nats for the last scale and 5
# for all scales. Nothing is subtracted from the error rates.
LAWS = {
    ("loss_last", "params"): (2.0, 1e9, 0.23),
    ("loss_mean", "params"): (2.5, 1e9, 0.20),
    ("err_last", "params"): (4.9e2, 1e9, 0.016),
    ("err_mean", "params"): (6.5e2, 1e9, 0.010),
    ("loss_last", "compute"): (2.2e-5, 1e15, 0.13),
    ("loss_mean", "compute"): (1.5e-5, 1e15, 0.16),
    ("err_last", "compute"): (8.1e-2, 1e15, 0.0067),
    ("err_mean", "compute"): (4.4e-2, 1e15, 0.011),
}
# From the smallest to the largest of the paper's 12 models: parameters, and
# `flops.train_flops_per_image` times the images of 200 and 350 epochs of ImageNet.
FITTED_RANGES = {"params": (18.5e6, 2.0e9), "compute": (1.5e19, 2.5e21)}
IRREDUCIBLE = {"loss_last": 4.5, "loss_mean": 5.0, "err_last": 0.0, "err_mean": 0.0}


def evaluate(column: str, x_name: str, x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns the published law's reducible loss or error rate at x parameters or training FLOPs.

    Args:
      column: "loss_last", "loss_mean", "err_last" or "err_mean".
      x_name: "params" or "compute".
    """
    factor, unit, exponent = LAWS[column, x_name]
    return (factor * np.asarray(x) / unit) ** -exponent
