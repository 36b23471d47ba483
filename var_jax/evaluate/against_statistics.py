"""Metrics of samples against the statistics in a reference file, as published figures have them.

With Inception v3 this is the protocol of the ADM evaluator (guided-diffusion's
`evaluations/evaluator.py`): FID and sFID against the file's means and covariances, the Inception
Score over consecutive splits of 5000, precision and recall against the file's images, with all
samples. It differs from that code in two ways: all distances are computed in float64 (there in
float16, unless it overflows), and a singular covariance gets no offset.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from var_jax.evaluate import features, readings, reference_cache, samples, scores
from var_jax.evaluate.features import FeatureNetwork, FeatureStats
from var_jax.evaluate.fid import Frechet, Gaussian, Moments
from var_jax.evaluate.image_sets import ImageSet
from var_jax.evaluate.reference_statistics import ReferenceStatistics

SPLIT = 5000  # samples per split of the Inception Score
PUBLISHED_COUNT = 50_000  # number of samples behind published figures
UNEVEN = 0.9  # a score below this share of the shuffled samples' score draws a warning
OF_IMAGES = ("inception_score", "precision", "recall", "kid", "density", "coverage")
METRICS = ("frechet_distance", "sfid", *OF_IMAGES)


def evaluate(
    sampled: ImageSet,
    statistics: ReferenceStatistics,
    images: ImageSet | None,
    network: FeatureNetwork,
    *,
    seed: int = 0,
    resamples: int = samples.RESAMPLES,
    cache: str | None = None,
    floor: ImageSet | None = None,
    further: Sequence[FeatureNetwork] = (),
) -> dict[str, Any]:
    """Computes all metrics of samples that the statistics of a reference file allow.

    Args:
      sampled: a model's images.
      statistics: statistics of real images.
      images: the images in the same file, for precision and recall; None if it has none, and then
        only distances are computed.
      network: the network that computes the features.
      seed: seed of the bootstrap.
      resamples: as in `samples.evaluate`.
      cache: as in `samples.evaluate`.
      floor: real images, whose distance from the statistics is the floor of the Fréchet distance.
      further: other networks, whose distances stand beside; they are distances from `images`, as
        the statistics are of one network, and are left out without any.
    Returns:
      The report of `samples.evaluate`, with "protocol" ("adm" for statistics of Inception v3, else
      "statistics"), "sfid" in "metrics", and "left_out": {metric: reason}.
    Raises:
      UserError: the statistics are of another network or of images of another size, or there are
        too few images.
    """
    samples.require_resamples(resamples)
    statistics.require_network(network)
    for image_set in (sampled, images, floor):
        if image_set is not None:
            statistics.require_size(image_set)
            features.require_enough(image_set)
    is_adm = bool(network.convention)
    spatial = statistics.spatial if network.apply_with_spatial else None
    generated = features.extract(network, sampled, probs=True, spatial=spatial is not None)
    metrics: dict[str, Any] = dict.fromkeys(METRICS)
    suffix = f" ({network.convention})" if is_adm else ""

    # The distances, which need no images.
    bootstrap = {"seed": seed, "resamples": resamples}
    counts = [generated.moments.count, statistics.count]
    against = {"counts": counts, "against": f"the statistics of {statistics.name}"}
    metrics["frechet_distance"] = {
        "name": network.distance + suffix,
        **_distance(statistics.pooled, generated.moments, generated.rows, **bootstrap),
        **against,
        "floor": _floor(network, statistics, floor, cache),
    }
    if spatial is not None:
        assert generated.spatial is not None and generated.spatial_rows is not None
        metrics["sfid"] = {
            "name": f"s{network.distance}{suffix}",
            **_distance(spatial, generated.spatial, generated.spatial_rows, **bootstrap),
            **against,
        }

    # The rest, where the file has images.
    if images is not None:
        real = reference_cache.read_or_measure(network, images, cache)
        score = _inception_score if is_adm else samples.inception_score
        metrics["inception_score"] = score(network, generated, **bootstrap)
        metrics |= _precision_recall(network, generated, real, all_samples=is_adm)
    left_out = _reasons(metrics, statistics, network)
    if images is None:
        left_out |= {each.key: _without_images(statistics) for each in further}
    for name, metric in metrics.items():
        if metric:
            metric["ci95_method"] = samples.CI95_METHODS[name] if metric["ci95"] else None
    readings.add(metrics, network.dimensions)
    if images is not None:
        metrics |= samples.further_distances(
            further, sampled, images, seed=seed, resamples=resamples, cache=cache, floor=floor
        )
    return {
        "protocol": "adm" if is_adm else "statistics",
        "features": network.described(),
        **samples.described_further(further),
        "samples": sampled.described(),
        "reference": statistics.described(),
        "seed": seed,
        "resamples": resamples,
        "metrics": metrics,
        "left_out": left_out,
        "warnings": samples.image_set_warnings(sampled, generated, network)
        + (_adm_warnings(sampled, network, metrics) if is_adm else []),
    }


def _distance(
    reference: Gaussian, moments: Moments, rows: np.ndarray, *, seed: int, resamples: int
) -> dict[str, Any]:
    """Returns the Fréchet distance and its interval, of sampling as many images again."""
    frechet = Frechet(reference)
    value = frechet.distance(moments)
    ci95 = None
    if resamples:
        ci95 = scores.interval(value, frechet.standard_error(rows, resamples, seed), low=0)
    return {"value": value, "ci95": ci95}


def _floor(
    network: FeatureNetwork,
    statistics: ReferenceStatistics,
    floor: ImageSet | None,
    cache: str | None,
) -> dict[str, Any] | None:
    if floor is None:
        return None
    moments = reference_cache.read_or_measure(network, floor, cache).moments
    return {
        "value": Frechet(statistics.pooled).distance(moments),
        "what": f"{floor.name} against the reference",
        "counts": [moments.count, statistics.count],
    }


def _inception_score(
    network: FeatureNetwork, generated: FeatureStats, *, seed: int, resamples: int
) -> dict[str, Any] | None:
    """Returns the score over consecutive splits; None if the network has no class probabilities.

    "shuffled" is the score of the shuffled samples.
    """
    if generated.log_probs is None or generated.positions is None:
        return None
    in_file_order = generated.log_probs[np.argsort(generated.positions)]
    split = min(SPLIT, len(in_file_order))
    score = scores.consecutive_classifier_score(
        in_file_order, split, seed=seed, resamples=resamples
    )
    order = np.random.default_rng(seed).permutation(len(in_file_order))
    shuffled = scores.consecutive_classifier_score(in_file_order[order], split, resamples=0)
    name = f"{network.score}, consecutive splits of {SPLIT}"
    return {"name": name, **score, "shuffled": shuffled["value"]}


def _precision_recall(
    network: FeatureNetwork, generated: FeatureStats, real: FeatureStats, *, all_samples: bool
) -> dict[str, Any]:
    """Returns both. The ADM evaluator uses all samples, and recall depends on their number."""
    if not all_samples:
        return samples.precision_recall(network, generated, real)
    if min(len(generated.rows), len(real.rows)) <= scores.NEIGHBORS:
        return {}
    pair = scores.precision_recall(generated.rows, real.rows)
    return {name: {"name": f"improved {name}, {network.name}", **pair[name]} for name in pair}


def _reasons(
    metrics: Mapping[str, Any], statistics: ReferenceStatistics, network: FeatureNetwork
) -> dict[str, str]:
    """Returns the reason for each metric that was left out."""
    no_images = _without_images(statistics)
    only = f"the images in {statistics.name} serve precision and recall only"
    reasons = dict.fromkeys(("kid", "density", "coverage"), only)
    if statistics.spatial is None:
        reasons["sfid"] = f"{statistics.name} has no mu_s and sigma_s"
    elif network.apply_with_spatial is None:
        reasons["sfid"] = f"{network.name} has no features of sFID here"
    if statistics.has_images:
        reasons["inception_score"] = f"{network.name} gives no class probabilities here"
        reasons["precision"] = reasons["recall"] = f"at most {scores.NEIGHBORS} images on one side"
    else:
        reasons |= dict.fromkeys(OF_IMAGES, no_images)
    return {name: reasons[name] for name, metric in metrics.items() if metric is None}


def _without_images(statistics: ReferenceStatistics) -> str:
    return f"{statistics.name} has no arr_0: only distances from its statistics are given"


def _adm_warnings(
    sampled: ImageSet, network: FeatureNetwork, metrics: Mapping[str, Any]
) -> list[str]:
    """Returns warnings about figures that cannot be compared with published ones."""
    warnings = []
    if network.convention != "ADM":
        warnings.append(
            f"images are resized as pytorch-fid does, with the weights of {network.weights_from}; "
            "the number is not FID (ADM), which needs the ADM evaluator's frozen graph "
            "(classify_image_graph_def.pb) as --weights, and may differ from it by about 0.1"
        )
    if sampled.count != PUBLISHED_COUNT:
        warnings.append(
            f"{sampled.name} has {sampled.count} images; published figures are of "
            f"{PUBLISHED_COUNT}, and distances fall with the number"
        )
    score = metrics["inception_score"]
    if score and score["value"] < UNEVEN * score["shuffled"]:
        warnings.append(
            f"the Inception Score of {sampled.name} is {score['value']:.5g} in the order of the "
            f"file, and {score['shuffled']:.5g} shuffled: its images are in the order of their "
            "classes; shuffle them"
        )
    return warnings
