"""Writes reference files: the statistics of a data set, as the ADM evaluator reads them."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, UInt8

from var_jax.evaluate import features
from var_jax.evaluate.features import FeatureNetwork
from var_jax.evaluate.image_sets import ImageSet
from var_jax.evaluate.reference_statistics import ORIGIN
from var_jax.io import npz

IMAGES = 10_000  # in a file at most; as many as in the published ones


def write(
    network: FeatureNetwork, images: ImageSet, path: epath.Path, *, seed: int = 0
) -> dict[str, Any]:
    """Writes the statistics of images, and up to 10,000 of the images, to a reference file.

    The file appears when it is complete. It has `mu`, `sigma`, for Inception `mu_s` and `sigma_s`,
    and `arr_0`, as the ADM evaluator reads them; and `statistics_of` names the network, the number
    of images, their size and how they were resized.

    Args:
      network: the network that computes the features.
      images: real images.
      path: the file.
      seed: seed of the choice of the images in `arr_0`, if there are more than 10,000.
    Returns:
      {"features", "reference", "images", "distinct", "statistics"}: "images" is the number of
      images in `arr_0`, and "statistics" are the names of the arrays.
    Raises:
      UserError: there are too few images, one cannot be read, or the file cannot be written.
    """
    features.require_enough(images)
    has_spatial = network.apply_with_spatial is not None
    collector = features.Collector(network, keep=1, spatial=has_spatial)
    chosen = np.random.default_rng(seed).permutation(images.count)[:IMAGES]
    is_chosen = np.isin(np.arange(images.count), chosen)

    def image_parts() -> Iterator[bytes]:
        shape = (int(is_chosen.sum()), *images.shape)
        yield npz.header_bytes(np.dtype(np.uint8), shape)
        start = 0
        with features.progress(images.count, f"features of {images.name}") as bar:
            for batch in images.read(collector.batch):
                collector.add(batch.images)
                stop = start + len(batch.images)
                yield _pixels(batch.images, is_chosen[start:stop])
                start = stop
                bar.update(len(batch.images))

    # The images go into the file while their features are computed: one pass, little memory.
    with npz.new_archive(path, "the statistics") as archive:
        npz.write_member(archive, "arr_0", image_parts())
        stats = collector.finish()
        arrays = {"mu": stats.moments.mean, "sigma": stats.moments.covariance}
        if stats.spatial is not None:
            arrays |= {"mu_s": stats.spatial.mean, "sigma_s": stats.spatial.covariance}
        described = images.described()
        origin = {"features": network.described(), "reference": described.pop("name"), **described}
        for name, array in arrays.items():
            npz.write_member(archive, name, [npz.array_bytes(array)])
        npz.write_member(archive, ORIGIN, [npz.array_bytes(np.array(json.dumps(origin)))])
    return {
        "features": network.described(),
        "reference": images.described(),
        "images": int(is_chosen.sum()),
        "distinct": stats.distinct,
        "statistics": list(arrays),
    }


def _pixels(images: UInt8[np.ndarray, "b h w c"], is_chosen: Bool[np.ndarray, " b"]) -> bytes:
    return np.ascontiguousarray(images[is_chosen]).tobytes()
