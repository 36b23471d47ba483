"""The cache of references' features: a reference is measured once, and read from then on."""

import hashlib
import io
import json
import os

import numpy as np
from etils import epath

from var_jax.errors import UserError
from var_jax.evaluate.features import FeatureNetwork, FeatureStats, extract
from var_jax.evaluate.fid import Moments
from var_jax.evaluate.image_sets import ImageSet
from var_jax.io import atomic, npz

VERSION = 1  # version of the cached content, and of the images' preprocessing
ROWS_KEPT = 50_000
# Arrays of a cached FeatureStats; those that end in 0 and 1 belong to its two halves.
STORED_ARRAYS = (
    *("count0", "mean0", "scatter0", "count1", "mean1", "scatter1"),
    *("rows", "distinct"),
)


def read_or_measure(
    network: FeatureNetwork, images: ImageSet, cache: str | None = None
) -> FeatureStats:
    """Returns the features of a reference, from the cache if they were measured before.

    All rows of at most 50,000 images are kept.

    Args:
      cache: the cache's directory; None for ~/.cache/var_jax/features, "" for no cache.
    Raises:
      UserError: the directory cannot be written.
    """
    if cache == "":
        return extract(network, images, keep=ROWS_KEPT)
    directory = epath.Path(cache or default_cache()).expanduser()
    about = [
        VERSION,
        ROWS_KEPT,
        images.fingerprint,
        network.name,
        network.weights,
        network.preprocessing,
    ]
    path = directory / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]}.npz"
    if (cached := _read(path, network.dimensions)) is not None:
        return cached
    features = extract(network, images, keep=ROWS_KEPT)
    _write(path, features)
    return features


def default_cache() -> str:
    """Returns the directory of cached reference features, below the user's cache directory."""
    return os.path.join(
        os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "var_jax", "features"
    )


def _read(path: epath.Path, dimensions: int) -> FeatureStats | None:
    """Returns the cached statistics; None if there are none, or if the file is damaged."""
    try:
        arrays = npz.read_arrays(path, *STORED_ARRAYS)
        halves = [
            Moments(int(arrays[f"count{i}"]), arrays[f"mean{i}"], arrays[f"scatter{i}"])
            for i in (0, 1)
        ]
        rows, distinct = arrays["rows"], int(arrays["distinct"])
    except (UserError, TypeError):
        return None
    fine = (
        rows.ndim == 2
        and rows.shape[1] == dimensions
        and all(half.scatter.shape == (dimensions,) * 2 for half in halves)
    )
    return FeatureStats((halves[0], halves[1]), rows, None, distinct) if fine else None


def _write(path: epath.Path, features: FeatureStats):
    arrays = {
        f"{name}{i}": value
        for i, half in enumerate(features.halves)
        for name, value in half._asdict().items()
    }
    buffer = io.BytesIO()
    np.savez(buffer, rows=features.rows, distinct=features.distinct, **arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(path, [buffer.getbuffer()])
    except OSError as error:
        raise UserError(
            f"cannot write the cache {path.parent}: {error.strerror or error}; name another by "
            "--cache"
        ) from error
