"""Measures how often intervals of a frontier's law hold the truth, by the noise of its runs.

`python -m var_jax.studies.frontier_coverage` plants joint laws at 48 runs and fits the envelope of
noisy sweeps of them as `var-jax fit` does. For each law and noise it prints how large the noise is
beside the frontier's drop in log loss; in how many sweeps intervals are withheld for it; and in how
many the 95 % intervals of E, of the exponent and of the loss at ten times the compute hold the true
ones: of all sweeps, and of those whose intervals are not withheld; and how often those of the joint
law's own frontier do. They are the figures behind the limit of `frontier_noise`.
"""

import argparse
from typing import NamedTuple

import numpy as np

from var_jax.errors import Parser
from var_jax.scaling import (
    analysis,
    estimate,
    frontier,
    frontier_noise,
    losses,
    next_runs,
    profile_intervals,
    solver,
)
from var_jax.studies import planted_rows, study_command
from var_jax.studies.planted_laws import COST, HOFFMANN, PlantedFrontier

SHAPE = (8, 6)  # sizes and token budgets
LAWS = (
    ("alpha 0.35, beta 0.37", (1.82, float(np.log(478)), 0.347, float(np.log(2143)), 0.367)),
    ("Hoffmann's", HOFFMANN),
    ("alpha 0.45, beta 0.25", (1.8, float(np.log(4000)), 0.45, float(np.log(250)), 0.25)),
)
SMALLEST, LARGEST = (3e7, 6e8), (3e9, 6e10)  # params and tokens of the runs
QUANTITIES = ("E", "exponent", "loss ahead")


class Verdict(NamedTuple):
    """One sweep.

    Attributes:
      ratio: noise of the runs over the frontier's drop in log loss, as a fit knows it.
      holds: whether the intervals of `QUANTITIES` hold the truth.
      joint_holds: the same of the joint law's own frontier, for E and the exponent.
    """

    ratio: float
    holds: tuple[bool, ...]
    joint_holds: tuple[bool, ...]


def verdict(planted: PlantedFrontier, rng: np.random.Generator) -> Verdict:
    """Returns the verdict of one noisy sweep."""
    runs = planted.draw_runs(rng)
    joint = profile_intervals.likelihood(runs, estimate.fit(runs, check=False))
    sample = planted.envelope(runs)
    p = analysis.problem(sample, losses.StudentT())
    likelihood = profile_intervals.likelihood(p, estimate.fit(p))
    ends = profile_intervals.profile(likelihood)[[0, 2]]
    truth = planted.truth
    compute = np.array([next_runs.AHEAD * sample.x.max()])
    best = frontier.optimum(np.array([planted.theta]), COST, float(compute[0]))
    exact = solver.predict(np.array([planted.theta]), np.log(best))[0, 0]
    low, high = profile_intervals.profile_prediction(likelihood, compute).interval
    holds = [bool(end[0] < value < end[1]) for end, value in zip(ends, truth[[0, 2]], strict=True)]
    of_joint = profile_intervals.profile(joint)[0], frontier_noise.exponent(joint, COST)["ci95"]
    return Verdict(
        frontier_noise.noise_over_drop(joint.noise, sample),
        (*holds, bool(low < exact < high)),
        tuple(
            bool(end[0] < value < end[1])
            for end, value in zip(of_joint, truth[[0, 2]], strict=True)
        ),
    )


def measure(theta: tuple[float, ...], noise: float, sweeps: int, seed: int) -> dict:
    """Returns the row of a law and a noise."""
    planted = PlantedFrontier("", theta, SMALLEST, LARGEST, (SHAPE,), noise)
    verdicts = [verdict(planted, np.random.default_rng([seed, sweep])) for sweep in range(sweeps)]
    ratios = np.array([one.ratio for one in verdicts])
    holds = np.array([one.holds for one in verdicts])
    by_joint = np.mean([one.joint_holds for one in verdicts], axis=0)
    is_given = ratios <= frontier_noise.TOO_NOISY
    return {
        "ratio": float(np.median(ratios)),
        "withheld": float(np.mean(~is_given)),
        "held": dict(zip(QUANTITIES, holds.mean(axis=0).tolist(), strict=True)),
        "held_by_joint_law": dict(zip(QUANTITIES[:2], by_joint.tolist(), strict=True)),
        "held_where_given": dict(
            zip(QUANTITIES, holds[is_given].mean(axis=0).tolist(), strict=True)
            if is_given.any()
            else ()
        ),
    }


def _line(row: dict) -> str:
    cells = [row["law"], f"{row['noise']:.2%}", f"{row['ratio']:.2%}", f"{row['withheld']:.0%}"]
    for name in ("held", "held_where_given", "held_by_joint_law"):
        held = row[name]
        cells.append(", ".join(f"{key} {share:.1%}" for key, share in held.items()) or "–")
    return f"| {' | '.join(cells)} |"


def main(argv=None) -> int:
    """Prints the table."""
    parser = Parser(prog="python -m var_jax.studies.frontier_coverage", description=__doc__)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.001, 0.002, 0.01])
    planted_rows.add_arguments(parser, sweeps=300, seed=10)
    return study_command.command(parser, _run, argv)


def _run(args: argparse.Namespace):
    print(
        "| joint law | noise of a run | over the frontier's drop | withheld | "
        "truth inside, all sweeps | where given | by the joint law |\n"
        "|---|---|---|---|---|---|---|",
        flush=True,
    )
    thetas = dict(LAWS)
    for row in planted_rows.measured(
        args,
        ((law, {"law": law, "noise": noise}) for law in thetas for noise in args.noise),
        lambda asked: measure(thetas[asked["law"]], asked["noise"], asked["sweeps"], asked["seed"]),
    ):
        print(_line(row), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
