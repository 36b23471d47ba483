"""Compares forms of a law by their error on held-out largest sizes, with intervals.

The fit alone chooses the form with the most parameters. Here every form is fitted without the
largest size, and without the two largest, and predicts what was left out. The weights of outliers,
the centers of the inputs and the bounds of the parameters come from the runs that remain.

How far the errors would differ under other noise of the same runs says whether the best form can be
told from the others: copies of the losses are drawn around one curve, all forms are fitted to each
copy, and their errors are compared draw by draw. The curve is the form that predicts the held-out
sizes best, fitted to all points. It is the same for all forms, as around its own fit each form
would be the truth and no error would show that it is wrong. It is not the measured losses, which
have noise already: copies of them would have it twice. The noise has the size of the scatter about
the curve, and the degrees of freedom that it leaves. Where the law's likelihood takes small runs
for noisier, or noise for common to runs of one size, so do the copies. All forms weigh small runs
by their noise, but are fitted by squares of single runs where noise is common to a size: the copies
show what such fits do under it. The intervals are those of what is measured in such copies. The
error of the measured losses is one draw more, and lies outside about one interval in twenty, or in
more where the curve is not the truth.

docs/results/law_forms.md has how often planted forms are found.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from var_jax.scaling import analysis, estimate, form_fit, lack_of_fit, losses, profile_intervals
from var_jax.scaling.analysis import Law
from var_jax.scaling.form_fit import FittedForm, Points
from var_jax.scaling.forms import FORMS, REPORTED, Form
from var_jax.scaling.select_runs import MIN_SIZES
from var_jax.scaling.solver import Array

DRAWS = 100
HOLDOUTS = {"largest": 1, "two_largest": 2}
TIE_DIGITS = 4  # of a relative error


class Comparison(NamedTuple):
    """Forms of a law, compared.

    Attributes:
      entry: "forms" and "best_form" of the law's entry in fit.json.
      better: the form that predicts held-out sizes best, fitted to all points, if the runs tell the
        law's own form from it; never of a frontier.
    """

    entry: dict
    better: FittedForm | None


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """What a form that was fitted without the largest sizes predicts of them."""

    fitted: FittedForm

    @property
    def _logx(self) -> Float[Array, "m j"]:
        points = self.fitted.points
        return (points.z + points.center)[~points.inside]

    @property
    def log_errors(self) -> Float[Array, " m"]:
        """Predicted minus measured log losses."""
        points = self.fitted.points
        return self.fitted.log_loss(self._logx) - points.logy[~points.inside]

    @property
    def error(self) -> float:
        """Mean relative error."""
        return float(np.mean(np.abs(np.expm1(self.log_errors))))

    def of_copies(self, copies: Float[Array, "d n"]) -> Float[Array, " d"]:
        """Returns the mean relative errors in noisy copies of all losses."""
        off = self.fitted.of_copies(copies, self._logx) - copies[:, ~self.fitted.points.inside]
        return np.mean(np.abs(np.expm1(off)), axis=1)


def compare(law: Law, floor: float | None = None, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Returns how forms of a law predict its largest sizes.

    Call it after `analysis.analyze`, for a law whose form is in doubt.

    Args:
      floor: a fixed value of E, or None where it is fitted.
      draws: number of noisy copies of the losses.
    """
    noise = law.summary["noise"], law.summary["noise_degrees_of_freedom"]
    every_row = np.ones(len(law.sample.y), bool)
    points = form_fit.points(law.sample, every_row, law.fit, *noise, floor)
    group, sizes = law.sample.group.astype(str), law.sample.x[:, 0]
    by_size = sorted(set(group), key=lambda name: -sizes[group == name].max())
    left_out = {name: np.isin(group, by_size[:count]) for name, count in HOLDOUTS.items()}

    forms = FORMS[points.z.shape[1]]
    reasons = {form: _too_few(form, law, every_row, points) for form in forms}
    fits = {form: form_fit.fit(form, points) for form in forms if reasons[form] is None}
    refused = {
        name: {form: _too_few(form, law, ~out, points) for form in fits}
        for name, out in left_out.items()
    }
    held: dict[str, dict[Form, HeldOut]] = {}
    for name, out in left_out.items():
        judged = [form for form in fits if refused[name][form] is None]
        rest = _rest(law, ~out, floor, name) if judged else points
        held[name] = {form: HeldOut(form_fit.fit(form, rest)) for form in judged}

    used = [name for name in HOLDOUTS if len(held[name]) == len(held["largest"])]
    errors = {
        form: float(np.mean([held[name][form].error for name in used])) for form in held["largest"]
    }
    # Of forms with the same error, such as M4 at its limit, the one with fewer parameters.
    best = min(
        errors,
        key=lambda form: (round(errors[form], TIE_DIGITS), len(form.names)),
        default=None,
    )
    noisy: dict[str, dict[Form, Float[Array, " d"]]] = {}
    if best is not None:
        copies = fits[best].copies(draws, seed)
        noisy = {
            name: {form: part.of_copies(copies) for form, part in parts.items()}
            for name, parts in held.items()
        }
    entries: dict[str, dict] = {}
    for form in forms:
        entries[form.name] = entry = {"form": form.text, "source": form.source}
        if form not in fits:
            entry["refused"] = reasons[form]
            continue
        fitted = fits[form]
        squares = fitted.residuals**2
        entry["parameters"] = form.published(fitted.theta, points.center)
        entry["in_sample"] = float(np.sqrt(np.average(squares, weights=points.weights)))
        entry["lack_of_fit"] = lack_of_fit.entry(_tested(law, fitted))
        for name in HOLDOUTS:
            part = entry if name == "largest" else entry.setdefault(name, {})
            if form not in held[name]:
                part["refused"] = refused[name][form]
                continue
            part["holdout_relative_error"] = held[name][form].error
            part["ci95"] = _interval(noisy[name][form])
        if form in held["largest"]:
            entry["error_over_drop"] = _over_drop(law, held["largest"][form])
    if best is None:
        return Comparison({"forms": entries, "best_form": None}, None)
    averaged = {form: np.mean([noisy[name][form] for name in used], axis=0) for form in errors}
    chosen = _best(best, errors, averaged, used)
    own = REPORTED[points.z.shape[1]]
    is_better = own in errors and own is not best and own.name not in chosen["not_told_from"]
    # The points of an envelope are no runs, so that intervals from copies of them are too short.
    is_better = is_better and not law.sample.curves
    return Comparison({"forms": entries, "best_form": chosen}, fits[best] if is_better else None)


def _tested(law: Law, fitted: FittedForm) -> lack_of_fit.LackOfFit | None:
    """Returns the test of a form by repeated runs, as that of the law itself."""
    r, maps = fitted.residuals[None], law.fit.whitening
    return lack_of_fit.examine(
        np.log(law.sample.x),
        r if maps is None else maps(r),
        law.sample.weights,
        fitted.points.free(fitted.form),
    )


def _rest(law: Law, inside: Bool[Array, " n"], floor: float | None, name: str) -> Points:
    """Returns the points with what is known of them from the kept ones alone."""
    remaining = law.sample.where(inside)
    fit = law.without_largest if name == "largest" else None
    if fit is None:
        fit = estimate.fit(analysis.problem(remaining, losses.StudentT()), floor, check=False)
    likelihood = profile_intervals.likelihood(analysis.problem(remaining, fit.loss), fit, floor)
    noise = likelihood.noise, likelihood.noise_freedom
    return form_fit.points(law.sample, inside, fit, *noise, floor)


def _too_few(form: Form, law: Law, rows: Bool[Array, " n"], points: Points) -> str | None:
    """Returns why these rows do not allow the form, or None."""
    free = points.free(form)
    runs = law.sample.weights[rows].sum()
    # An envelope's grid has any number of points, of which its runs are what is independent.
    sizes = len(np.unique(law.sample.x[rows, 0]))
    if law.sample.curves:
        sizes = len(set(law.sample.group[rows]))
    where = "" if rows.all() else "without the held-out sizes "
    if runs < free + 1 - 1e-9:
        return f"few-runs: {where}{runs:.3g} runs; {free + 1} are needed for {free} parameters"
    if sizes < MIN_SIZES:
        name = "curves" if law.sample.curves else law.sample.inputs[0]
        return f"few-sizes: {where}{sizes} different {name}; {MIN_SIZES} are needed"
    if law.sample.x.shape[1] == 1 and not law.sample.curves and sizes <= free:
        return f"few-sizes: {where}{sizes} sizes; {free + 1} are needed for {free} parameters"
    return None


def _interval(noisy: Float[Array, " d"]) -> list[float]:
    return np.quantile(noisy, [0.025, 0.975]).tolist()


def _over_drop(law: Law, held: HeldOut) -> float | None:
    """Returns the error on the largest size over its drop from the naive prediction, if any."""
    holdout = law.summary["holdout"]
    if holdout is None or holdout["naive"] <= holdout["actual"]:
        return None
    measured = np.exp(held.fitted.points.logy[~held.fitted.points.inside])
    size = np.mean(np.abs(measured * np.expm1(held.log_errors)))
    return float(size / (holdout["naive"] - holdout["actual"]))


def _best(
    best: Form,
    errors: Mapping[Form, float],
    noisy: Mapping[Form, Float[Array, " d"]],
    used: list[str],
) -> dict:
    """Returns the entry "best_form" of fit.json.

    The error is the mean over both hold-outs where all forms that predict the largest size predict
    the two largest too, else that of the largest alone. Two forms are told apart if the 95 %
    interval of the difference of their errors, over the same draws of noise, is above zero.
    """
    close, differences = [], {}
    for form in errors:
        if form is best:
            continue
        ends = _interval(noisy[form] - noisy[best])
        differences[form.name] = {"value": errors[form] - errors[best], "ci95": ends}
        if ends[0] <= 0:
            close.append(form.name)
    words = {"largest": "the largest size", "two_largest": "the two largest sizes"}
    text = f"{best.name} predicts {' and '.join(words[name] for name in used)} best"
    text += f" ({errors[best]:.2%})"
    if len(errors) == 1:
        text += "; no other form could be judged"
    elif close:
        text += f"; the runs do not distinguish it from {', '.join(close)}"
    else:
        text += ", and the runs distinguish it from every other form"
    return {
        "name": best.name,
        "distinguishable": len(errors) > 1 and not close,
        "not_told_from": close,
        "error_above_best": differences,
        "statement": text,
    }
