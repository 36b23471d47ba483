"""Measures how often intervals of a frontier's law hold the truth, by the noise of its runs.

`python -m var_jax.studies.frontier_coverage` plants a joint law at 48 runs, takes the envelope of
noisy sweeps of it, and prints for each noise how large it is beside the frontier's drop in log
loss, and in how many sweeps the 95 % intervals of E and of the exponent hold the true ones. They
are the figures behind the limit of `frontier_noise`.
"""

import argparse
import dataclasses

import numpy as np

from var_jax.errors import Parser
from var_jax.scaling import analysis, laws, losses, profile_intervals, select_runs
from var_jax.studies import study_command
from var_jax.studies.planted_laws import FRONTIERS, PlantedFrontier

SHAPE = (8, 6)  # sizes and token budgets
STARTS = 4


def coverage(planted: PlantedFrontier, sweeps: int, seed: int) -> str:
    """Returns a row of the table: noise, noise over drop, and shares of sweeps that hold."""
    truth = planted.truth
    inside, ratios = [], []
    for sweep in range(sweeps):
        sample = planted.draw(np.random.default_rng([seed, sweep]))
        assert isinstance(sample, select_runs.Sample)
        p = analysis.problem(sample, losses.StudentT())
        fit = laws.fit(p, num_starts=STARTS, check=False)
        ends = profile_intervals.profile(profile_intervals.likelihood(p, fit))
        inside.append([ends[i, 0] < truth[i] < ends[i, 1] for i in (0, 2)])
        ratios.append(planted.noise / np.log(sample.y.max() / sample.y.min()))
    floor, exponent = np.mean(inside, axis=0)
    return f"| {planted.noise:.1%} | {np.median(ratios):.2%} | {floor:.0%} | {exponent:.0%} |"


def main(argv=None) -> int:
    """Prints the table."""
    parser = Parser(prog="python -m var_jax.studies.frontier_coverage", description=__doc__)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.002, 0.003, 0.005, 0.01])
    parser.add_argument("--sweeps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=7)
    return study_command.command(parser, _run, argv)


def _run(args: argparse.Namespace):
    print("| noise of a run | over the frontier's drop | E held | exponent held |")
    print("|---|---|---|---|", flush=True)
    for noise in args.noise:
        planted = dataclasses.replace(FRONTIERS[0], shapes=(SHAPE,), noise=noise)
        print(coverage(planted, args.sweeps, args.seed), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
