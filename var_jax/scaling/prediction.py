"""What fitted laws say about a size or a budget that has not been run."""

from collections.abc import Mapping

import numpy as np

from var_jax.errors import UserError
from var_jax.scaling import frontier, intervals
from var_jax.scaling.analysis import Law
from var_jax.scaling.select_runs import Sample

FAR = 1.0  # decades beyond the runs at which a prediction is called an extrapolation


def predict(
    found: Mapping[str, Law], price: frontier.Cost | None, at: Mapping[str, float]
) -> list[dict]:
    """Predictions of every law that `at` is enough for: params, compute, or params and tokens.

    From a compute budget, joint laws give the optimal size and tokens too.

    Returns:
      each with "law", "at", "loss" {"value", "ci95" of the law, "new_run95" of one run},
      "warnings", and for optima "optimal_params" and "optimal_tokens".

    Raises:
      UserError: no law takes these inputs.
    """
    out = []
    for key, law in found.items():
        inputs = law.sample.inputs
        if set(inputs) == set(at):
            x = np.array([at[name] for name in inputs])
            out.append(
                {"law": key, "at": dict(at), "loss": _loss(law, x), "warnings": _far(law.sample, x)}
            )
        elif set(at) == {"compute"} and len(inputs) == 2 and price is not None:
            out.append(_optimum(key, law, price, at["compute"]))
    if not out:
        known = " or ".join(sorted({" and ".join(law.sample.inputs) for law in found.values()}))
        remedy = (
            f"give {known}" if known else "every law was refused: run without --predict to see why"
        )
        raise UserError(f"--predict {' and '.join(at)}: no law takes that; {remedy}")
    return out


def _loss(law: Law, x) -> dict:
    _, ci, run = intervals.profile_prediction(law.like, x)
    return {
        "value": float(law.fit.predict(x[None])[0]),
        "ci95": ci.tolist(),
        "new_run95": run.tolist(),
    }


def _optimum(key: str, law: Law, price: frontier.Cost, compute: float) -> dict:
    best = frontier.optimum(law.fit.theta[None], price, compute)[0]
    result: dict = {"law": key, "at": {"compute": compute}}
    for i, name in enumerate(("optimal_params", "optimal_tokens")):
        result[name] = {"value": float(best[i])}
        if law.samples is not None:
            ends = np.nanquantile(
                frontier.optimum(law.samples, price, compute)[:, i], (0.025, 0.975)
            )
            result[name]["ci95"] = ends.tolist()
    if not np.isfinite(best).all():
        return {
            **result,
            "loss": None,
            "warnings": ["no-optimum: FLOPs a token do not rise with params"],
        }
    notes = _far(law.sample, best)
    if price.scatter > 0.05:
        notes.append(
            f"uneven-cost: FLOPs a token scatter by {price.scatter:.0%} about a power law of params"
        )
    return {**result, "loss": _loss(law, best), "warnings": notes}


def _far(sample: Sample, x) -> list[str]:
    notes = []
    for name, values, value in zip(sample.inputs, sample.x.T, x, strict=True):
        beyond = max(np.log10(value / values.max()), np.log10(values.min() / value))
        if beyond > FAR:
            notes.append(
                f"extrapolation: {name} {value:.3g} lies {beyond:.1f} decades beyond the runs"
            )
    return notes
