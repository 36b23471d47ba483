"""Predicts losses by a form that the runs tell from the reported law.

The reported laws are of one form, for which profile likelihood gives intervals. Where another form
predicts held-out largest sizes better, by more than noise explains (`compare_forms`), its
predictions stand beside theirs. Their intervals are those of noisy copies of the runs.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from scipy import special

from var_jax.scaling import lack_of_fit, prediction, profile_intervals
from var_jax.scaling.analysis import Law
from var_jax.scaling.form_fit import FittedForm
from var_jax.scaling.frontier import Cost
from var_jax.scaling.solver import Array

DRAWS = 400
OUTSIDE = 100.0  # times beyond the sizes of the runs, among which a best size is looked for
GRID = 2001
ONE_SIGMA = (0.15866, 0.84134)  # quantiles of a normal distribution at one standard deviation


def predict(
    laws: Mapping[str, Law],
    better: Mapping[str, FittedForm],
    cost: Cost | None,
    at: Mapping[str, float],
) -> list[dict]:
    """Returns predictions as entries of fit.json, by the forms that take these inputs.

    Args:
      laws: fitted laws by key.
      better: the forms that are better, by the key of the law.
      cost: training FLOPs per token, which forms of two inputs need for a compute budget.
      at: values of params, of compute, or of params and tokens.
    """
    out = []
    for key, form in better.items():
        sample, head = laws[key].sample, {"law": key, "form": form.form.name, "at": dict(at)}
        if set(at) == set(sample.inputs):
            x = np.array([at[name] for name in sample.inputs])
        elif set(at) == {"compute"} and len(sample.inputs) == 2 and cost is not None:
            x = optimum(form, cost, at["compute"], sample.x[:, 0])
            if x is None:
                note = (
                    f"no-optimum: within {OUTSIDE:g} times the runs' sizes the loss has no minimum"
                )
                out.append({**head, "loss": None, "warnings": [note]})
                continue
            head |= {"optimal_params": {"value": x[0]}, "optimal_tokens": {"value": x[1]}}
        else:
            continue
        notes = prediction.extrapolation_warnings(sample, x)
        if is_misfit(laws[key], form):
            notes.append("form-misfit: this form does not describe the runs either (lack-of-fit)")
        out.append({**head, "loss": predicted_loss(form, x), "warnings": notes})
    return out


def is_misfit(law: Law, form: FittedForm) -> bool:
    """Returns whether repeated runs say that a form of the law does not describe the runs."""
    return lack_of_fit.is_misfit(law.summary["forms"][form.form.name])


def predicted_loss(form: FittedForm, x: Float[Array, " j"]) -> dict:
    """Returns the loss at x with its 95 % intervals, as an entry of fit.json."""
    value, deviation = interval(form, x[None])
    noise, freedom = form.noise
    level = (1 + profile_intervals.CONFIDENCE_LEVEL) / 2
    of_law = special.stdtrit(form.freedom_at(np.log(x[None])), level) * deviation
    ends = [of_law, np.hypot(of_law, special.stdtrit(freedom, level) * noise)]
    law, run = (np.exp(value + np.array([-1.0, 1.0]) * end).tolist() for end in ends)
    return {"value": float(np.exp(value)), "ci95": law, "new_run95": run}


def interval(form: FittedForm, x: Float[Array, "1 j"]) -> tuple[float, float]:
    """Returns the log loss at x, and its standard deviation over noisy copies of the runs.

    The deviation is half the distance of the quantiles that lie one from the middle of a normal
    distribution, so that single copies whose fit runs away do not count for more.
    """
    logx = np.log(x)
    copies = form.of_copies(form.copies(DRAWS, seed=0, is_scaled=False), logx)[:, 0]
    low, high = np.quantile(copies, ONE_SIGMA)
    return float(form.log_loss(logx)[0]), float(high - low) / 2


def optimum(
    form: FittedForm, cost: Cost, compute: float, sizes: Float[Array, " n"]
) -> Float[Array, "2"] | None:
    """Returns (params, tokens) of the lowest loss at a compute budget, or None without a minimum.

    Args:
      form: a form of params and tokens.
      sizes: params of the runs, about which the minimum is looked for.
    """
    params = np.geomspace(sizes.min() / OUTSIDE, sizes.max() * OUTSIDE, GRID)
    x = np.stack([params, compute / cost.per_token(params)], axis=1)
    best = int(np.argmin(form.log_loss(np.log(x))))
    return x[best] if 0 < best < GRID - 1 else None
