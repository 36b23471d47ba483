"""Compares forms of a law by their error on held-out largest sizes, with intervals.

The fit alone chooses the form with the most parameters. Here every form is fitted without the
largest size, and without the two largest, and predicts what was left out. The weights of outliers,
the centers of the inputs and the bounds of the parameters come from the runs that remain.

How far the errors would differ under other noise of the same runs says whether the best form can be
told from the others: copies of the losses are drawn around one curve, all forms are fitted to each
copy, and their errors are compared draw by draw. The curve is the form that the corrected Akaike
criterion prefers on all points (Hurvich and Tsai 1989). It is the same for all forms, as around
its own fit each form would be the truth and no error would show that it is wrong. It is not the
measured losses, which have noise already: copies of them would have it twice. The noise has the
size of the scatter about the curve, and the degrees of freedom that it leaves. Where the law's
likelihood takes small runs for noisier, or noise for common to runs of one size, so do the copies.
All forms weigh small runs by their noise, but are fitted by squares of single runs where noise is
common to a size: the copies show what such fits do under it. The intervals are those of what is
measured in such copies. The error of the measured losses is one draw more, and lies outside about
one interval in twenty, or in more where the curve is not the truth.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from var_jax.scaling import analysis, curve_fit, estimate, laws, losses, profile_intervals
from var_jax.scaling.analysis import Law
from var_jax.scaling.forms import FORMS, Form
from var_jax.scaling.select_runs import MIN_SIZES, Sample
from var_jax.scaling.solver import Array

DRAWS = 100
REFIT_ITERATIONS = 8  # of a refit to noisy losses, which starts at the form's fit
HOLDOUTS = {"largest": 1, "two_largest": 2}
TIE_DIGITS = 4  # of a relative error
SMALLEST_NOISE = 1e-8  # losses are written with about seven digits


class Points(NamedTuple):
    """The points that forms are fitted to.

    Attributes:
      z: centered log inputs.
      center: the mean log inputs of the points that forms are fitted to.
      logy: log losses.
      weights: weights of the points; a run that the law's likelihood takes for an outlier has less,
        and so has a run whose size it takes for noisy.
      inside: the points that forms are fitted to; the others are left out.
      near: the law of those points, [E, log A, alpha, ...] of centered inputs.
      share: fraction of the noise's variance that runs of one size have in common.
    """

    z: Float[Array, "n j"]
    center: Float[Array, " j"]
    logy: Float[Array, " n"]
    weights: Float[Array, " n"]
    inside: Bool[Array, " n"]
    near: Float[Array, " p"]
    share: float


def compare(law: Law, floor: float | None = None, draws: int = DRAWS, seed: int = 0) -> dict:
    """Returns the entries "forms" and "best_form" of a law in fit.json.

    Call it after `analysis.analyze`, for a law whose form is in doubt.

    Args:
      floor: a fixed value of E, or None where it is fitted.
      draws: number of noisy copies of the losses.
    """
    noise = law.summary["noise"], law.summary["noise_degrees_of_freedom"]
    every_row = np.ones(len(law.sample.y), bool)
    points = _points(law.sample, every_row, law.fit, *noise)
    group, sizes = law.sample.group.astype(str), law.sample.x[:, 0]
    by_size = sorted(set(group), key=lambda name: -sizes[group == name].max())
    left_out = {name: np.isin(group, by_size[:count]) for name, count in HOLDOUTS.items()}

    forms = FORMS[points.z.shape[1]]
    reasons = {form: _too_few(form, law, every_row, floor) for form in forms}
    fits = {form: _fit(form, points, floor) for form in forms if reasons[form] is None}
    copies = _copies(fits, points, floor, draws, seed)
    rest: dict[str, Points] = {}

    entries: dict[str, dict] = {}
    errors: dict[str, dict[Form, Float[Array, " d"]]] = {name: {} for name in HOLDOUTS}
    for form in forms:
        entries[form.name] = entry = {"form": form.text, "source": form.source}
        if form not in fits:
            entry["refused"] = reasons[form]
            continue
        r = points.logy - form.log_loss(fits[form][None], points.z, points.center)[0]
        entry["parameters"] = form.published(fits[form], points.center)
        entry["in_sample"] = float(np.sqrt(np.average(r**2, weights=points.weights)))
        for name, out in left_out.items():
            held = entry if name == "largest" else entry.setdefault(name, {})
            reason = _too_few(form, law, ~out, floor)
            if reason is not None:
                held["refused"] = reason
                continue
            if name not in rest:
                known = law.without_largest if name == "largest" else None
                rest[name] = _rest(law.sample, ~out, floor, known)
            error, noisy = _holdout(form, rest[name], copies, floor)
            errors[name][form] = noisy
            relative = float(np.mean(np.abs(np.expm1(error))))
            held |= {"holdout_relative_error": relative, "ci95": _interval(noisy)}
            if name == "largest":
                size = np.mean(np.abs(np.exp(points.logy[out]) * np.expm1(error)))
                drop = _drop(law)
                held["error_over_drop"] = None if drop is None else float(size / drop)
    return {"forms": entries, "best_form": _best(entries, errors)}


def _points(sample: Sample, inside: Array, fit: laws.Fit, noise: float, nu: float) -> Points:
    """Returns the points of which the kept ones have this law and noise."""
    logx, logy = np.log(sample.x), np.log(sample.y)
    center = logx[inside].mean(axis=0)
    weights, precision, share = sample.weights.astype(float), np.ones(len(logy)), 0.0
    if fit.whitening is not None:
        # As for predictions, the noise beyond the runs is that of the last.
        size = np.clip(logx[:, 0], logx[inside, 0].min(), logx[inside, 0].max()) - center[0]
        precision = np.exp(fit.whitening.exponent * size)
        share = float(fit.whitening.share)
    if np.isfinite(nu):
        off = (logy - np.log(fit.predict(sample.x))) * precision / max(noise, SMALLEST_NOISE)
        weights = weights * (nu + 1) / (nu + off**2)
    # The weights of the kept points still add up to their number.
    weights = (
        weights * precision**2 * weights[inside].sum() / (weights * precision**2)[inside].sum()
    )
    z, near = logx - center, laws.shift(fit.theta, -center)
    return Points(z, center, logy, weights, inside, near, share)


def _rest(
    sample: Sample, inside: Bool[Array, " n"], floor: float | None, fit: laws.Fit | None
) -> Points:
    """Returns the points with what is known of them from the kept ones alone.

    Args:
      fit: the law of the kept points, if it was fitted already.
    """
    remaining = sample.where(inside)
    if fit is None:
        fit = estimate.fit(analysis.problem(remaining, losses.StudentT()), floor, check=False)
    likelihood = profile_intervals.likelihood(analysis.problem(remaining, fit.loss), fit, floor)
    return _points(sample, inside, fit, likelihood.noise, likelihood.noise_freedom)


def _free(form: Form, floor: float | None) -> int:
    return len(form.names) - (form.has_floor and floor is not None)


def _too_few(form: Form, law: Law, rows: Bool[Array, " n"], floor: float | None) -> str | None:
    """Returns why these rows do not allow the form, or None."""
    free = _free(form, floor)
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


def _bounds(form: Form, points: Points, floor: float | None):
    most = float(np.exp(points.logy[points.inside].max()))
    lower, upper = map(np.array, form.bounds(most, _ends(points)))
    if form.has_floor:
        lower[0], upper[0] = (lower[0], most) if floor is None else (floor, floor)
    return lower, upper


def _ends(points: Points) -> Float[Array, "2 j"]:
    z = points.z[points.inside]
    return np.stack([z.min(axis=0), z.max(axis=0)])


def _fit(form: Form, points: Points, floor: float | None) -> Float[Array, " p"]:
    """Returns the best parameters on the kept points."""
    starts = np.array(form.starts(points.near, _ends(points)), float)
    ends, costs = curve_fit.solve(
        lambda t: form.log_loss(t, points.z[points.inside], points.center),
        points.logy[points.inside],
        points.weights[points.inside],
        starts,
        _bounds(form, points, floor),
    )
    return ends[int(np.argmin(costs))]


def _copies(fits, points: Points, floor, draws: int, seed: int) -> Float[Array, "d n"]:
    """Returns draws of all log losses around the form that the corrected criterion prefers."""
    runs = points.weights.sum()
    best, curve = (np.inf, np.inf), points.logy
    variance, freedom = SMALLEST_NOISE**2, 1.0
    for form, theta in fits.items():
        fitted = form.log_loss(theta[None], points.z, points.center)[0]
        squares = float(np.sum(points.weights * (points.logy - fitted) ** 2))
        squares = max(squares, runs * SMALLEST_NOISE**2)
        free = _free(form, floor)
        left = runs - free - 2
        correction = 2 * (free + 1) * (free + 2) / left if left > 0 else np.inf
        criterion = runs * np.log(squares / runs) + 2 * (free + 1) + correction
        # Of forms that leave too few runs for the criterion, the one with fewest parameters.
        if (criterion, free) < best:
            best, curve = (criterion, free), fitted
            freedom = max(runs - free, 1.0)
            variance = squares / freedom
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(draws, len(points.logy)))
    if points.share:
        sizes, owner = np.unique(np.round(points.z[:, 0], 6), return_inverse=True)
        common = rng.normal(size=(draws, len(sizes)))[:, owner]
        normal = points.share**0.5 * common + (1 - points.share) ** 0.5 * normal
    scale = np.sqrt(variance * freedom / rng.chisquare(freedom, size=(draws, 1)))
    return curve + normal * scale / np.sqrt(np.maximum(points.weights, 1e-6))


def _holdout(form, points: Points, copies: Float[Array, "d n"], floor):
    """Returns the log errors on left-out points, and the mean relative error of each copy."""
    inside, out = points.inside, ~points.inside
    theta = _fit(form, points, floor)
    predicted = form.log_loss(theta[None], points.z[out], points.center)[0]
    refits, _ = curve_fit.solve(
        lambda t: form.log_loss(t, points.z[inside], points.center),
        copies[:, inside],
        points.weights[inside],
        np.tile(theta, (len(copies), 1)),
        _bounds(form, points, floor),
        REFIT_ITERATIONS,
    )
    noisy = form.log_loss(refits, points.z[out], points.center) - copies[:, out]
    return predicted - points.logy[out], np.mean(np.abs(np.expm1(noisy)), axis=1)


def _interval(noisy: Float[Array, " d"]) -> list[float]:
    return np.quantile(noisy, [0.025, 0.975]).tolist()


def _drop(law: Law) -> float | None:
    """Returns by how much the largest size is better than the naive prediction, if it is."""
    holdout = law.summary["holdout"]
    if holdout is None or holdout["naive"] <= holdout["actual"]:
        return None
    return holdout["naive"] - holdout["actual"]


def _best(entries: dict, errors: dict[str, dict[Form, Float[Array, " d"]]]) -> dict | None:
    """Returns the form with the lowest held-out error, and those that it is not told from.

    The error is the mean over both hold-outs where all forms that predict the largest size predict
    the two largest too, else that of the largest alone. Two forms are told apart if the 95 %
    interval of the difference of their errors, over the same draws of noise, is above zero.
    """
    judged = list(errors["largest"])
    if not judged:
        return None
    used = [name for name in HOLDOUTS if len(errors[name]) == len(judged)]

    def error(form: Form) -> float:
        entry = entries[form.name]
        both = {"largest": entry, "two_largest": entry["two_largest"]}
        return float(np.mean([both[name]["holdout_relative_error"] for name in used]))

    noisy = {form: np.mean([errors[name][form] for name in used], axis=0) for form in judged}
    # Of forms with the same error, such as M4 at its limit, the one with fewer parameters.
    best = min(judged, key=lambda form: (round(error(form), TIE_DIGITS), len(form.names)))
    close, differences = [], {}
    for form in judged:
        if form is best:
            continue
        ends = _interval(noisy[form] - noisy[best])
        differences[form.name] = {"value": error(form) - error(best), "ci95": ends}
        if ends[0] <= 0:
            close.append(form.name)
    words = {"largest": "the largest size", "two_largest": "the two largest sizes"}
    text = f"{best.name} predicts {' and '.join(words[name] for name in used)} best"
    text += f" ({error(best):.2%})"
    if len(judged) == 1:
        text += "; no other form could be judged"
    elif close:
        text += f"; the runs do not distinguish it from {', '.join(close)}"
    else:
        text += ", and the runs distinguish it from every other form"
    return {
        "name": best.name,
        "distinguishable": len(judged) > 1 and not close,
        "error_above_best": differences,
        "statement": text,
    }
