"""Fits forms of a law without the largest sizes, and predicts those by them."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from var_jax.scaling import analysis, estimate, form_fit, losses, profile_intervals
from var_jax.scaling.analysis import Law
from var_jax.scaling.form_fit import FittedForm, Points
from var_jax.scaling.forms import Form
from var_jax.scaling.select_runs import MIN_SIZES
from var_jax.scaling.solver import Array

HOLDOUTS = {"largest": 1, "two_largest": 2}  # numbers of sizes that are left out


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


class HeldOuts(NamedTuple):
    """Forms by what was left out.

    Attributes:
      judged: the forms that the remaining runs allow, by the keys of `HOLDOUTS`.
      refused: why they do not allow the others.
    """

    judged: dict[str, dict[Form, HeldOut]]
    refused: dict[str, dict[Form, str]]

    @property
    def used(self) -> list[str]:
        """Both hold-outs where all forms that predict the largest size predict the two largest too,
        else that of the largest alone."""
        largest = self.judged["largest"]
        return [name for name, judged in self.judged.items() if len(judged) == len(largest)]

    @property
    def errors(self) -> dict[Form, float]:
        """The mean error over the hold-outs that are used, by form."""
        return {
            form: float(np.mean([self.judged[name][form].error for name in self.used]))
            for form in self.judged["largest"]
        }

    def of_copies(self, copies: Float[Array, "d n"]) -> dict[str, dict[Form, Float[Array, " d"]]]:
        """Returns the errors in noisy copies of all losses, by hold-out and form."""
        return {
            name: {form: held.of_copies(copies) for form, held in judged.items()}
            for name, judged in self.judged.items()
        }


def hold_out(law: Law, points: Points, fits: Mapping[Form, FittedForm]) -> HeldOuts:
    """Returns forms that are fitted without the largest size, and without the two largest.

    Args:
      points: all points of the law.
      fits: the forms that these points allow.
    """
    group, sizes = law.sample.group.astype(str), law.sample.x[:, 0]
    by_size = sorted(set(group), key=lambda name: -sizes[group == name].max())
    judged: dict[str, dict[Form, HeldOut]] = {}
    refused: dict[str, dict[Form, str]] = {}
    for name, count in HOLDOUTS.items():
        remaining = ~np.isin(group, by_size[:count])
        reasons = {form: too_few(form, law, remaining, points) for form in fits}
        refused[name] = {form: reason for form, reason in reasons.items() if reason is not None}
        allowed = [form for form in fits if form not in refused[name]]
        rest = _rest(law, remaining, points.floor, name) if allowed else points
        judged[name] = {form: HeldOut(form_fit.fit(form, rest)) for form in allowed}
    return HeldOuts(judged, refused)


def _rest(law: Law, inside: Bool[Array, " n"], floor: float | None, name: str) -> Points:
    """Returns the points with what is known of them from the kept ones alone."""
    remaining = law.sample.where(inside)
    fit = law.without_largest if name == "largest" else None
    if fit is None:
        fit = estimate.fit(analysis.problem(remaining, losses.StudentT()), floor, check=False)
    likelihood = profile_intervals.likelihood(analysis.problem(remaining, fit.loss), fit, floor)
    noise = likelihood.noise, likelihood.noise_freedom
    return form_fit.points(law.sample, inside, fit, *noise, floor)


def too_few(form: Form, law: Law, rows: Bool[Array, " n"], points: Points) -> str | None:
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
