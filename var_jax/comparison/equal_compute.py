"""Compares objectives whose runs took the same training compute, by their intervals alone."""

from collections.abc import Sequence

from var_jax.comparison import compared_run
from var_jax.comparison.compared_run import TRAINING, ComparedRun, Comparison

EQUAL = 1.05  # ratio of training FLOPs up to which runs count as equally expensive


def sentences(comparison: Comparison) -> list[str]:
    """Returns a sentence for each quality and each compute that two or more objectives have.

    It has the best run of every objective, from the best to the worst, and says whose interval
    overlaps that of the first. Qualities that are not comparable between objectives, or of which
    nobody knows what is better, are left out.
    """
    texts = []
    for quality in comparison.qualities:
        if compared_run.direction(quality) == "unknown":
            continue
        for group in _equally_expensive([r for r in comparison.runs if quality in r.quality]):
            names = list(dict.fromkeys(run.objective for run in group))
            if len(names) > 1 and compared_run.comparable(comparison, quality, names):
                texts.append(_sentence(quality, group, names))
    return texts


def _equally_expensive(runs: Sequence[ComparedRun]) -> list[list[ComparedRun]]:
    """Returns the runs in groups of equal training FLOPs, in ascending order."""
    groups: list[list[ComparedRun]] = []
    for run in sorted(runs, key=lambda run: run.costs[TRAINING]):
        if groups and run.costs[TRAINING] <= EQUAL * groups[-1][0].costs[TRAINING]:
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


def _sentence(quality: str, group: Sequence[ComparedRun], names: Sequence[str]) -> str:
    sign = 1 if compared_run.direction(quality) == "lower" else -1
    ranked = sorted(group, key=lambda run: sign * run.quality[quality].value)
    best = {name: next(run for run in ranked if run.objective == name) for name in names}
    order = sorted(best, key=lambda name: sign * best[name].quality[quality].value)
    texts = []
    for name in order:
        count = sum(run.objective == name for run in group)
        chosen = f" (best of {count} runs)" if count > 1 else ""
        texts.append(f"{name} {best[name].quality[quality]}{chosen}")
    flops = f"{group[0].costs[TRAINING]:.3g}"
    text = f"{quality} at {flops} training FLOPs: {', '.join(texts)}. "
    intervals = {name: best[name].quality[quality].ci95 for name in order}
    first = order[0]
    ends = intervals[first]
    if ends is None or None in intervals.values():
        return f"{text}Without all intervals, the order may be by chance."
    overlapping = [
        name
        for name, other in intervals.items()
        if other is not None and name != first and other[0] <= ends[1] and ends[0] <= other[1]
    ]
    if overlapping:
        return f"{text}The interval of {first} overlaps that of {', '.join(overlapping)}."
    return f"{text}{first} is ahead: no interval overlaps its own."
