"""Features of image sets by a frozen network, on all devices."""

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8, UInt64
from tqdm import tqdm

from var_jax.config.strict import require
from var_jax.devices.batched import OverDevices
from var_jax.errors import UserError
from var_jax.evaluate.fid import Moments
from var_jax.evaluate.image_sets import ImageSet


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A frozen network that computes features for metrics.

    Attributes:
      name: the network's name, for reports.
      distance, score: names of the Fréchet distance and the Inception Score of its features; "" if
        the network has no class probabilities here.
      weights: fingerprint of the file they come from.
      preprocessing: description of the images' preprocessing, for reports and for the cache.
      dimensions: number of dimensions of the features.
      params: its weights, an argument of `apply`.
      apply: (params, uint8 images (b, h, w, 1 or 3)) -> float32 features (b, d) and log
        probabilities of classes (b, k), or None without classes.
      apply_with_spatial: like `apply`, with the features (b, s) of sFID as a third result; None if
        the network has none.
      weights_from: the source of the weights, for reports; "" if there is only one.
      convention: name of the images' resize and scaling here, if published statistics are of this
        network: "ADM" only if they are the ADM evaluator's; "" for a network without published
        statistics.
      key: key of its distance in a report that has another network's metrics, too.
    """

    name: str
    distance: str
    score: str
    weights: str
    preprocessing: str
    dimensions: int
    params: Any
    apply: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array | None]]
    apply_with_spatial: Callable[[Any, jax.Array], tuple[jax.Array, ...]] | None = None
    weights_from: str = ""
    convention: str = ""
    key: str = "fd"

    @functools.cached_property
    def spatial_dimensions(self) -> int:
        """Returns the number of features that sFID is computed from; 0 where there are none."""
        if self.apply_with_spatial is None:
            return 0
        image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)
        return jax.eval_shape(self.apply_with_spatial, self.params, image)[-1].shape[-1]

    def described(self) -> dict[str, Any]:
        """Returns the network's entry in a report."""
        description: dict[str, Any] = {
            "network": self.name,
            "weights": self.weights,
            "preprocessing": self.preprocessing,
            "dimensions": self.dimensions,
        }
        if self.weights_from:
            description["weights_from"] = self.weights_from
        return description


class FeatureStats(NamedTuple):
    """Statistics of a set of images. Only `positions` depends on their order.

    Attributes:
      halves: moments of two disjoint random parts: a hash of its pixels assigns each image to a
        part.
      rows: float32 features in the order of those hashes; for a large set, those of the lowest
        hashes.
      log_probs: log probabilities of classes, in the order of `rows`; None if they are not kept.
      distinct: number of distinct images.
      positions: the place in the set of each row of `log_probs`; None if these are not kept.
      spatial: moments of the features of sFID; None if they were not computed.
      spatial_rows: the features of sFID, in the order of `rows`.
    """

    halves: tuple[Moments, Moments]
    rows: Float[np.ndarray, "n d"]
    log_probs: Float[np.ndarray, "n k"] | None
    distinct: int
    positions: Int[np.ndarray, " n"] | None = None
    spatial: Moments | None = None
    spatial_rows: Float[np.ndarray, "n s"] | None = None

    @property
    def moments(self) -> Moments:
        """The moments of all images."""
        return self.halves[0].merge(self.halves[1])


class Collector:
    """Gathers `FeatureStats` batch by batch.

    Args:
      keep: largest number of rows to keep; 0 for all of them.
      probs: also keep log probabilities.
      spatial: also gather the features of sFID; the network must have them.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        *,
        keep: int = 0,
        probs: bool = False,
        spatial: bool = False,
    ):
        apply = network.apply_with_spatial if spatial else network.apply
        assert apply is not None, f"{network.name} has no features of sFID"
        self._extract = OverDevices(apply, network.params)
        self._keep = keep
        self._probs = probs
        self._halves = [Moments.empty(network.dimensions)] * 2
        self._spatial: Moments | None = None
        self._kept: list[dict[str, np.ndarray]] = []
        self._hashes: list[UInt64[np.ndarray, " n"]] = []
        self._count = 0
        self.batch = self._extract.batch

    def add(self, images: UInt8[np.ndarray, "b h w c"]):
        """Adds the features of images; raises UserError for features that are not finite."""
        for start in range(0, len(images), self.batch):
            self._add_batch(images[start : start + self.batch])

    def _add_batch(self, images: UInt8[np.ndarray, "b h w c"]):
        features, log_probs, *spatial = self._extract(images)
        if not all(np.isfinite(rows).all() for rows in (features, *spatial)):
            raise UserError("the network's features are not finite; its weights are damaged")
        hashes = np.array([_hash(image) for image in images], np.uint64)
        for side in (0, 1):
            self._halves[side] = self._halves[side].merge(Moments.of(features[hashes % 2 == side]))
        self._hashes.append(hashes)
        arrays = {"hashes": hashes, "rows": features}
        if self._probs and log_probs is not None:
            arrays["log_probs"] = log_probs
            arrays["positions"] = self._count + np.arange(len(images))
        self._count += len(images)
        if spatial:
            moments = Moments.of(spatial[0])
            self._spatial = self._spatial.merge(moments) if self._spatial else moments
            arrays["spatial_rows"] = spatial[0]
        self._kept.append(arrays)
        if self._keep and sum(len(arrays["rows"]) for arrays in self._kept) > 2 * self._keep:
            self._kept = [self._sorted()]

    def finish(self) -> FeatureStats:
        """Returns the statistics of all added images."""
        arrays = self._sorted()
        distinct = len(np.unique(np.concatenate(self._hashes)))
        return FeatureStats(
            (self._halves[0], self._halves[1]),
            arrays["rows"],
            arrays.get("log_probs"),
            distinct,
            arrays.get("positions"),
            self._spatial,
            arrays.get("spatial_rows"),
        )

    def _sorted(self) -> dict[str, np.ndarray]:
        joined = {
            name: np.concatenate([arrays[name] for arrays in self._kept]) for name in self._kept[0]
        }
        order = np.argsort(joined["hashes"], kind="stable")[: self._keep or None]
        return {name: array[order] for name, array in joined.items()}


def extract(network: FeatureNetwork, images: ImageSet, **options: Any) -> FeatureStats:
    """Returns the features of all images of a set; options are those of `Collector`."""
    collector = Collector(network, **options)
    with progress(images.count, f"features of {images.name}") as bar:
        for batch in images.read(collector.batch):
            collector.add(batch.images)
            bar.update(len(batch.images))
    return collector.finish()


def features_of(network: FeatureNetwork, images: UInt8[np.ndarray, "n h w c"]) -> FeatureStats:
    """Returns the features of images in memory."""
    collector = Collector(network)
    collector.add(images)
    return collector.finish()


def progress(total: int, what: str, unit: str = " images") -> tqdm:
    """Returns a bar with rate and remaining time; in a log, it prints a line now and then."""
    return tqdm(
        total=total,
        unit=unit,
        desc=what[-48:],
        smoothing=0.05,
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )


def _hash(image: UInt8[np.ndarray, "h w c"]) -> int:
    return int.from_bytes(
        hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=8).digest()
    )


def require_enough(images: ImageSet, least: int = 4):
    """Raises UserError for a set of fewer than `least` images."""
    require(
        images.count >= least,
        f"the number of images in {images.name}",
        images.count,
        f"at least {least}",
    )
