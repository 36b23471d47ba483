"""Inception Score, kernel distance, and improved precision and recall, of features as arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

NEIGHBORS = 3
DENSITY_NEIGHBORS = 5
# Largest number of images per side for precision and recall: the number of distances grows with the
# square.
MAX_NEIGHBOR_ROWS = 10_000
KERNEL_ROWS = 1024  # rows whose kernels with all others are in memory at once
KID_SUBSET, KID_SUBSETS = 1000, 50
SPLITS = 10
Z_95 = 1.96  # standard deviations on either side of a normal distribution's central 95 %


def interval(
    value: float, standard_error: float, low: float = -np.inf, high: float = np.inf
) -> list[float]:
    """Returns the normal 95 % interval of an estimate, cut at the bounds."""
    return [float(np.clip(value + sign * Z_95 * standard_error, low, high)) for sign in (-1, 1)]


def mean_with_interval(values: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """Returns {"value": mean, "ci95": interval} of independent values.

    The interval is the normal 95 % interval of the mean, and None for a single value.
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return {"value": mean, "ci95": None}
    standard_error = np.std(values, ddof=1) / np.sqrt(count)
    return {"value": mean, "ci95": interval(mean, standard_error)}


def classifier_score(
    log_probs: Float[np.ndarray, "n k"], *, seed: int, resamples: int, splits: int = SPLITS
) -> dict[str, Any]:
    """Returns the Inception Score.

    It is exp of the mean KL divergence of p(y|x) from p(y), averaged over splits.

    Rows are shuffled first: splits of samples that are sorted by class would each hold few classes,
    and score too low. Source: Salimans et al., arXiv 1606.03498.

    Args:
      log_probs: log probabilities of the classes, one row per sample.
      seed: seeds the shuffle and the resampling.
      resamples: number of resampled scores for the interval.
      splits: number of splits.
    Returns:
      "value" and "std" over splits, "splits", and "ci95" from resampling rows within splits.
    """
    rng = np.random.default_rng(seed)
    shuffled = log_probs[rng.permutation(len(log_probs))].astype(np.float64)
    parts = np.array_split(shuffled, min(splits, len(shuffled)))
    return _score_of_splits(parts, rng, resamples)


def consecutive_classifier_score(
    log_probs: Float[np.ndarray, "n k"], split: int, *, seed: int = 0, resamples: int
) -> dict[str, Any]:
    """Returns the Inception Score of consecutive splits, as the ADM evaluator computes it.

    A last split that is smaller counts as much as the others.

    Args:
      log_probs: log probabilities of the classes, in the order of the samples' file.
      split: samples per split.
      seed: seed of the resampling.
      resamples: as in `classifier_score`.
    Returns:
      The entries of `classifier_score`.
    """
    rows = log_probs.astype(np.float64)
    parts = [rows[start : start + split] for start in range(0, len(rows), split)]
    return _score_of_splits(parts, np.random.default_rng(seed), resamples)


def _score_of_splits(
    parts: Sequence[Float[np.ndarray, "n k"]], rng: np.random.Generator, resamples: int
) -> dict[str, Any]:
    scores = [_score(part, np.ones(len(part))) for part in parts]

    def resampled_score(part: np.ndarray) -> float:
        n = len(part)
        return _score(part, rng.multinomial(n, np.full(n, 1 / n)))

    resampled = [np.mean([resampled_score(part) for part in parts]) for _ in range(resamples)]
    standard_error = float(np.std(resampled, ddof=1)) if resamples > 1 else None
    value = float(np.mean(scores))
    return {
        "value": value,
        "std": float(np.std(scores)),
        "splits": len(parts),
        "ci95": None if standard_error is None else interval(value, standard_error, low=1),
    }


def _score(log_probs: np.ndarray, weights: np.ndarray) -> float:
    probs = np.exp(log_probs)
    row_weights = weights / weights.sum()
    marginal = row_weights @ probs
    entropy = -np.sum(marginal * np.log(np.where(marginal > 0, marginal, 1)))
    return float(np.exp(row_weights @ np.sum(probs * log_probs, axis=1) + entropy))


def kernel_distance(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    *,
    seed: int,
    subset: int = KID_SUBSET,
    subsets: int = KID_SUBSETS,
) -> dict[str, Any]:
    """Returns KID, the unbiased squared MMD with the kernel (x.y / d + 1)^3.

    It is the mean over random subsets of both sets, each drawn without replacement and of at most
    half the rows, and may be below zero. The interval is normal; its standard error is the standard
    deviation over subsets times sqrt(subset / (count - subset)). The factor takes a subset to all
    `count` rows and has the finite population correction: subsets share rows, so that they vary
    less than independent ones. Source: Bińkowski et al., arXiv 1801.01401.
    """
    rng, count = np.random.default_rng(seed), min(len(x), len(y))
    subset = min(subset, count // 2)
    values = [
        squared_mmd(x[rng.permutation(len(x))[:subset]], y[rng.permutation(len(y))[:subset]])
        for _ in range(subsets)
    ]
    value, deviation = float(np.mean(values)), float(np.std(values))
    standard_error = deviation * float(np.sqrt(subset / (count - subset)))
    return {
        "value": value,
        "std": deviation,
        "subset": subset,
        "subsets": len(values),
        "ci95": interval(value, standard_error),
    }


def squared_mmd(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"]) -> float:
    """Returns the unbiased estimate of the squared maximum mean discrepancy of two sets.

    Both sets have the same number of rows. It may be negative, and is computed in float64.
    """
    x, y, n = x.astype(np.float64), y.astype(np.float64), len(x)

    def kernel(a, b):
        return (a @ b.T / x.shape[1] + 1) ** 3

    within = sum(k.sum() - np.trace(k) for k in (kernel(x, x), kernel(y, y)))
    return float(within / (n * (n - 1)) - 2 * kernel(x, y).mean())


def cmmd(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """Returns CMMD, 1000 times the squared MMD of CLIP embeddings with a Gaussian kernel.

    The estimate counts each row's kernel with itself, as the published one does: that of equal sets
    is 0, and no other is below. Computed in float64. Source: Jayasumana et al., arXiv 2401.09603.

    Args:
      x: embeddings of length 1.
      y: those of the other set.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    within = mean_gaussian_kernel(x, x) + mean_gaussian_kernel(y, y)
    return 1000 * (within - 2 * mean_gaussian_kernel(x, y))


def mean_gaussian_kernel(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """Returns the mean of exp(-|a - b|^2 / 200) over all pairs of rows: a bandwidth of 10."""
    total, norms = 0.0, np.sum(y**2, axis=1)
    for start in range(0, len(x), KERNEL_ROWS):
        rows = x[start : start + KERNEL_ROWS]
        squares = np.sum(rows**2, axis=1)[:, None] + norms - 2 * rows @ y.T
        total += float(np.exp(-squares / 200).sum())
    return total / (len(x) * len(y))


def precision_recall(
    samples: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"], k: int = NEIGHBORS
) -> dict[str, Any]:
    """Returns improved precision and recall.

    Precision is the share of samples inside the ball of any reference image, whose radius is the
    distance to its k-th nearest other image; recall exchanges both sets. The intervals are Wilson's
    of a share, with the balls fixed. Source: Kynkäänniemi et al., arXiv 1904.06991.
    """
    inside_by_name = {
        "precision": within_balls(samples, reference, k),
        "recall": within_balls(reference, samples, k),
    }
    out = {}
    for name, inside in inside_by_name.items():
        out[name] = {
            "value": float(inside.mean()),
            "ci95": _wilson(inside),
            "k": k,
            "counts": [len(samples), len(reference)],
        }
    return out


def density_coverage(
    samples: Float[np.ndarray, "n d"],
    reference: Float[np.ndarray, "m d"],
    k: int = DENSITY_NEIGHBORS,
) -> dict[str, Any]:
    """Returns density and coverage.

    Both use the balls of the reference images, whose radii are the distances to their k-th nearest
    other image; a point on the surface is outside. Density is the mean over samples of the number
    of balls around them, divided by k; equal distributions have about 1, and it may exceed that.
    Coverage is the share of reference images with a sample in their ball. In contrast to precision,
    an outlier among the reference images changes density little. The interval of density is a
    normal one over samples, that of coverage is Wilson's over reference images, with the balls
    fixed. Source: Naeem et al., arXiv 2002.09797.
    """
    from sklearn.metrics import pairwise_distances_chunked

    samples, reference = samples.astype(np.float64), reference.astype(np.float64)
    # The smallest distance of a row is 0, that of the image to itself.
    chunks = pairwise_distances_chunked(
        reference, reduce_func=lambda part, _: np.partition(part, k, axis=1)[:, k]
    )
    radii = np.concatenate(list(chunks))
    counts, nearest = [], np.full(len(reference), np.inf)
    for distances in pairwise_distances_chunked(samples, reference):
        counts.append((distances < radii).sum(axis=1))
        nearest = np.minimum(nearest, distances.min(axis=0))
    is_covered = nearest < radii
    common = {"k": k, "counts": [len(samples), len(reference)]}
    coverage = {"value": float(is_covered.mean()), "ci95": _wilson(is_covered)}
    return {
        "density": {**mean_with_interval(np.concatenate(counts) / k), **common},
        "coverage": {**coverage, **common},
    }


def within_balls(
    points: Float[np.ndarray, "n d"], centers: Float[np.ndarray, "m d"], k: int
) -> Bool[np.ndarray, " n"]:
    """Returns whether each point is inside the ball of at least one center.

    A ball's radius is the distance to the center's k-th nearest other center. Distances are in
    float64 and computed by chunks.
    """
    from sklearn.metrics import pairwise_distances_chunked
    from sklearn.neighbors import NearestNeighbors

    distances, _ = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(centers).kneighbors()
    radii = distances[:, -1]
    chunks = pairwise_distances_chunked(
        points, centers, reduce_func=lambda part, _: (part <= radii).any(axis=1)
    )
    return np.concatenate(list(chunks))


def share(hits: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    """Returns the share of independent trials that are hits, its 95 % interval and their number."""
    return {"value": float(np.mean(hits)), "ci95": _wilson(hits), "count": len(hits)}


def _wilson(hits: Bool[np.ndarray, " n"]) -> list[float]:
    """Returns Wilson's 95 % interval of the share of hits."""
    interval = stats.binomtest(int(np.sum(hits)), len(hits)).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]
