"""Samples against a reference: Fréchet distance, Inception Score, precision, recall and KID."""

from typing import Any

import numpy as np

from var_jax.config.strict import require
from var_jax.evaluate import classifier, features, readings, scores
from var_jax.evaluate.features import FeatureNetwork, FeatureStats
from var_jax.evaluate.fid import Frechet, Moments, frechet_distance
from var_jax.evaluate.image_sets import ImageSet, with_classes_of

RESAMPLES = 20
CI95_METHODS = {
    "frechet_distance": "normal, deviation by bootstrap over samples, reference fixed",
    "inception_score": "normal, deviation by bootstrap over samples within splits",
    "precision": "Wilson over samples, balls fixed",
    "recall": "Wilson over reference images, balls fixed",
    "kid": "normal, deviation over subsets rescaled to all images",
    "agreement": "Wilson over samples, classifier fixed",
}
LEAST_KERNEL_ROWS = (
    4  # of each side, as subsets are of half of them and an unbiased estimate needs two
)
NEIGHBOUR_ROWS = 10_000  # of each side for precision, recall: the distances grow with the square


def evaluate(
    samples: ImageSet,
    reference: ImageSet,
    network: FeatureNetwork,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    cache: str | None = None,
    floor: ImageSet | None = None,
) -> dict[str, Any]:
    """Computes all metrics of samples.

    Args:
      seed: of the bootstrap, of the splits and of the subsets; nothing depends on the order of the
        samples.
      resamples: of the Fréchet distance and the Inception Score, for their intervals; 0 for none.
      cache: as `features.of_reference`.
      floor: other real images to measure in place of the samples; by default two halves of the
        reference.
    Returns:
      {"features", "samples", "reference", "seed", "resamples", "metrics": {"frechet_distance",
      "inception_score", "precision", "recall", "kid"}, "warnings"}; a metric is {"name", "value",
      "ci95", "ci95_method", "reading", ...} or null. "ci95_method" says in words how the interval
      was made, as the metrics differ in it and in what is held fixed; it is null where there is no
      interval. "reading" says in a line how to read the figure.
    Raises:
      UserError: too few images, or what does not read.
    """
    require(
        resamples == 0 or resamples >= 2,
        "--resamples",
        resamples,
        "0, for no intervals, or at least 2",
    )
    for images in (samples, reference):
        features.require_enough(images)
    real = features.of_reference(network, reference, cache)
    drawn = features.extract(network, samples, probs=True)
    other = (floor, features.of_reference(network, floor, cache)) if floor else None
    warnings = [
        w
        for images, found in ((samples, drawn), (reference, real))
        for w in image_set_warnings(images, found, network)
    ]
    distance = frechet(network, drawn, real, seed, resamples, other)
    warnings += floor_warnings(distance)
    metrics: dict[str, Any] = {
        "frechet_distance": distance,
        "inception_score": None,
        "precision": None,
        "recall": None,
    }
    if drawn.log_probs is not None:
        metrics["inception_score"] = {
            "name": network.score,
            **scores.classifier_score(drawn.log_probs, seed=seed, resamples=resamples),
        }
    else:
        warnings.append(f"no Inception Score: {network.name} gives no class probabilities here")
    count = min(len(drawn.rows), len(real.rows), NEIGHBOUR_ROWS)
    if count > scores.NEIGHBOURS:
        pair = scores.precision_recall(drawn.rows[:count], real.rows[:count])
        metrics |= {
            name: {"name": f"improved {name}, {network.name}", **pair[name]} for name in pair
        }
    metrics["kid"] = {
        "name": f"KID, {network.name}",
        **scores.kernel_distance(drawn.rows, real.rows, seed=seed),
        "counts": [len(drawn.rows), len(real.rows)],
        "floor": kernel_floor(real, seed, other),
    }
    for name, metric in metrics.items():
        if metric:
            metric["ci95_method"] = CI95_METHODS[name] if metric["ci95"] else None
    readings.add(metrics, network.dimensions)
    return {
        "features": network.described(),
        "samples": samples.described(),
        "reference": reference.described(),
        "seed": seed,
        "resamples": resamples,
        "metrics": metrics,
        "warnings": warnings,
    }


def agreement(samples: ImageSet, training: ImageSet, reference: ImageSet) -> dict[str, Any]:
    """The share of samples that a classifier of pixels, fitted on labelled training images, finds
    to be what their labels say; "on_reference" beside it, where the reference has labels.

    Raises:
      UserError: samples or training images without labels, or of one class.
    """
    training = with_classes_of(training, samples.class_names)
    judged = [samples]
    if reference.class_names:
        judged.append(with_classes_of(reference, samples.class_names))
    classes = 1 + max(len(images.class_names) for images in (training, *judged))
    pixels, labels = classifier.load_all(training, classes)
    guesses = len(np.unique(labels))
    classify = classifier.pixel_classifier(pixels.astype(np.float32) / 255, labels)
    found: list[dict[str, Any]] = []
    for images in judged:
        pixels, labels = classifier.load_all(images, classes)
        found.append(classifier.agreement(classify, pixels.astype(np.float32) / 255, labels))
    report = {
        "name": f"as labelled, by a classifier of pixels fitted on {training.name}",
        **found[0],
        "ci95_method": CI95_METHODS["agreement"],
        "on_reference": found[1] if len(found) > 1 else None,
    }
    return {**report, "reading": readings.of_agreement(report, guesses)}


class Distance:
    """Fréchet distances to one set of real images, each with the interval of drawing as many
    samples again (bootstrap of their rows, the reference fixed): the bias of finite sets is in it
    as it is in the value."""

    def __init__(self, real: FeatureStats, resamples: int, seed: int):
        self.real, self._resamples, self._seed = real, resamples, seed
        self._reference = Frechet(real.moments)

    def value(self, moments: Moments) -> float:
        return self._reference.distance(moments)

    def of(self, found: FeatureStats) -> dict[str, Any]:
        """{"value", "counts", "ci95" (null without resamples)}."""
        value = self.value(found.moments)
        deviation = (
            self._reference.deviation(found.rows, self._resamples, self._seed)
            if self._resamples
            else None
        )
        return {
            "value": value,
            "counts": [found.moments.count, self.real.moments.count],
            "ci95": None if deviation is None else scores.interval(value, deviation, low=0),
        }


def frechet(
    network: FeatureNetwork,
    drawn: FeatureStats,
    real: FeatureStats,
    seed: int,
    resamples: int,
    floor: tuple[ImageSet, FeatureStats] | None = None,
) -> dict[str, Any]:
    """Returns the Fréchet distance with its interval and its floor.

    The distance of finite sets is biased upwards, the more so the fewer the images: hence the
    floor, the distance between real images and real images, with the counts of both.
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
    return {"name": network.distance, **distance.of(drawn), "floor": ground}


def real_against_real(real: FeatureStats) -> dict[str, Any] | None:
    """The distance of two disjoint halves of a reference, of all its images together; None of too
    few images."""
    if min(half.count for half in real.halves) < 2:
        return None
    return {
        "value": frechet_distance(*real.halves),
        "what": "two disjoint random halves of the reference",
        "counts": [half.count for half in real.halves],
    }


def kernel_floor(
    real: FeatureStats, seed: int, floor: tuple[ImageSet, FeatureStats] | None = None
) -> dict[str, Any] | None:
    """The kernel distance of real images to real images, which gives that of samples a scale; None
    of too few images.

    Rows are in the order of their images' hashes, so that every second one is a random half.
    """
    if floor:
        images, other = floor
        pair, what = (other.rows, real.rows), f"{images.name} against the reference"
    else:
        pair, what = (
            (real.rows[::2], real.rows[1::2]),
            "two disjoint random halves of the reference",
        )
    if min(map(len, pair)) < LEAST_KERNEL_ROWS:
        return None
    return {
        **scores.kernel_distance(*pair, seed=seed),
        "what": what,
        "counts": [len(rows) for rows in pair],
    }


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
    few, many = (" and ".join(map(str, found["counts"])) for found in (floor, distance))
    return [f"the floor is of {few} images and the value of {many}: the floor is overstated"]


def image_set_warnings(images: ImageSet, found: FeatureStats, network: FeatureNetwork) -> list[str]:
    """Returns what a reader should know of an image set before trusting its figures."""
    warnings = []
    if images.count <= network.dimensions:
        warnings.append(
            f"{images.name} has {images.count} images, too few for the covariance of "
            f"{network.dimensions} features: the Fréchet distance is biased far upwards"
        )
    if found.distinct < images.count:
        warnings.append(
            f"{images.name} holds {images.count - found.distinct} copies of images that it has "
            "already"
        )
    return warnings
