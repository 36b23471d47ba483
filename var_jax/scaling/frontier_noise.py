"""Withholds the intervals of a frontier's law where its runs are too noisy, for the joint law's.

An envelope of noisy runs has points that share their noise, and follows the luckiest run where
several sizes are about equally good. Its own scatter shows little of that: intervals that take it
for the noise are too short. docs/results/interval_coverage.md has how often. The joint law of the
same runs knows their noise, and has a frontier too, of the same E and of an exponent that follows
from its own: its intervals are given beside the envelope's law, and instead of its intervals.
"""

import numpy as np

from var_jax.scaling import lack_of_fit, profile_intervals
from var_jax.scaling.analysis import Law
from var_jax.scaling.frontier import Cost
from var_jax.scaling.select_runs import Sample

# Noise of the runs over the drop of the frontier's log loss. docs/results/interval_coverage.md has
# the shares of planted laws that intervals hold below it (var_jax.studies.frontier_coverage).
TOO_NOISY = 0.002
UNKNOWN = "frontier-noise-unknown"
NOISY = "noisy-frontier"
PARAMETERS = ("E", "A", "alpha")


def noise_over_drop(noise: float, sample: Sample) -> float:
    """Returns the noise of log losses over the drop of a frontier's log loss."""
    return noise / float(np.log(sample.y.max() / sample.y.min()))


def is_right(joint: Law, *, has_better_form: bool) -> bool:
    """Returns whether a joint law is determined and nothing speaks against it.

    Args:
      has_better_form: whether another form is told from it and predicts better.
    """
    determined = "undetermined" not in joint.summary
    return determined and not has_better_form and not lack_of_fit.is_misfit(joint.summary)


def withhold(law: Law, joint: Law | None, cost: Cost | None, *, has_better_form: bool = False):
    """Withholds the intervals in a law's entry of fit.json, with a warning, if the runs are noisy.

    "by_joint_law" is E and alpha of the joint law's own frontier, where that law is determined and
    nothing speaks against it.

    Args:
      law: a law of compute; one of single runs is left as it is.
      joint: the joint law of the same losses, which knows the runs' noise, if any.
      cost: training FLOPs per token, if they are known.
      has_better_form: whether another form is told from the joint law and predicts better.
    """
    if not law.sample.curves:
        return
    if joint is None:
        _withhold(
            law,
            f"as the noise of the runs is not known ({UNKNOWN})",
            f"{UNKNOWN}: no joint law of params and tokens tells how much the runs scatter; where "
            f"it is more than {TOO_NOISY:.2%} of the frontier's drop in log loss, intervals from "
            "an envelope are too short, so that none is given",
        )
        return
    if cost is not None and cost.slope > 0 and is_right(joint, has_better_form=has_better_form):
        law.summary["by_joint_law"] = {
            "E": {name: joint.summary["E"][name] for name in ("value", "ci95")},
            "alpha": exponent(joint.likelihood, cost),
        }
    noise, by = joint.summary["noise"], "about the joint law"
    if lack_of_fit.is_misfit(joint.summary):
        noise /= joint.summary["lack_of_fit"]["scatter_over_repeated_runs"]
        by = "as repeated runs do"
    ratio = noise_over_drop(noise, law.sample)
    if ratio <= TOO_NOISY:
        return
    instead = "those of the joint law's own frontier stand beside it"
    _withhold(
        law,
        f"as the runs are too noisy ({NOISY})",
        f"{NOISY}: runs scatter by {noise:.2%}, {by}, which is {ratio:.1%} of the "
        f"frontier's drop in log loss (limit {TOO_NOISY:.2%}): intervals from an envelope of such "
        "runs are too short, and are not given"
        + (f"; {instead}" if "by_joint_law" in law.summary else ""),
    )


def _withhold(law: Law, reason: str, warning: str):
    """Withholds the intervals for a reason, and puts a warning in place of those about them."""
    for name in PARAMETERS:
        if not law.summary[name].get("given"):
            law.summary[name]["ci95"] = [None, None]
    law.summary.pop("alpha_given_E", None)
    law.summary["interval_method"] = f"none, {reason}"
    of_intervals = ("E-undetermined", "alpha-unbounded", "no-interval")
    law.summary["warnings"] = [
        note for note in law.summary["warnings"] if not note.startswith(of_intervals)
    ]
    law.summary["warnings"].append(warning)


def exponent(joint: profile_intervals.Likelihood, cost: Cost) -> dict:
    """Returns the exponent of compute of a joint law's own frontier, with its interval.

    The loss of N and D that cost N^s D falls as compute to the power -alpha beta / (alpha + beta s)
    where it is lowest (Hoffmann et al. 2022, equation 4, for s = 1).
    """

    def log_exponent(theta):
        alpha, beta = theta[:, 2], theta[:, 4]
        return np.log(alpha * beta / (alpha + beta * cost.slope))

    ends = np.exp(profile_intervals.profile_quantity(joint, log_exponent))
    value = float(np.exp(log_exponent(joint.theta[None])[0]))
    return {"value": value, "ci95": ends.tolist()}
