"""Samples against a reference: Fréchet distance, Inception Score, precision, recall and KID."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from var_jax.config.strict import require
from var_jax.evaluate import classifier, features, readings, reference_cache, scores
from var_jax.evaluate.feature_networks import CMMD
from var_jax.evaluate.features import FeatureNetwork, FeatureStats
from var_jax.evaluate.fid import Frechet, Moments, frechet_distance
from var_jax.evaluate.image_sets import ImageSet, with_classes_of

RESAMPLES = 20
CI95_METHODS = {
    "frechet_distance": "normal, deviation by bootstrap over samples, reference fixed",
    "sfid": "normal, deviation by bootstrap over samples, reference fixed",
    "inception_score": "normal, deviation by bootstrap over samples within splits",
    "precision": "Wilson over samples, balls fixed",
    "recall": "Wilson over reference images, balls fixed",
    "density": "normal over samples, balls fixed",
    "coverage": "Wilson over reference images, balls fixed",
    "kid": "normal, deviation over subsets rescaled to all images",
    "agreement": "Wilson over samples, classifier fixed",
}
HALVES = "two disjoint random halves of the reference"
# Least number of images per side for KID: subsets are half of them, and an unbiased estimate needs
# two.
MIN_KERNEL_ROWS = 4


def evaluate(
    samples: ImageSet,
    reference: ImageSet,
    network: FeatureNetwork,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    cache: str | None = None,
    floor: ImageSet | None = None,
    further: Sequence[FeatureNetwork] = (),
) -> dict[str, Any]:
    """Computes all metrics of samples against a reference.

    Args:
      samples: a model's images.
      reference: real images.
      network: the network that computes the features.
      seed: seed of the bootstrap, the splits and the subsets; nothing depends on the order of the
        samples.
      resamples: number of bootstrap resamples for the intervals of the Fréchet distance and the
        Inception Score; 0 for no intervals.
      cache: as in `reference_cache.read_or_measure`.
      floor: other real images, which are measured in place of the samples for the floor; by default
        the floor is the distance of two halves of the reference.
      further: other networks, whose distances of the same images stand beside (`side_by_side`).
    Returns:
      {"features", "samples", "reference", "seed", "resamples", "metrics": {"frechet_distance",
      "inception_score", "precision", "recall", "density", "coverage", "kid"}, "warnings"}; with
      further networks "further_features" too, and metrics by their keys. A metric
      is {"name", "value", "ci95", "ci95_method", "reading", ...} or null. "ci95_method" names the
      method of the interval and the quantities that it holds fixed, which differ between metrics;
      it is null where there is no interval. "reading" says in one line how to read the value.
    Raises:
      UserError: there are too few images, or a file cannot be read.
    """
    require_resamples(resamples)
    for images in (samples, reference):
        features.require_enough(images)
    real = reference_cache.read_or_measure(network, reference, cache)
    generated = features.extract(network, samples, probs=True)
    other = (floor, reference_cache.read_or_measure(network, floor, cache)) if floor else None
    warnings = image_set_warnings(samples, generated, network)
    warnings += image_set_warnings(reference, real, network)
    distance = frechet(network, generated, real, seed=seed, resamples=resamples, floor=other)
    warnings += floor_warnings(distance)
    metrics: dict[str, Any] = {
        "frechet_distance": distance,
        "inception_score": None,
        "precision": None,
        "recall": None,
        "density": None,
        "coverage": None,
    }
    metrics["inception_score"] = inception_score(network, generated, seed=seed, resamples=resamples)
    if metrics["inception_score"] is None:
        warnings.append(f"no Inception Score: {network.name} gives no class probabilities here")
    metrics |= precision_recall(network, generated, real)
    metrics |= density_coverage(network, generated, real)
    metrics["kid"] = {
        "name": f"KID, {network.name}",
        **scores.kernel_distance(generated.rows, real.rows, seed=seed),
        "counts": [len(generated.rows), len(real.rows)],
        "floor": kernel_floor(real, seed, other),
    }
    for name, metric in metrics.items():
        if metric:
            metric["ci95_method"] = CI95_METHODS[name] if metric["ci95"] else None
    readings.add(metrics, network.dimensions)
    metrics |= further_distances(
        further, samples, reference, seed=seed, resamples=resamples, cache=cache, floor=floor
    )
    return {
        "features": network.described(),
        **described_further(further),
        "samples": samples.described(),
        "reference": reference.described(),
        "seed": seed,
        "resamples": resamples,
        "metrics": metrics,
        "warnings": warnings,
    }


def require_resamples(resamples: int):
    """Raises UserError for a number of resamples that gives no standard error."""
    require(
        resamples == 0 or resamples >= 2,
        "--resamples",
        resamples,
        "0, for no intervals, or at least 2",
    )


def inception_score(
    network: FeatureNetwork, generated: FeatureStats, *, seed: int, resamples: int
) -> dict[str, Any] | None:
    """Returns the score of shuffled samples; None if the network has no class probabilities."""
    if generated.log_probs is None:
        return None
    score = scores.classifier_score(generated.log_probs, seed=seed, resamples=resamples)
    return {"name": network.score, **score}


def precision_recall(
    network: FeatureNetwork, generated: FeatureStats, real: FeatureStats
) -> dict[str, Any]:
    """Returns precision and recall, of as many samples as real images; {} if there are too few."""
    count = min(len(generated.rows), len(real.rows), scores.MAX_NEIGHBOR_ROWS)
    if count <= scores.NEIGHBORS:
        return {}
    pair = scores.precision_recall(generated.rows[:count], real.rows[:count])
    return {name: {"name": f"improved {name}, {network.name}", **pair[name]} for name in pair}


def density_coverage(
    network: FeatureNetwork, generated: FeatureStats, real: FeatureStats
) -> dict[str, Any]:
    """Returns density and coverage, of as many samples as real images; {} if there are too few."""
    count = min(len(generated.rows), len(real.rows), scores.MAX_NEIGHBOR_ROWS)
    if count <= scores.DENSITY_NEIGHBORS:
        return {}
    pair = scores.density_coverage(generated.rows[:count], real.rows[:count])
    return {name: {"name": f"{name}, {network.name}", **pair[name]} for name in pair}


def agreement(
    samples: ImageSet, training: ImageSet, reference: ImageSet | None = None
) -> dict[str, Any]:
    """Returns the share of samples that show their labels to a classifier of pixels.

    The classifier is fitted on labeled training images.

    It has the share of the reference too, as "on_reference", where the reference has labels.

    Raises:
      UserError: the samples or training images have no labels, or are of one class.
    """
    training = with_classes_of(training, samples.class_names)
    classified = [samples]
    if reference is not None and reference.class_names:
        classified.append(with_classes_of(reference, samples.class_names))
    classes = 1 + max(len(images.class_names) for images in (training, *classified))
    pixels, labels = classifier.load_all(training, classes)
    guesses = len(np.unique(labels))
    classify = classifier.pixel_classifier(pixels.astype(np.float32) / 255, labels)
    agreements: list[dict[str, Any]] = []
    for images in classified:
        pixels, labels = classifier.load_all(images, classes)
        agreements.append(classifier.agreement(classify, pixels.astype(np.float32) / 255, labels))
    report = {
        "name": f"as labelled, by a classifier of pixels fitted on {training.name}",
        **agreements[0],
        "ci95_method": CI95_METHODS["agreement"],
        "on_reference": agreements[1] if len(agreements) > 1 else None,
    }
    return {**report, "reading": readings.of_agreement(report, guesses)}


class Distance:
    """Fréchet distances to a fixed set of real images.

    Intervals are for sampling as many images again, by a bootstrap of their features with the
    reference fixed; they contain the bias of finite sets, as the values do.
    """

    def __init__(self, real: FeatureStats, resamples: int, seed: int):
        self.real, self._resamples, self._seed = real, resamples, seed
        self._reference = Frechet(real.moments)

    def value(self, moments: Moments) -> float:
        """Returns the distance of images with these moments."""
        return self._reference.distance(moments)

    def of(self, stats: FeatureStats) -> dict[str, Any]:
        """Returns {"value", "counts", "ci95" (null without resamples)} of images."""
        value = self.value(stats.moments)
        ci95 = None
        if self._resamples:
            error = self._reference.standard_error(stats.rows, self._resamples, self._seed)
            ci95 = scores.interval(value, error, low=0)
        counts = [stats.moments.count, self.real.moments.count]
        return {"value": value, "counts": counts, "ci95": ci95}


def frechet(
    network: FeatureNetwork,
    generated: FeatureStats,
    real: FeatureStats,
    *,
    seed: int,
    resamples: int,
    floor: tuple[ImageSet, FeatureStats] | None = None,
) -> dict[str, Any]:
    """Returns the Fréchet distance with its interval and its floor.

    The distance of finite sets is biased upwards, the more so the fewer the images. The floor, the
    distance between real images and real images, shows the bias, with the counts of both.
    """
    distance = Distance(real, resamples, seed)
    if floor:
        images, other = floor
        ground = {
            "value": distance.value(other.moments),
            "what": f"{images.name} against the reference",
            "counts": [other.moments.count, real.moments.count],
        }
    else:
        ground = real_against_real(real)
    return {"name": network.distance, **distance.of(generated), "floor": ground}


def real_against_real(real: FeatureStats) -> dict[str, Any] | None:
    """Returns the Fréchet distance of a reference's two halves; None if it has too few images."""
    if min(half.count for half in real.halves) < 2:
        return None
    return {
        "value": frechet_distance(*real.halves),
        "what": HALVES,
        "counts": [half.count for half in real.halves],
    }


def kernel_floor(
    real: FeatureStats, seed: int, floor: tuple[ImageSet, FeatureStats] | None = None
) -> dict[str, Any] | None:
    """Returns the kernel distance of real images to real images; None if there are too few.

    That of samples is compared with it.

    Rows are in the order of their images' hashes, so that every second one is a random half.
    """
    if floor:
        images, other = floor
        pair, what = (other.rows, real.rows), f"{images.name} against the reference"
    else:
        pair, what = (
            (real.rows[::2], real.rows[1::2]),
            HALVES,
        )
    if min(map(len, pair)) < MIN_KERNEL_ROWS:
        return None
    return {
        **scores.kernel_distance(*pair, seed=seed),
        "what": what,
        "counts": [len(rows) for rows in pair],
    }


def further_distances(
    networks: Sequence[FeatureNetwork],
    samples: ImageSet,
    reference: ImageSet,
    *,
    seed: int,
    resamples: int,
    cache: str | None,
    floor: ImageSet | None,
) -> dict[str, dict[str, Any]]:
    """Returns {key: metric}, the distances of further networks; see `evaluate`."""
    return {
        network.key: side_by_side(
            network,
            features.extract(network, samples),
            reference_cache.read_or_measure(network, reference, cache),
            seed=seed,
            resamples=resamples,
            floor=(floor, reference_cache.read_or_measure(network, floor, cache))
            if floor
            else None,
        )
        for network in networks
    }


def described_further(networks: Sequence[FeatureNetwork]) -> dict[str, Any]:
    """Returns what a report says of further networks; nothing where there are none."""
    return {"further_features": [each.described() for each in networks]} if networks else {}


def side_by_side(
    network: FeatureNetwork,
    generated: FeatureStats,
    real: FeatureStats,
    *,
    seed: int,
    resamples: int,
    floor: tuple[ImageSet, FeatureStats] | None = None,
) -> dict[str, Any]:
    """Returns the distance of a further network, with its interval, floor and reading.

    CLIP's is CMMD, without an interval, and that of all others is a Fréchet distance.
    """
    if network.key == CMMD:
        metric = {**cmmd(network, generated, real), "floor": cmmd_floor(real, floor)}
        return {**metric, "ci95_method": None, "reading": readings.FIXED[CMMD]}
    metric = frechet(network, generated, real, seed=seed, resamples=resamples, floor=floor)
    metric["ci95_method"] = CI95_METHODS["frechet_distance"] if metric["ci95"] else None
    return {**metric, "reading": readings.of_frechet(metric, network.dimensions)}


def cmmd(network: FeatureNetwork, generated: FeatureStats, real: FeatureStats) -> dict[str, Any]:
    """Returns CMMD, which has no interval."""
    return {
        "name": network.distance,
        "value": scores.cmmd(generated.rows, real.rows),
        "ci95": None,
        "counts": [len(generated.rows), len(real.rows)],
    }


def cmmd_floor(
    real: FeatureStats, floor: tuple[ImageSet, FeatureStats] | None = None
) -> dict[str, Any]:
    """Returns CMMD of real images to real images, as `kernel_floor` takes them."""
    if floor:
        images, other = floor
        pair, what = (other.rows, real.rows), f"{images.name} against the reference"
    else:
        pair, what = (real.rows[::2], real.rows[1::2]), HALVES
    return {"value": scores.cmmd(*pair), "what": what, "counts": [len(rows) for rows in pair]}


def floor_warnings(distance: dict[str, Any]) -> list[str]:
    """Returns a warning if the floor was measured on fewer images than the value.

    It is then the more biased of the two: the bias grows about with the sum of 1 / count of both
    sides.
    """
    floor = distance["floor"]
    if floor is None or sum(1 / n for n in floor["counts"]) <= sum(
        1 / n for n in distance["counts"]
    ):
        return []
    few, many = (" and ".join(map(str, metric["counts"])) for metric in (floor, distance))
    return [f"the floor is of {few} images and the value of {many}: the floor is overstated"]


def image_set_warnings(images: ImageSet, stats: FeatureStats, network: FeatureNetwork) -> list[str]:
    """Returns warnings for a reader of an image set's figures."""
    warnings = too_few_warnings(images, network)
    if stats.distinct < images.count:
        warnings.append(
            f"{images.name} holds {images.count - stats.distinct} copies of images that it has "
            "already"
        )
    return warnings


def too_few_warnings(images: ImageSet, network: FeatureNetwork) -> list[str]:
    """Returns a warning if a set has no more images than the covariance of features needs."""
    if images.count > network.dimensions:
        return []
    return [
        f"{images.name} has {images.count} images, too few for the covariance of "
        f"{network.dimensions} features: the Fréchet distance is biased far upwards"
    ]
