"""A law, fitted and cross-examined: intervals, hold-out, Pearson, what E does to the exponent,
named warnings."""

import dataclasses

import numpy as np
from jaxtyping import Float

from var_jax.scaling import frontier, intervals, laws, solver
from var_jax.scaling.select_runs import MIN_SIZES, Refused, Sample
from var_jax.scaling.solver import Array

METHOD = "profile likelihood, F quantile; of E 4 % below and 1 % above"
STARTS_AGREE = 0.5
LOOSE = 0.05  # noise of log loss beyond which a law is called loose
CURVATURE = 2.0  # standard errors of the log-log parabola's curvature


@dataclasses.dataclass(frozen=True)
class Law:
    """A fitted law with all that is said about it.

    Attributes:
      key: "COLUMN~INPUTS", as in fit.json.
      samples: bootstrap laws in raw units, or None.
      summary: what fit.json holds.
    """

    key: str
    sample: Sample
    fit: laws.Fit
    like: intervals.Likelihood
    samples: Float[Array, "r p"] | None
    summary: dict

    @property
    def column(self) -> str:
        return self.key.split("~")[0]


def problem(sample: Sample, delta: float) -> solver.Problem:
    return solver.problem(sample.x, sample.y, delta, sample.weights)


def analyze(
    key: str,
    sample: Sample,
    *,
    floor: float | None = None,
    resamples: int = 1000,
    delta: float = laws.DELTA,
) -> Law:
    """Fits a law and everything that lets it be believed or doubted.

    Args:
      floor: E where it is given; 0 makes a pure power law.
      resamples: of the bootstrap over runs; 0 leaves it out.
      delta: Huber's constant of the reported values, in log loss.

    Raises:
      Refused: the given E is not below the smallest loss.
    """
    if floor is not None and floor >= sample.y.min():
        raise Refused(
            f"E-too-large: the given E {floor:g} is not below the smallest loss {sample.y.min():g}"
        )
    p = problem(sample, delta)
    fit = laws.fit(p, floor)
    like = intervals.likelihood(p, fit.theta, floor)
    ends = intervals.profile(like)
    samples = None
    if resamples:
        samples = resampled(sample, p, fit, floor, resamples)
    names = laws.NAMES[len(sample.inputs)]
    spread = None if samples is None else intervals.percentile(samples)
    summary: dict = {"form": laws.FORMS[len(sample.inputs)]}
    for i, name in enumerate(names):
        summary[name] = {"value": fit.values[name], "ci95": ends[i].tolist()}
        if spread is not None:
            summary[name]["bootstrap95"] = spread[i].tolist()
    if floor is not None:
        summary["E"]["given"] = True
    summary |= {
        "interval_method": METHOD,
        "pearson": pearson(sample, fit),
        "n_runs": sample.runs,
        "points": len(sample.y),
        **pointwise(sample, fit),
        "selection": sample.text,
        "range": {
            name: [float(v.min()), float(v.max())]
            for name, v in zip(sample.inputs, sample.x.T, strict=True)
        },
        "noise": like.variance**0.5,
        **holdout(sample, floor, delta),
        "starts_agreeing": fit.starts_agreeing,
        "variable_projection_cost": fit.projected,
        "cost": fit.cost,
    }
    if len(sample.inputs) == 1 and floor is None:
        summary["alpha_given_E"] = sensitivity(p, fit, ends[0])
    summary["warnings"] = [*sample.notes, *_warnings(sample, fit, like, ends, floor)]
    return Law(key, sample, fit, like, samples, summary)


def resampled(
    sample: Sample, p: solver.Problem, fit: laws.Fit, floor: float | None, resamples: int
) -> Float[Array, "r p"] | None:
    """The bootstrap over runs; that of a frontier draws its envelope anew each time."""
    if not sample.curves:
        return intervals.bootstrap(
            p, fit.theta, resamples, floor=floor, groups=sample.run.astype(str)
        )
    losses = frontier.redrawn(list(sample.curves), sample.x[:, 0], resamples)
    reached = np.isfinite(losses)
    enough = reached.sum(axis=1) > p.parameters
    if not enough.any():
        return None
    losses, reached = losses[enough], reached[enough]
    return intervals.refits(
        p, fit.theta, reached * p.weights, floor, np.log(np.where(reached, losses, 1.0))
    )


def refusal(inputs: tuple[str, ...], reason: str) -> dict:
    """What fit.json holds of a law that is refused."""
    nothing = {"value": None, "ci95": [None, None]}
    return {
        "form": laws.FORMS[len(inputs)],
        **dict.fromkeys(laws.NAMES[len(inputs)], nothing),
        "pearson": None,
        "n_runs": None,
        "holdout_relative_error": None,
        "starts_agreeing": None,
        "warnings": [f"refused: {reason}"],
    }


def pointwise(sample: Sample, fit: laws.Fit) -> dict[str, list]:
    """Each fitted point: its run, inputs, loss, loss less E, and the law's loss there."""
    x = sample.x[:, 0] if len(sample.inputs) == 1 else sample.x
    return {
        "run": sample.run.astype(str).tolist(),
        "x": x.tolist(),
        "loss": sample.y.tolist(),
        "reducible": (sample.y - fit.theta[0]).tolist(),
        "predicted": fit.predict(sample.x).tolist(),
    }


def pearson(sample: Sample, fit: laws.Fit) -> float | None:
    """Correlation of the linearised law: log(loss - E) with log x, or with the log of the joint
    law's own terms.

    Weak evidence: E was chosen to make it large, and points with noise or even curvature still
      reach -0.99.
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


def holdout(sample: Sample, floor: float | None, delta: float) -> dict:
    """The largest left out and predicted from the rest, beside the naive guess that nothing
    improves.

    The largest is every point of the group (size, or frontier curve) with the largest first input.
    """
    nothing = {"holdout_relative_error": None, "holdout": None}
    largest = sample.group[int(np.argmax(sample.x[:, 0]))]
    out = sample.group == largest
    rest, last = sample.where(~out), sample.where(out)
    free = 1 + 2 * len(sample.inputs) - (floor is not None)
    if len(np.unique(rest.x[:, 0])) < MIN_SIZES or rest.weights.sum() < free:
        return nothing
    fit = laws.fit(problem(rest, delta), floor)
    predicted = fit.predict(last.x)
    relative = float(np.mean(np.abs(predicted / last.y - 1)))
    second = rest.x[:, 0] == rest.x[:, 0].max()
    naive = np.array([_nearest(rest.where(second), point) for point in last.x])
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


def _nearest(second: Sample, point: Float[Array, " j"]) -> float:
    """The second largest's loss at the budget nearest to a left-out point's."""
    if second.x.shape[1] == 1:
        return float(second.y.mean())
    return float(second.y[np.argmin(np.abs(np.log(second.x[:, 1] / point[1])))])


def sensitivity(p: solver.Problem, fit: laws.Fit, e_ends: Float[Array, "2"]) -> list[list[float]]:
    """[E, alpha] pairs: the exponent that is best for 0, for E's interval, and for E itself."""
    centered, _ = laws.center(p)
    smallest = float(np.exp(p.logy.min()))
    floors = [
        0.0,
        *(float(e) for e in e_ends if np.isfinite(e) and 0 < e < smallest),
        float(fit.theta[0]),
    ]
    return [[e, float(laws.variable_projection(centered, e)[0][2])] for e in sorted(set(floors))]


def _warnings(
    sample: Sample,
    fit: laws.Fit,
    like: intervals.Likelihood,
    ends: Float[Array, "p 2"],
    floor: float | None,
) -> list[str]:
    found = []
    smallest = float(sample.y.min())
    if floor is None and fit.theta[0] <= 1e-6 * smallest:
        found.append(
            "E-at-bound: the best E is 0, its bound: the data show no floor, and alpha is only a lower limit"
        )
    elif floor is None and ends[0, 0] <= 1e-6 * smallest:
        found.append("E-undetermined: E cannot be told from 0")
    for i, name in list(enumerate(laws.NAMES[len(sample.inputs)]))[2::2]:
        low, high = solver.ALPHA_RANGE
        if fit.theta[i] <= low * 1.01 or fit.theta[i] >= high * 0.99:
            found.append(
                f"{name}-at-bound: the best {name} is {fit.theta[i]:g}, the end of its range"
            )
        elif ends[i, 0] <= low * 1.01 or ends[i, 1] >= high * 0.99:
            found.append(
                f"{name}-unbounded: its interval does not close within {low:g} to {high:g}"
            )
    if len(sample.inputs) == 1:
        bend = curvature(sample)
        if bend is not None and bend < -CURVATURE:
            found.append(
                f"concave: log loss bends downward in log {sample.inputs[0]} by {-bend:.1f} standard errors; "
                "no E >= 0 does that, so the law does not hold over this range"
            )
    if fit.starts_agreeing < STARTS_AGREE:
        found.append(
            f"starts-disagree: {fit.starts_agreeing:.0%} of the starts end in the best optimum"
        )
    if not laws.same_optimum(fit.projected, fit.cost, len(sample.y)) or not fit.starts_agreeing:
        found.append(
            "solvers-disagree: least squares and variable projection end in different optima"
        )
    if like.variance**0.5 > LOOSE:
        found.append(
            f"loose-fit: runs scatter by {like.variance**0.5:.0%} about the law; are they of one data set?"
        )
    if like.freedom <= 0:
        found.append(f"no-interval: {sample.runs} runs leave no degree of freedom")
    values = laws.natural(fit.theta)
    slack = (1e-6 if like.variance > 1e-12 else 1e-2) * np.abs(
        values
    )  # without noise there is no interval to leave
    outside = (values < ends[:, 0] - slack) | (values > ends[:, 1] + slack)
    if outside.any():
        names = ", ".join(np.array(laws.NAMES[len(sample.inputs)])[outside])
        found.append(
            f"outliers: the robust fit's {names} lies outside the likelihood's interval; see the residuals"
        )
    clipped = np.abs(
        np.log(
            sample.y / solver.predict(laws.shift(like.theta, like.mean)[None], np.log(sample.x))[0]
        )
    )
    for name in sample.run[clipped > 2 * like.problem.delta]:
        found.append(f"outlier: run {name} is {clipped[sample.run == name].max():.2%} off the law")
    return found


def curvature(sample: Sample) -> float | None:
    """The log-log parabola's curvature over its standard error; negative bends downward."""
    logx, logy = np.log(sample.x[:, 0]), np.log(sample.y)
    if len(logy) < 5:
        return None
    design = np.vander(logx - logx.mean(), 3)
    weights = sample.weights
    inverse = np.linalg.pinv(design.T @ (weights[:, None] * design))
    coefficients = inverse @ design.T @ (weights * logy)
    left = np.sum(weights * (logy - design @ coefficients) ** 2) / max(weights.sum() - 3, 1)
    return float(coefficients[0] / max(np.sqrt(left * inverse[0, 0]), 1e-12))
