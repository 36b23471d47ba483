"""Features of image sets by a frozen network, on all devices; those of references are cached."""

import dataclasses
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float, UInt8, UInt64
from tqdm import tqdm

from var_jax.config.strict import require
from var_jax.devices.batched import OverDevices
from var_jax.errors import UserError
from var_jax.evaluate.fid import Moments
from var_jax.evaluate.image_sets import ImageSet
from var_jax.io import atomic, npz
from var_jax.ops.normalize import normalize_images
from var_jax.pretrained import efficientnet, inception, weights

VERSION = 1  # version of the cached content, and of the images' preprocessing
SIDE = 64  # side in pixels of EfficientNet-Lite0's input
ROWS_KEPT = 50_000
# Arrays of a cached FeatureStats; those that end in 0 and 1 belong to its two halves.
STORED_ARRAYS = (
    *("count0", "mean0", "scatter0", "count1", "mean1", "scatter1"),
    *("rows", "distinct"),
)
Kind = Literal["efficientnet", "inception"]


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
    """

    name: str
    distance: str
    score: str
    weights: str
    preprocessing: str
    dimensions: int
    params: Any
    apply: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array | None]]

    def described(self) -> dict[str, Any]:
        return {
            "network": self.name,
            "weights": self.weights,
            "preprocessing": self.preprocessing,
            "dimensions": self.dimensions,
        }


def load(kind: Kind, path: str = "") -> FeatureNetwork:
    """Returns a network with its weights.

    Args:
      kind: "efficientnet", at 64 x 64 pixels (bilinear, antialiased), in [-1, 1]; or "inception",
        at 299 x 299.
      path: path of the weights; for EfficientNet-Lite0 "" is the installed package, for Inception a
        file is needed.
    Raises:
      UserError: there are no weights, or they are another network's.
    """
    if kind == "efficientnet":
        params = efficientnet.load(path)
        preprocessing = f"bilinear and antialiased to {SIDE} x {SIDE}"
        return FeatureNetwork(
            f"EfficientNet-Lite0 {SIDE} px",
            f"Fréchet distance, EfficientNet-Lite0 {SIDE} px",
            "",
            weights.fingerprint(efficientnet.find_weights(path)),
            preprocessing,
            1280,
            params,
            _efficientnet,
        )
    if not path:
        raise UserError(
            "features 'inception' need a file of weights, such as pytorch-fid's "
            "pt_inception-2015-12-05-6726825d.pth; name it by --weights"
        )
    params = inception.load(path)
    classes = jax.eval_shape(_inception, params, jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.uint8))[
        1
    ].shape[-1]
    # FID is a distance in the features of TensorFlow's network of 2015, which has 1008 classes.
    whose = "" if classes == inception.TENSORFLOW_CLASSES else " with torchvision's Inception v3"
    return FeatureNetwork(
        "Inception v3",
        f"FID{whose}",
        f"Inception Score{whose}",
        weights.fingerprint(path),
        "bilinear to 299 x 299 within the network",
        2048,
        params,
        _inception,
    )


def _efficientnet(params: Any, images: jax.Array):
    shape = (images.shape[0], SIDE, SIDE, images.shape[-1])
    resized = jax.image.resize(normalize_images(images), shape, "bilinear", antialias=True)
    return efficientnet.pooled(params, resized), None


def _inception(params: Any, images: jax.Array):
    logits, bias = inception.logits(params, images), params["fc"]["bias"]
    if (
        bias.size == inception.TENSORFLOW_CLASSES
    ):  # the published score is of this network's logits without biases
        logits = logits - bias
    return inception.pooled(params, images), jax.nn.log_softmax(logits)


class FeatureStats(NamedTuple):
    """Statistics of a set of images. Nothing in it depends on their order.

    Attributes:
      halves: moments of two disjoint random parts: a hash of its pixels assigns each image to a
        part.
      rows: float32 features in the order of those hashes; for a large set, those of the lowest
        hashes.
      log_probs: log probabilities of classes, in the order of `rows`; None if they are not kept.
      distinct: number of distinct images.
    """

    halves: tuple[Moments, Moments]
    rows: Float[np.ndarray, "n d"]
    log_probs: Float[np.ndarray, "n k"] | None
    distinct: int

    @property
    def moments(self) -> Moments:
        return self.halves[0].merge(self.halves[1])


class Collector:
    """Gathers `FeatureStats` batch by batch.

    Args:
      keep: largest number of rows to keep; 0 for all of them.
      probs: also keep log probabilities.
    """

    def __init__(self, network: FeatureNetwork, *, keep: int = 0, probs: bool = False):
        self._extract = OverDevices(network.apply, network.params)
        self._keep = keep
        self._probs = probs
        self._halves = [Moments.empty(network.dimensions)] * 2
        self._kept: list[tuple[np.ndarray, ...]] = []
        self._hashes: list[UInt64[np.ndarray, " n"]] = []
        self.batch = self._extract.batch

    def add(self, images: UInt8[np.ndarray, "b h w c"]):
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch]
            features, log_probs = self._extract(part)
            if not np.isfinite(features).all():
                raise UserError("the network's features are not finite; its weights are damaged")
            hashes = np.array([_hash(image) for image in part], np.uint64)
            for side in (0, 1):
                self._halves[side] = self._halves[side].merge(
                    Moments.of(features[hashes % 2 == side])
                )
            self._hashes.append(hashes)
            arrays = [hashes, features]
            if self._probs and log_probs is not None:
                arrays.append(log_probs)
            self._kept.append(tuple(arrays))
            if self._keep and sum(len(arrays[0]) for arrays in self._kept) > 2 * self._keep:
                self._kept = [self._sorted()]

    def finish(self) -> FeatureStats:
        _, rows, *rest = self._sorted()
        distinct = len(np.unique(np.concatenate(self._hashes)))
        return FeatureStats(
            (self._halves[0], self._halves[1]), rows, rest[0] if rest else None, distinct
        )

    def _sorted(self) -> tuple[np.ndarray, ...]:
        joined = [np.concatenate(arrays) for arrays in zip(*self._kept, strict=True)]
        order = np.argsort(joined[0], kind="stable")[: self._keep or None]
        return tuple(array[order] for array in joined)


def extract(
    network: FeatureNetwork, images: ImageSet, *, keep: int = 0, probs: bool = False
) -> FeatureStats:
    """Returns the features of all images of a set; arguments are those of `Collector`."""
    collector = Collector(network, keep=keep, probs=probs)
    with progress(images.count, f"features of {images.name}") as bar:
        for batch in images.read(collector.batch):
            collector.add(batch.images)
            bar.update(len(batch.images))
    return collector.finish()


def of_reference(
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
    return os.path.join(
        os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "var_jax", "features"
    )


def progress(total: int, what: str, unit: str = " images") -> tqdm:
    """Returns a bar with rate and remaining time; in a log, it prints a line now and then."""
    return tqdm(
        total=total,
        unit=unit,
        desc=what[-48:],
        smoothing=0.05,
        mininterval=0.1 if sys.stderr.isatty() else 10,
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


def _hash(image: UInt8[np.ndarray, "h w c"]) -> int:
    return int.from_bytes(
        hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=8).digest()
    )


def require_enough(images: ImageSet, least: int = 4):
    require(
        images.count >= least,
        f"the number of images in {images.name}",
        images.count,
        f"at least {least}",
    )
