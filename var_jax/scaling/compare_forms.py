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

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from var_jax.scaling import form_fit, form_holdout, lack_of_fit
from var_jax.scaling.analysis import Law
from var_jax.scaling.form_fit import FittedForm
from var_jax.scaling.form_holdout import HeldOut, HeldOuts
from var_jax.scaling.forms import FORMS, REPORTED, Form
from var_jax.scaling.solver import Array

DRAWS = 100
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
    forms = FORMS[points.z.shape[1]]
    reasons = {form: form_holdout.too_few(form, law, every_row, points) for form in forms}
    fits = {form: form_fit.fit(form, points) for form in forms if reasons[form] is None}
    held = form_holdout.hold_out(law, points, fits)
    # Of forms with the same error, such as M4 at its limit, the one with fewer parameters.
    errors = held.errors
    best = min(
        errors,
        key=lambda form: (round(errors[form], TIE_DIGITS), len(form.names)),
        default=None,
    )
    entries = {form.name: {"form": form.text, "source": form.source} for form in forms}
    for form, reason in reasons.items():
        entries[form.name] |= (
            {"refused": reason} if form not in fits else _fit_entry(law, fits[form])
        )
    if best is None:
        for form in fits:
            entries[form.name] |= _holdout_entry(law, form, held, {})
        return Comparison({"forms": entries, "best_form": None}, None)
    noisy = held.of_copies(fits[best].copies(draws, seed))
    for form in fits:
        entries[form.name] |= _holdout_entry(law, form, held, noisy)
    chosen = _best(best, held, noisy)
    own = REPORTED[points.z.shape[1]]
    is_better = own in errors and own is not best and own.name not in chosen["not_told_from"]
    # The points of an envelope are no runs, so that intervals from copies of them are too short.
    is_better = is_better and not law.sample.curves
    better = None
    if is_better:
        better = form_fit.fit_by_own_noise(best, points, law.sample.weights.astype(float))
    return Comparison({"forms": entries, "best_form": chosen}, better)


def _fit_entry(law: Law, fitted: FittedForm) -> dict:
    """Returns what fit.json has of a form's fit to all points."""
    points = fitted.points
    squares = np.average(fitted.residuals**2, weights=points.weights)
    return {
        "parameters": fitted.form.published(fitted.theta, points.center),
        "in_sample": float(np.sqrt(squares)),
        "lack_of_fit": lack_of_fit.entry(_tested(law, fitted)),
    }


def _holdout_entry(
    law: Law,
    form: Form,
    held: HeldOuts,
    noisy: Mapping[str, Mapping[Form, Float[Array, " d"]]],
) -> dict:
    """Returns what fit.json has of a form's held-out errors; "largest" is not nested."""
    parts = {}
    for name, judged in held.judged.items():
        if form in judged:
            error = {"holdout_relative_error": judged[form].error}
            parts[name] = error | {"ci95": _interval(noisy[name][form])}
        else:
            parts[name] = {"refused": held.refused[name][form]}
    entry = parts["largest"] | {"two_largest": parts["two_largest"]}
    if form in held.judged["largest"]:
        entry["error_over_drop"] = _over_drop(law, held.judged["largest"][form])
    return entry


def _tested(law: Law, fitted: FittedForm) -> lack_of_fit.LackOfFit | None:
    """Returns the test of a form by repeated runs, as that of the law itself."""
    r, maps = fitted.residuals[None], law.fit.whitening
    return lack_of_fit.examine(
        np.log(law.sample.x),
        r if maps is None else maps(r),
        law.sample.weights,
        fitted.points.free(fitted.form),
    )


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
    best: Form, held: HeldOuts, noisy: Mapping[str, Mapping[Form, Float[Array, " d"]]]
) -> dict:
    """Returns the entry "best_form" of fit.json.

    Two forms are told apart if the 95 % interval of the difference of their errors, over the same
    draws of noise, is above zero.
    """
    errors, used = held.errors, held.used
    averaged = {form: np.mean([noisy[name][form] for name in used], axis=0) for form in errors}
    close, differences = [], {}
    for form in errors:
        if form is best:
            continue
        ends = _interval(averaged[form] - averaged[best])
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
