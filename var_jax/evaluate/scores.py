"""Inception Score, kernel distance, and improved precision and recall, of features as arrays."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

NEIGHBOURS = 3
KID_SUBSET, KID_SUBSETS = 1000, 50
SPLITS = 10
NORMAL = 1.96  # of 95 % within


def interval(
    value: float, deviation: float, low: float = -np.inf, high: float = np.inf
) -> list[float]:
    """95 % of a normal distribution around a value, cut where nothing can lie."""
    return [float(np.clip(value + sign * NORMAL * deviation, low, high)) for sign in (-1, 1)]


def mean_interval(values: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """The mean of independent values, and its interval (null for a single one)."""
    mean = float(np.mean(values))
    deviation = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
    return {"value": mean, "ci95": None if deviation is None else interval(mean, deviation)}


def classifier_score(
    log_probs: Float[np.ndarray, "n k"], *, seed: int, resamples: int, splits: int = SPLITS
) -> dict[str, Any]:
    """exp of the mean KL divergence of p(y|x) from p(y) (Salimans et al., arXiv 1606.03498), mean
    over splits.

    Rows are shuffled by the seed first: splits of samples in the order of their classes would each
    hold few classes, and score a fraction of what they should.

    Returns:
      "value" and "std" over splits, "splits", and "ci95" from resampling rows within splits.
    """
    random = np.random.default_rng(seed)
    shuffled = log_probs[random.permutation(len(log_probs))].astype(np.float64)
    parts = np.array_split(shuffled, min(splits, len(shuffled)))
    scores = [_score(part, np.ones(len(part))) for part in parts]
    drawn = [
        np.mean(
            [
                _score(part, random.multinomial(len(part), np.full(len(part), 1 / len(part))))
                for part in parts
            ]
        )
        for _ in range(resamples)
    ]
    value = float(np.mean(scores))
    return {
        "value": value,
        "std": float(np.std(scores)),
        "splits": len(parts),
        "ci95": interval(value, float(np.std(drawn, ddof=1)), low=1) if resamples > 1 else None,
    }


def _score(log_probs: np.ndarray, weights: np.ndarray) -> float:
    probs = np.exp(log_probs)
    share = weights / weights.sum()
    marginal = share @ probs
    entropy = -np.sum(marginal * np.log(np.where(marginal > 0, marginal, 1)))
    return float(np.exp(share @ np.sum(probs * log_probs, axis=1) + entropy))


def kernel_distance(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    *,
    seed: int,
    subset: int = KID_SUBSET,
    subsets: int = KID_SUBSETS,
) -> dict[str, Any]:
    """KID (Bińkowski et al., arXiv 1801.01401): unbiased squared MMD with the kernel (x.y / d +
    1)^3.

    The mean over subsets of both, drawn by the seed, each without replacement and of at most half
    the rows; it may be below zero. The interval takes a subset's deviation to that of all rows:
    subsets drawn without replacement from `count` rows vary by 1/subset - 1/count where new rows
    would by 1/subset, and all rows by 1/count, hence the root of subset / (count - subset).
    """
    random, count = np.random.default_rng(seed), min(len(x), len(y))
    subset = min(subset, count // 2)
    values = [
        mmd(x[random.permutation(len(x))[:subset]], y[random.permutation(len(y))[:subset]])
        for _ in range(subsets)
    ]
    value, deviation = float(np.mean(values)), float(np.std(values))
    return {
        "value": value,
        "std": deviation,
        "subset": subset,
        "subsets": len(values),
        "ci95": interval(value, deviation * float(np.sqrt(subset / (count - subset)))),
    }


def mmd(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"]) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy of two sets of as many rows, in
    float64."""
    x, y, n = x.astype(np.float64), y.astype(np.float64), len(x)

    def kernel(a, b):
        return (a @ b.T / x.shape[1] + 1) ** 3

    within = sum(k.sum() - np.trace(k) for k in (kernel(x, x), kernel(y, y)))
    return float(within / (n * (n - 1)) - 2 * kernel(x, y).mean())


def precision_recall(
    samples: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"], k: int = NEIGHBOURS
) -> dict[str, Any]:
    """Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991).

    Precision is the share of samples within the ball of some reference image, whose radius is the
    distance to its k-th nearest other one; recall the same with both exchanged. The intervals are
    of a share of as many images, the balls fixed.
    """
    found = {
        "precision": within_balls(samples, reference, k),
        "recall": within_balls(reference, samples, k),
    }
    out = {}
    for name, inside in found.items():
        out[name] = {
            "value": float(inside.mean()),
            "ci95": _wilson(inside),
            "k": k,
            "counts": [len(samples), len(reference)],
        }
    return out


def within_balls(
    points: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "m d"], k: int
) -> Bool[np.ndarray, " n"]:
    """Whether each point lies within the ball of at least one centre; distances in float64, by
    chunks."""
    from sklearn.metrics import pairwise_distances_chunked
    from sklearn.neighbors import NearestNeighbors

    radii = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(centres).kneighbors()[0][:, -1]
    chunks = pairwise_distances_chunked(
        points, centres, reduce_func=lambda part, _: (part <= radii).any(axis=1)
    )
    return np.concatenate(list(chunks))


def share(hits: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    """Returns the share of independent trials that are hits, its 95 % interval and their number."""
    return {"value": float(np.mean(hits)), "ci95": _wilson(hits), "count": len(hits)}


def _wilson(hits: Bool[np.ndarray, " n"]) -> list[float]:
    """Returns Wilson's 95 % interval of the share of hits."""
    interval = stats.binomtest(int(np.sum(hits)), len(hits)).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]
