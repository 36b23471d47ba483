"""Refuses the interval of a frontier's floor where its runs are too noisy for it.

An envelope of noisy runs has points that share their noise, and follows the luckiest run where
several sizes are about equally good. Its own scatter shows little of that: an interval of E that
takes it for the noise is too short. docs/results/interval_coverage.md has how often.
"""

from collections.abc import Mapping

import numpy as np

from var_jax.scaling.analysis import Law

# Noise of the runs over the drop of the frontier's log loss. Of 60 grids of 48 runs E was held in
# 92 % at 0.0056, in 88 % at 0.0094 and in 87 % at 0.0188 (var_jax.studies.frontier_coverage).
TOO_NOISY = 0.0075


def refuse_floor(law: Law, joint: Mapping | None):
    """Withholds E's interval in a law's entry of fit.json, with a warning, if the runs are noisy.

    Args:
      law: a law of compute; one of single runs is left as it is.
      joint: the entry of the joint law of the same losses, which knows the runs' noise, if any.
    """
    if not law.sample.curves or law.summary["E"].get("given"):
        return
    noise = None if joint is None else joint.get("noise")
    if noise is None:
        law.summary["warnings"].append(
            "frontier-noise-unknown: no joint law of params and tokens tells how much the runs "
            "scatter; where it is more than "
            f"{TOO_NOISY:.2%} of the frontier's drop in log loss, the intervals are too short"
        )
        return
    drop = float(np.log(law.sample.y.max() / law.sample.y.min()))
    if noise <= TOO_NOISY * drop:
        return
    law.summary["E"]["ci95"] = [None, None]
    law.summary["warnings"].append(
        f"noisy-frontier: runs scatter by {noise:.2%} about the joint law, {noise / drop:.1%} of "
        "the frontier's drop in log loss: an interval of E from an envelope of such runs is too "
        f"short, and is not given (limit {TOO_NOISY:.2%}); those of A, alpha and predictions are "
        "somewhat too short as well; see the joint law's"
    )
    law.summary.pop("alpha_given_E", None)
