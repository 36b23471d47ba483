"""Measures how often each method's 95 % intervals contain the true value, and how wide they are.

Many synthetic sweeps of known laws are fitted by every method. `python -m
var_jax.studies.interval_coverage` prints the tables of docs/results/interval_coverage.md; with
`--resampled 0` only those of the profiles, in a quarter of an hour on one core. Widths are those of
the fitted parameters: E, log amplitudes and exponents.
"""

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Float
from scipy import stats

from var_jax.scaling import (
    analysis,
    bootstrap,
    estimate,
    laws,
    losses,
    profile_intervals,
    select_runs,
    solver,
)
from var_jax.scaling.solver import Array
from var_jax.studies import interval_coverage_reported
from var_jax.studies.planted_laws import DIRTY, FRONTIERS, STUDIES, UNSEEN, Planted, PlantedFrontier

BOOTSTRAP_RESAMPLES = 500
REPORTED, TEXTBOOK, UNBIASED = (
    "profile, F (reported)",
    "profile, chi-square",
    "profile, chi-square, RSS/(n-p)",
)
# Planted laws by the choice of --reported, each with the index of its first, which seeds its noise.
PLANTED = {
    "clean": (0, STUDIES),
    "dirty": (len(STUDIES) + len(FRONTIERS), DIRTY),
    "unseen": (len(STUDIES) + len(FRONTIERS) + len(DIRTY), UNSEEN),
}
METHODS = (REPORTED, TEXTBOOK, UNBIASED, "bootstrap over runs", "BCa")


@dataclasses.dataclass(frozen=True)
class ChiSquare(profile_intervals.Likelihood):
    """A likelihood whose intervals take the chi-square quantile, as if n were large."""

    def rise(
        self, tails: Float[Array, " k"], freedom: Float[Array, " k"] | None = None
    ) -> Float[Array, " k"]:
        """Returns half the squared normal quantiles, whatever the degrees of freedom."""
        return stats.norm.ppf(1 - tails) ** 2 / 2


@dataclasses.dataclass(frozen=True)
class ChiSquareUnbiased(profile_intervals.Likelihood):
    """The same with the noise variance RSS / (n - p), which is not biased low."""

    def rise(
        self, tails: Float[Array, " k"], freedom: Float[Array, " k"] | None = None
    ) -> Float[Array, " k"]:
        """Returns the rises at which the sum of squares has grown by that variance's quantiles."""
        quantiles = stats.norm.ppf(1 - tails)
        return self.runs / 2 * np.log1p(quantiles**2 / self.freedom)


def reference(
    p: solver.Problem,
    fit: laws.Fit,
    kind: type[profile_intervals.Likelihood] = ChiSquare,
) -> Float[Array, "p 2"]:
    """Returns intervals by the textbook's profile likelihood: normal noise, chi-square quantile.

    Args:
      p: the problem in raw units.
      fit: a law from which the least squares are searched.
      kind: the likelihood, which says where an interval ends.
    """
    normal = dataclasses.replace(p, loss=losses.StudentT(), whitening=None)
    if fit.loss != normal.loss or fit.whitening is not None:
        fit = laws.fit(normal, near=fit.theta[None])
    likelihood = profile_intervals.likelihood(normal, fit)
    return profile_intervals.profile(kind(**vars(likelihood)), profile_intervals.EQUAL_TAILS)


def bca(
    p: solver.Problem, theta: Float[Array, " p"], samples: Float[Array, "r p"]
) -> Float[Array, "p 2"]:
    """Returns the bias-corrected and accelerated bootstrap intervals (Efron 1987).

    The acceleration is that of the jackknife over runs. scipy's `bootstrap(method="BCa")` evaluates
    the statistic on one sample at a time; here all refits are one batch.
    """
    count = len(p.logx)
    left_out = bootstrap.refits(p, theta, p.weights * (1 - np.eye(count)))
    gap = left_out.mean(axis=0) - left_out
    spread = np.sum(gap**2, axis=0)
    acceleration = np.sum(gap**3, axis=0) / (6 * np.maximum(spread, 1e-300) ** 1.5)
    below = np.mean(samples < theta, axis=0) + np.mean(samples == theta, axis=0) / 2
    bias = stats.norm.ppf(np.clip(below, 0.5 / len(samples), 1 - 0.5 / len(samples)))
    z = bias + stats.norm.ppf(
        [
            [(1 - profile_intervals.CONFIDENCE_LEVEL) / 2],
            [(1 + profile_intervals.CONFIDENCE_LEVEL) / 2],
        ]
    )
    levels = stats.norm.cdf(bias + z / (1 - acceleration * z))
    levels = np.nan_to_num(levels, nan=0.5)
    values = laws.with_amplitudes(samples)
    return np.array([np.quantile(values[:, i], levels[:, i]) for i in range(values.shape[1])])


def study(planted: Planted, sweeps: int, resampled: int, seed: Sequence[int]) -> list[str]:
    """Returns the table's rows for one planted law.

    Args:
      sweeps: number of synthetic sweeps.
      resampled: number of sweeps, from the first, for which the bootstrap and BCa are computed.
      seed: seed of the noise.
    """
    truth = laws.with_amplitudes(
        planted.truth if isinstance(planted, PlantedFrontier) else np.array(planted.theta)
    )
    limits: dict[str, list[Array]] = {name: [] for name in METHODS}
    values, by_huber = [], []
    for sweep in range(sweeps):
        sample = planted.draw(np.random.default_rng([*seed, sweep]))
        p = (
            analysis.problem(sample, losses.StudentT())
            if isinstance(sample, select_runs.Sample)
            else sample
        )
        fit = estimate.fit(p)
        p = fit.objective(p)
        limits[REPORTED].append(profile_intervals.profile(profile_intervals.likelihood(p, fit)))
        limits[TEXTBOOK].append(reference(p, fit))
        limits[UNBIASED].append(reference(p, fit, ChiSquareUnbiased))
        values.append(laws.with_amplitudes(fit.theta))
        huber = laws.fit(dataclasses.replace(p, loss=losses.Huber(laws.DELTA), whitening=None))
        by_huber.append(laws.with_amplitudes(huber.theta))
        if sweep >= resampled:
            continue
        if isinstance(sample, select_runs.Sample):
            bootstrap_laws = analysis.bootstrap_samples(sample, p, fit, None, BOOTSTRAP_RESAMPLES)
            if bootstrap_laws is not None:
                limits["bootstrap over runs"].append(bootstrap.percentile(bootstrap_laws))
        else:
            bootstrap_laws = bootstrap.resample(p, fit.theta, BOOTSTRAP_RESAMPLES, seed=sweep)
            limits["bootstrap over runs"].append(bootstrap.percentile(bootstrap_laws))
            limits["BCa"].append(bca(p, fit.theta, bootstrap_laws))
    names = laws.PARAMETER_NAMES[len(truth) // 2]
    exponents = [i for i, name in enumerate(names) if name in ("alpha", "beta")]
    for label, estimates in (("reported value", values), ("Huber's loss", by_huber)):
        errors = np.array(estimates) - truth
        parts = []
        for i in exponents:
            bias, standard_error = errors[:, i].mean(), errors[:, i].std() / sweeps**0.5
            rms = np.mean(errors[:, i] ** 2) ** 0.5
            parts.append(f"{names[i]} bias {bias:+.4f} +- {standard_error:.4f}, rms {rms:.4f}")
        print(f"{planted.name}, {label}: {', '.join(parts)}", flush=True)
    return [
        _row(
            planted.name,
            name,
            truth,
            np.array(rows),
            np.array(limits[TEXTBOOK]),
            np.array(limits[UNBIASED]),
        )
        for name, rows in limits.items()
        if rows
    ]


def _row(
    title: str,
    method: str,
    truth: Float[Array, " p"],
    rows: Float[Array, "s p 2"],
    textbook: Float[Array, "s p 2"],
    unbiased: Float[Array, "s p 2"],
) -> str:
    names = laws.PARAMETER_NAMES[len(truth) // 2]
    inside = np.mean((rows[..., 0] <= truth) & (truth <= rows[..., 1]), axis=0)
    cells = [", ".join(f"{n} {share:.1%}" for n, share in zip(names, inside, strict=True))]
    for other in (textbook, unbiased):
        ratios = interval_coverage_reported.widths(rows) / interval_coverage_reported.widths(
            other[: len(rows)]
        )  # over the same sweeps
        cells.append(", ".join(f"{n} {ratio:.2f}" for n, ratio in zip(names, ratios, strict=True)))
    return f"| {title} | {method} | {len(rows)} | " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=200)
    parser.add_argument(
        "--resampled", type=int, default=200, help="sweeps for which bootstrap and BCa are drawn"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="studies whose name contains this")
    parser.add_argument(
        "--reported",
        choices=tuple(PLANTED),
        help="only the reported intervals, of laws with normal noise, with such as real runs may "
        "have, or of other laws, run counts and noise, on which the estimator was not tuned",
    )
    parser.add_argument(
        "--computed",
        type=int,
        default=10,
        help="with --reported: sweeps whose intervals are computed, for widths and to compare",
    )
    parser.add_argument(
        "--rows",
        type=epath.Path,
        help="with --reported: JSONL file that keeps each law's result, so that a study that was "
        "interrupted goes on where it was",
    )
    parser.add_argument(
        "--merge",
        type=epath.Path,
        nargs="+",
        metavar="ROWS",
        help="measure nothing, and print the table of such files together",
    )
    args = parser.parse_args()
    if args.merge:
        interval_coverage_reported.merge(args.merge)
        return
    # The index of a study seeds its noise, so that no two studies use the same draws.
    if args.reported:
        first, planted_laws = PLANTED[args.reported]
        interval_coverage_reported.study(
            [
                (planted, (args.seed, first + index))
                for index, planted in enumerate(planted_laws)
                if args.only in planted.name
            ],
            sweeps=args.sweeps,
            computed=args.computed,
            rows=args.rows,
        )
        return
    print(
        "| planted law | interval | sweeps | truth inside the 95 % interval | "
        "median width over chi-square profile's, RSS/n | RSS/(n-p) |\n|---|---|---|---|---|---|"
    )
    for index, planted in enumerate((*STUDIES, *FRONTIERS)):
        if args.only in planted.name:
            print(
                "\n".join(study(planted, args.sweeps, args.resampled, (args.seed, index))),
                flush=True,
            )


if __name__ == "__main__":
    main()
