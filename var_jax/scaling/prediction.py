"""Predicts the loss of a model size or a compute budget that has not been run."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from var_jax.errors import UserError
from var_jax.scaling import frontier, laws, profile_intervals
from var_jax.scaling.analysis import Law
from var_jax.scaling.select_runs import Sample
from var_jax.scaling.solver import Array

# A prediction this many decades beyond the runs gets an extrapolation warning.
EXTRAPOLATION_DECADES = 1.0


def predict(
    fitted_laws: Mapping[str, Law], cost: frontier.Cost | None, at: Mapping[str, float]
) -> list[dict]:
    """Predicts the loss at `at` by every law whose inputs it gives.

    From a compute budget, a joint law also predicts the optimal size and number of tokens.

    Args:
      fitted_laws: fitted laws by key.
      cost: training FLOPs per token, which joint laws need for a compute budget.
      at: values of params, of compute, or of params and tokens.

    Returns:
      One dict per law with "law", "at", "loss" and "warnings". "loss" has the "value", the "ci95"
      of the law and the "new_run95" of a single new run. Optima have "optimal_params" and
      "optimal_tokens" too.

    Raises:
      UserError: no law takes these inputs.
    """
    out = []
    for key, law in fitted_laws.items():
        inputs = law.sample.inputs
        if set(inputs) == set(at):
            x = np.array([at[name] for name in inputs])
            out.append(
                {
                    "law": key,
                    "at": dict(at),
                    "loss": _loss_prediction(law, x),
                    "warnings": extrapolation_warnings(law.sample, x),
                }
            )
        elif set(at) == {"compute"} and len(inputs) == 2 and cost is not None:
            out.append(_optimum(key, law, cost, at["compute"]))
    if not out:
        names = {" and ".join(law.sample.inputs) for law in fitted_laws.values()}
        known = " or ".join(sorted(names))
        remedy = (
            f"give {known}" if known else "every law was refused: run without --predict to see why"
        )
        raise UserError(f"--predict {' and '.join(at)}: no law takes that; {remedy}")
    return out


def _loss_prediction(law: Law, x) -> dict:
    if not law.has_intervals:
        nothing = [None, None]
        value = float(law.fit.predict(x[None])[0])
        return {"value": value, "ci95": nothing, "new_run95": nothing}
    profile = profile_intervals.profile_prediction(law.likelihood, x)
    return {
        "value": profile.value,
        "ci95": profile.interval.tolist(),
        "new_run95": profile.new_run_interval.tolist(),
    }


def _optimum(key: str, law: Law, cost: frontier.Cost, compute: float) -> dict:
    best = frontier.optimum(law.fit.theta[None], cost, compute)[0]
    ends = _optimum_intervals(law, cost, compute) if np.isfinite(best).all() else None
    result: dict = {"law": key, "at": {"compute": compute}}
    for i, name in enumerate(("optimal_params", "optimal_tokens")):
        result[name] = {"value": float(best[i])}
        if ends is not None:
            result[name]["ci95"] = ends[i].tolist()
    if not np.isfinite(best).all():
        return {
            **result,
            "loss": None,
            "warnings": ["no-optimum: FLOPs per token do not rise with params"],
        }
    notes = extrapolation_warnings(law.sample, best)
    if cost.scatter > 0.05:
        notes.append(
            f"uneven-cost: FLOPs per token scatter by {cost.scatter:.0%} about a power law of "
            "params"
        )
    return {**result, "loss": _loss_prediction(law, best), "warnings": notes}


def _optimum_intervals(law: Law, cost: frontier.Cost, compute: float) -> Float[Array, "2 2"]:
    """Returns the 95 % intervals of the optimal params and tokens, by profile likelihood.

    The tokens are those that the budget leaves, so their interval follows from that of params.
    """

    def log_params(theta):
        raw = laws.shift(theta, law.likelihood.mean)
        return np.log(frontier.optimum(raw, cost, compute)[:, 0])

    ends = np.exp(profile_intervals.profile_quantity(law.likelihood, log_params))
    return np.stack([ends, compute / cost.per_token(ends[::-1])])


def extrapolation_warnings(sample: Sample, x: Float[Array, " j"]) -> list[str]:
    """Returns a warning for each input that lies far beyond those of the runs."""
    notes = []
    for name, values, value in zip(sample.inputs, sample.x.T, x, strict=True):
        beyond = max(np.log10(value / values.max()), np.log10(values.min() / value))
        if beyond > EXTRAPOLATION_DECADES:
            notes.append(
                f"extrapolation: {name} {value:.3g} lies {beyond:.1f} decades beyond the runs"
            )
    return notes
