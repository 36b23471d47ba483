"""Fits a law and examines it: intervals, hold-out error, correlation, sensitivity, warnings."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from var_jax.scaling import (
    bootstrap,
    estimate,
    frontier,
    lack_of_fit,
    law_warnings,
    laws,
    losses,
    profile_intervals,
    sensitivity,
    solver,
)
from var_jax.scaling.select_runs import MIN_SIZES, Refused, Sample
from var_jax.scaling.solver import Array

METHOD = "profile likelihood, F quantile; of E 4 % below and 1 % above"
SHARED_METHOD = "; degrees of freedom of each quantity by Satterthwaite"


@dataclasses.dataclass(frozen=True)
class Law:
    """A fitted law with its analysis.

    Attributes:
      key: "COLUMN~INPUTS", as in fit.json.
      sample: the points that it is fitted to.
      fit: the most likely law, whose parameters are the reported values.
      huber: the law by Huber's loss, for comparison with the literature.
      likelihood: the likelihood that `fit` maximizes, from which the intervals are computed.
      samples: bootstrap laws in raw units, or None.
      without_largest: the law of the runs without the largest size, by the same estimator, or None
        where too few runs remain.
      summary: the law's entry in fit.json.
    """

    key: str
    sample: Sample
    fit: laws.Fit
    huber: laws.Fit
    likelihood: profile_intervals.Likelihood
    samples: Float[Array, "r p"] | None
    without_largest: laws.Fit | None
    summary: dict

    @property
    def column(self) -> str:
        """Name of the fitted column."""
        return self.key.split("~")[0]

    @property
    def has_intervals(self) -> bool:
        """Whether its intervals are given."""
        return self.summary["alpha"]["ci95"][0] is not None


def problem(sample: Sample, loss: losses.Loss) -> solver.Problem:
    """Returns the fitting problem of a sample, to minimize `loss`."""
    return solver.problem(sample.x, sample.y, loss, sample.weights)


def analyze(
    key: str,
    sample: Sample,
    *,
    floor: float | None = None,
    resamples: int = 1000,
    delta: float = laws.DELTA,
) -> Law:
    """Fits a law to a sample and examines how far it can be trusted.

    Args:
      key: the law's key in fit.json.
      floor: a fixed value of E, or None to fit it; 0 makes a pure power law.
      resamples: number of bootstrap resamples of the runs; 0 leaves the bootstrap out.
      delta: Huber's constant, in log loss, of the law that stands beside the most likely one.

    Raises:
      Refused: the given E is not below the smallest loss.
    """
    if floor is not None and floor >= sample.y.min():
        raise Refused(
            f"E-too-large: the given E {floor:g} is not below the smallest loss {sample.y.min():g}"
        )
    fit = estimate.fit(problem(sample, losses.StudentT()), floor)
    huber = laws.fit(problem(sample, losses.Huber(delta)), floor, near=fit.theta[None], check=False)
    p = fit.objective(problem(sample, fit.loss))
    likelihood = profile_intervals.likelihood(p, fit, floor)
    ends = profile_intervals.profile(likelihood)
    samples = None
    if resamples:
        samples = bootstrap_samples(sample, p, fit, floor, resamples)
    rest = without_largest(sample, floor)
    tested = lack_of_fit.of_law(p, fit, int(np.sum(~likelihood.held)))
    names = laws.PARAMETER_NAMES[len(sample.inputs)]
    spread = None if samples is None else bootstrap.percentile(samples)
    summary: dict = {"form": laws.FORMS[len(sample.inputs)]}
    for i, name in enumerate(names):
        summary[name] = {"value": fit.values[name], "ci95": ends[i].tolist()}
        if spread is not None:
            summary[name]["bootstrap95"] = spread[i].tolist()
    if floor is not None:
        summary["E"]["given"] = True
    summary |= {
        "estimator": estimate.describe(fit, sample.inputs[0]),
        "noise_degrees_of_freedom": likelihood.noise_freedom,
        "noise_exponent": 0.0 if fit.whitening is None else -fit.whitening.exponent,
        "noise_shared": 0.0 if fit.whitening is None else float(fit.whitening.share),
        "huber": {"delta": delta, **huber.values},
        "interval_method": METHOD + (SHARED_METHOD if fit.is_shared else ""),
        "pearson": pearson(sample, fit),
        "n_runs": sample.runs,
        "points": len(sample.y),
        **pointwise(sample, fit),
        "selection": sample.selection,
        "range": {
            name: [float(v.min()), float(v.max())]
            for name, v in zip(sample.inputs, sample.x.T, strict=True)
        },
        "noise": likelihood.noise,
        "lack_of_fit": lack_of_fit.entry(tested),
        **holdout(sample, rest),
        "starts_agreeing": fit.starts_agreeing,
        "variable_projection_cost": fit.projected,
        "cost": fit.cost,
    }
    if missing := law_warnings.undetermined(sample, fit, ends):
        summary["undetermined"] = missing
    if len(sample.inputs) == 1 and floor is None:
        summary["alpha_given_E"] = sensitivity.alpha_given_floor(p, fit, ends[0])
    known = rest if isinstance(rest, laws.Fit) else None
    summary["sensitivity"] = sensitivity.alternatives(sample, fit, huber, floor, known)
    summary["warnings"] = [
        *sample.notes,
        *law_warnings.warnings(sample, fit, huber, likelihood, ends, floor),
        *lack_of_fit.warnings(tested),
    ]
    return Law(key, sample, fit, huber, likelihood, samples, known, summary)


def bootstrap_samples(
    sample: Sample, p: solver.Problem, fit: laws.Fit, floor: float | None, resamples: int
) -> Float[Array, "r p"] | None:
    """Returns bootstrap laws over runs; the envelope of a frontier is computed anew per resample.

    None if no resample leaves enough points to fit a law.
    """
    if not sample.curves:
        # Runs of one size that share noise are drawn together, as they are not independent.
        groups = np.round(p.logx[:, 0], 6) if fit.is_shared else sample.run.astype(str)
        return bootstrap.resample(p, fit.theta, resamples, floor=floor, groups=groups)
    losses = frontier.resampled_losses(list(sample.curves), sample.x[:, 0], resamples)
    reached = np.isfinite(losses)
    enough = reached.sum(axis=1) > p.parameters
    if not enough.any():
        return None
    losses, reached = losses[enough], reached[enough]
    return bootstrap.refits(
        p, fit.theta, reached * p.weights, floor, np.log(np.where(reached, losses, 1.0))
    )


def refusal(inputs: tuple[str, ...], reason: str) -> dict:
    """Returns the entry in fit.json of a law that is refused."""
    nothing = {"value": None, "ci95": [None, None]}
    return {
        "form": laws.FORMS[len(inputs)],
        **dict.fromkeys(laws.PARAMETER_NAMES[len(inputs)], nothing),
        "pearson": None,
        "n_runs": None,
        "holdout_relative_error": None,
        "holdout_missing": "the law is refused",
        "starts_agreeing": None,
        "warnings": [f"refused: {reason}"],
    }


def pointwise(sample: Sample, fit: laws.Fit) -> dict[str, list]:
    """Returns the run, inputs, loss, loss - E and predicted loss of each fitted point."""
    x = sample.x[:, 0] if len(sample.inputs) == 1 else sample.x
    return {
        "run": sample.run.astype(str).tolist(),
        "x": x.tolist(),
        "loss": sample.y.tolist(),
        "reducible": (sample.y - fit.theta[0]).tolist(),
        "predicted": fit.predict(sample.x).tolist(),
    }


def pearson(sample: Sample, fit: laws.Fit) -> float | None:
    """Returns the correlation of log(loss - E) with log x, or with the log of a joint law's terms.

    It is weak evidence for a law: E is fitted, which makes it large, and points with noise or even
    curvature still reach -0.99. None if it is not defined.
    """
    above = sample.y > fit.theta[0]
    if above.sum() < 3:
        return None
    if len(sample.inputs) == 1:
        against = np.log(sample.x[above, 0])
    else:
        against = -np.log(np.maximum(fit.predict(sample.x[above]) - fit.theta[0], 1e-300))
    reducible = np.log(sample.y[above] - fit.theta[0])
    if min(np.ptp(against), np.ptp(reducible)) < 1e-12:
        return None
    return float(np.corrcoef(against, reducible)[0, 1])


def is_largest(sample: Sample) -> Bool[Array, " n"]:
    """Returns which points are of the largest size: of the group with the largest first input.

    A group is a size or a curve of a frontier.
    """
    return sample.group == sample.group[int(np.argmax(sample.x[:, 0]))]


def without_largest(sample: Sample, floor: float | None) -> laws.Fit | str:
    """Returns the law of the runs without the largest size, or why too few remain for one."""
    rest = sample.where(~is_largest(sample))
    free = 1 + 2 * len(sample.inputs) - (floor is not None)
    sizes = len(np.unique(rest.x[:, 0]))
    if sizes < MIN_SIZES:
        reason = f"without the largest {sizes} different {sample.inputs[0]} remain"
        return f"{reason}; {MIN_SIZES} are needed"
    if rest.weights.sum() < free:
        reason = f"without the largest {rest.weights.sum():.3g} runs remain"
        return f"{reason}; {free} are needed"
    return estimate.fit(problem(rest, losses.StudentT()), floor, check=False)


def holdout(sample: Sample, fit: laws.Fit | str) -> dict:
    """Returns how well the largest size's losses are predicted from the rest.

    The error is reported with that of the naive prediction, the loss of the second largest. Both
    are None if too few sizes remain, and "holdout_missing" is the reason.

    Args:
      fit: what `without_largest` returned.
    """
    if isinstance(fit, str):
        return {"holdout_relative_error": None, "holdout": None, "holdout_missing": fit}
    out = is_largest(sample)
    rest, last = sample.where(~out), sample.where(out)
    predicted = fit.predict(last.x)
    relative = float(np.mean(np.abs(predicted / last.y - 1)))
    second = rest.x[:, 0] == rest.x[:, 0].max()
    naive = np.array([_naive_prediction(rest.where(second), point) for point in last.x])
    drop = float(np.mean(naive - last.y))
    detail = {
        "left_out": [float(last.x[:, 0].min()), float(last.x[:, 0].max())],
        "points": len(last.y),
        "predicted": float(predicted.mean()),
        "actual": float(last.y.mean()),
        "naive": float(naive.mean()),
        "naive_relative_error": float(np.mean(np.abs(naive / last.y - 1))),
        "error_over_drop": float(np.mean(np.abs(predicted - last.y)) / drop) if drop > 0 else None,
    }
    return {"holdout_relative_error": relative, "holdout": detail}


def _naive_prediction(second: Sample, point: Float[Array, " j"]) -> float:
    """Returns the second largest size's loss at the token budget nearest to that of `point`."""
    if second.x.shape[1] == 1:
        return float(second.y.mean())
    return float(second.y[np.argmin(np.abs(np.log(second.x[:, 1] / point[1])))])
