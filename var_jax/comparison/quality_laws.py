"""Laws of quality against training FLOPs per objective, and what they say of ten times as many."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from var_jax.comparison import compared_run
from var_jax.comparison.compared_run import TRAINING, Comparison
from var_jax.scaling import analysis, frontier_noise, profile_intervals, select_runs
from var_jax.scaling.analysis import Law
from var_jax.scaling.next_runs import AHEAD
from var_jax.scaling.select_runs import MIN_SIZES, Refused
from var_jax.scaling.table import Table

FORM = "E + A * C**-alpha, C training FLOPs"


@dataclasses.dataclass(frozen=True)
class QualityLaw:
    """The law of a quality of an objective.

    Attributes:
      law: that of the quality, or of 1 less a share, as laws fall; None if it is refused.
      is_share: whether it is of 1 less the quality.
      summary: its entry in laws.json.
    """

    law: Law | None
    is_share: bool
    summary: dict[str, Any]


def fit(comparison: Comparison) -> dict[str, dict[str, QualityLaw]]:
    """Returns the laws by quality and objective.

    Each is fitted by the estimator of `var-jax fit`: to the compute-optimal frontier where sizes
    overlap in compute, else to the last row of every run. The prediction is at `AHEAD` times the
    largest compute that any objective has with this quality, the same for all of them.
    """
    laws: dict[str, dict[str, QualityLaw]] = {}
    for quality in comparison.qualities:
        runs = [run for run in comparison.runs if quality in run.quality]
        at = AHEAD * max(run.costs[TRAINING] for run in runs)
        laws[quality] = {
            objective: _fit(comparison, objective, quality, at)
            for objective in comparison.objectives
            if comparison.of(objective, quality)
        }
    return laws


def _fit(comparison: Comparison, objective: str, quality: str, at: float) -> QualityLaw:
    """Returns the law of a quality, with its prediction at `at` training FLOPs."""
    runs = comparison.of(objective, quality)
    direction = compared_run.direction(quality)
    is_share = direction == "share"
    values = np.array([run.quality[quality].value for run in runs])
    columns = {
        "compute": np.array([run.costs[TRAINING] for run in runs]),
        quality: 1 - values if is_share else values,
    }
    params = [np.nan if run.params is None else run.params for run in runs]
    if np.isfinite(params).all():
        columns["params"] = np.array(params)
    name = f"1 - {quality}" if is_share else quality
    try:
        if direction == "higher":
            raise Refused(f"rising: {quality} rises with compute, and a law falls to its E")
        computes = len(np.unique(np.round(np.log(columns["compute"]), 6)))
        if computes < MIN_SIZES:
            raise Refused(f"few-computes: {computes} different; {MIN_SIZES} are needed")
        table = Table(np.array([run.run for run in runs], dtype=object), columns)
        sample = select_runs.sample(table, quality, ("compute",))
        law = analysis.analyze(f"{name}~compute", sample, resamples=0)
    except Refused as reason:
        summary = analysis.refusal(("compute",), str(reason)) | {"form": FORM, "of": name}
        return QualityLaw(None, is_share, summary)
    frontier_noise.withhold(law, None, None)
    predicted = profile_intervals.profile_prediction(law.likelihood, np.array([at]))
    as_quality = _complement if is_share else float
    ends = [np.nan, np.nan]
    if law.has_intervals:
        ends = sorted(as_quality(end) for end in predicted.interval)
    summary = {
        **law.summary,
        "form": FORM,
        "of": name,
        "prediction": {
            "train_flops": at,
            "value": as_quality(predicted.value),
            "ci95": ends,
        },
    }
    return QualityLaw(law, is_share, summary)


def _complement(share: float) -> float:
    return 1 - float(share)


def verdicts(
    comparison: Comparison, laws: Mapping[str, Mapping[str, QualityLaw]]
) -> list[tuple[str, str]]:
    """Returns (quality, sentence) for each pair of objectives that have a law of it.

    Qualities that are not comparable between objectives, or of which nobody knows what is better,
    are left out.

    The sentence says whether the intervals at ten times the largest compute overlap, and so whether
    the laws can tell which objective is ahead.
    """
    sentences = []
    for quality, by_objective in laws.items():
        if compared_run.direction(quality) == "unknown":
            continue
        fitted = {name: law for name, law in by_objective.items() if law.law is not None}
        for one, other in itertools.combinations(fitted, 2):
            if compared_run.comparable(comparison, quality, (one, other)):
                pair = {name: fitted[name].summary for name in (one, other)}
                sentences.append((quality, _verdict(quality, pair)))
    return sentences


def _verdict(quality: str, laws: Mapping[str, Mapping[str, Any]]) -> str:
    one, other = laws
    texts, ends = [], []
    for name, law in laws.items():
        low, high = law["prediction"]["ci95"]
        ends.append((low, high))
        texts.append(f"{name} {law['prediction']['value']:.4g} [{low:.4g}, {high:.4g}]")
    at = laws[one]["prediction"]["train_flops"]
    text = f"{quality} at {at:.3g} training FLOPs, ten times the most: {', '.join(texts)}. "
    if any(
        note.startswith(frontier_noise.UNKNOWN) for law in laws.values() for note in law["warnings"]
    ):
        return (
            f"{text}Envelopes of runs whose noise is not known ({frontier_noise.UNKNOWN}) have no "
            "intervals, so the laws cannot tell which is ahead."
        )
    if not np.isfinite(ends).all():
        return f"{text}An interval is missing, so the laws cannot tell which is ahead."
    (low, high), (other_low, other_high) = ends
    if low <= other_high and other_low <= high:
        return f"{text}The intervals overlap, so the laws cannot tell which is ahead."
    lower_is_better = compared_run.direction(quality) == "lower"
    ahead = one if (high < other_low) == lower_is_better else other
    return (
        f"{text}The intervals do not overlap: if both laws hold that far beyond their runs, "
        f"{ahead} is ahead."
    )
