"""Joins runs that differ only in their seed: the mean of their qualities, with its interval."""

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from scipy import special

from var_jax.comparison.compared_run import TRAINING, ComparedRun, Measured
from var_jax.errors import UserError
from var_jax.scaling.profile_intervals import CONFIDENCE_LEVEL


def join(runs: Sequence[tuple[ComparedRun, Any]]) -> list[ComparedRun]:
    """Returns one run in place of those of several seeds.

    Runs of one objective, name and number of training FLOPs are repetitions. Their qualities become
    means with Student's t intervals over the seeds, which contain what differs between trainings;
    an interval of one run, such as that over its samples, does not, and is left out then.

    Args:
      runs: each with its seed, None where there is none.

    Raises:
      UserError: a run is there twice with the same seed.
    """
    groups: dict[Hashable, list[tuple[ComparedRun, Any]]] = {}
    for run, seed in runs:
        key = (run.objective, run.run, f"{run.costs[TRAINING]:.6g}")
        groups.setdefault(key, []).append((run, seed))
    joined = []
    for group in groups.values():
        first = group[0][0]
        seeds = [str(seed).strip() for _, seed in group]
        if twice := next((seed for seed in seeds if seeds.count(seed) > 1), None):
            where = f"with the seed {twice}" if group[0][1] is not None else "without a seed"
            raise UserError(
                f"the run {first.run!r} of {first.objective!r} is there {seeds.count(twice)} times "
                f"{where}; repetitions need a column seed, and other runs another name"
            )
        joined.append(first if len(group) == 1 else _mean([run for run, _ in group]))
    return joined


def _mean(runs: Sequence[ComparedRun]) -> ComparedRun:
    first = runs[0]
    axes = [axis for axis in first.costs if all(axis in run.costs for run in runs)]
    qualities = dict.fromkeys(name for run in runs for name in run.quality)
    return dataclasses.replace(
        first,
        costs={axis: float(np.mean([run.costs[axis] for run in runs])) for axis in axes},
        quality={
            name: mean_with_interval([r.quality[name].value for r in runs if name in r.quality])
            for name in qualities
        },
        seeds=len(runs),
    )


def mean_with_interval(values: Sequence[float]) -> Measured:
    """Returns the mean of values with its 95 % interval by Student's t; none of one value."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Measured(mean, None)
    quantile = float(special.stdtrit(count - 1, (1 + CONFIDENCE_LEVEL) / 2))
    margin = quantile * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Measured(mean, (mean - margin, mean + margin))
