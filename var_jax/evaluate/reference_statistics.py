"""Reference files of means and covariances: published ones, and those of this program.

A published file, such as VIRTUAL_imagenet256_labeled.npz of the ADM evaluator, holds `mu` and
`sigma` of the 2048 features of Inception v3 over a whole training set, `mu_s` and `sigma_s` of the
2023 features of sFID, and in `arr_0` 10,000 of the images, for precision and recall. The files of
pytorch-fid hold only `mu` and `sigma`. A file that this program writes also has `statistics_of`,
which names the network and the images.
"""

import contextlib
import dataclasses
import json
from typing import Any

import numpy as np
from etils import epath

from var_jax.config.strict import require
from var_jax.errors import UserError
from var_jax.evaluate import npz_images
from var_jax.evaluate.features import FeatureNetwork
from var_jax.evaluate.fid import Gaussian
from var_jax.evaluate.image_sets import ImageSet
from var_jax.io import npz
from var_jax.io.failed_downloads import refuse_failed_download
from var_jax.pretrained import weights

ORIGIN = "statistics_of"  # the array with the JSON object that names the network and the images
# Features are comparable if these entries of `FeatureNetwork.described` are the same.
IDENTITY = ("network", "preprocessing", "weights")


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """Statistics of real images, which samples are measured against.

    Attributes:
      name: the file's name, as the user gave it.
      fingerprint: the file's fingerprint.
      pooled: statistics of the features of the Fréchet distance.
      spatial: statistics of the features of sFID; None if the file has none.
      has_images: whether the file also has images.
      origin: "features", "reference", "count", "image_shape", "resize" and "fingerprint" of a file
        that this program wrote; empty for others.
    """

    name: str
    fingerprint: str
    pooled: Gaussian
    spatial: Gaussian | None
    has_images: bool
    origin: dict[str, Any]

    @property
    def count(self) -> int | None:
        """Returns the number of images behind the statistics; None if the file does not name it."""
        return self.origin.get("count")

    def described(self) -> dict[str, Any]:
        """Returns the entry of this file in a report."""
        arrays = ["mu", "sigma", *(("mu_s", "sigma_s") if self.spatial else ())]
        description = {
            "name": self.name,
            "count": self.count,
            "image_shape": self.origin.get("image_shape"),
            "resize": self.origin.get("resize"),
            "fingerprint": self.fingerprint,
            "statistics": arrays,
        }
        if self.origin:
            description["statistics_of"] = self.origin
        return description

    def require_network(self, network: FeatureNetwork):
        """Checks that the statistics are those of a network's features.

        Raises:
          UserError: they have another number of dimensions, or another network; the line names
            both.
        """
        own = self.origin.get("features")
        label = own["network"] if own else "Inception v3, as published statistics are"
        require(
            len(self.pooled.mean) == network.dimensions,
            f"mu of {self.name}",
            f"of {len(self.pooled.mean)} dimensions ({label})",
            f"of {network.dimensions}, the features of {network.name}; choose the network by "
            "--features and --weights",
        )
        spatial = network.spatial_dimensions
        require(
            self.spatial is None or not spatial or len(self.spatial.mean) == spatial,
            f"mu_s of {self.name}",
            f"of {0 if self.spatial is None else len(self.spatial.mean)} dimensions",
            f"of {spatial}, the features of sFID of {network.name}",
        )
        if own is None:
            require(
                network.convention,
                f"the network of the statistics in {self.name}",
                "not named, and so Inception v3 of 2015, with 1008 classes",
                f"{network.distance.removeprefix('FID with ')}; choose the network by --features "
                "and --weights",
            )
            return
        here = network.described()
        different = [key for key in IDENTITY if own[key] != here[key]]
        require(
            not different,
            f"the network of the statistics in {self.name}",
            ", ".join(str(own[key]) for key in IDENTITY),
            ", ".join(str(here[key]) for key in IDENTITY),
        )

    def require_size(self, images: ImageSet):
        """Checks that the statistics are those of images of a set's height and width.

        A published file does not name a size, and passes.

        Raises:
          UserError: the images behind the statistics had another size.
        """
        shape = self.origin.get("image_shape")
        require(
            shape is None or tuple(shape[:2]) == images.shape[:2],
            f"the size of the images that the statistics in {self.name} are of",
            shape,
            f"{list(images.shape)}, as that of {images.name}",
        )


def holds_statistics(spec: str) -> bool:
    """Returns whether a reference is a file of statistics, rather than of images."""
    return spec.endswith(".npz") and bool(npz_images.statistics_in(epath.Path(spec).expanduser()))


def read(spec: str) -> ReferenceStatistics:
    """Returns the statistics in a file.

    Raises:
      UserError: the file is damaged, lacks `mu` or `sigma`, or its arrays are not a mean and a
        covariance of the same dimension.
    """
    path = epath.Path(spec).expanduser()
    refuse_failed_download(path, ".npz")
    names = npz.member_names(path)
    pooled, spatial = (
        _gaussian(path, names, *pair) for pair in (("mu", "sigma"), ("mu_s", "sigma_s"))
    )
    if pooled is None:
        raise UserError(f"{path} has mu_s and sigma_s, but no mu and sigma; it must have both")
    origin = _origin(path) if ORIGIN in names else {}
    return ReferenceStatistics(
        spec, weights.fingerprint(str(path)), pooled, spatial, "arr_0" in names, origin
    )


def _gaussian(path: epath.Path, names: list[str], mean: str, covariance: str) -> Gaussian | None:
    """Returns one pair of arrays as float64; None if the file has neither."""
    present = [name for name in (mean, covariance) if name in names]
    if not present:
        return None
    if len(present) == 1:
        (lacking,) = {mean, covariance} - set(present)
        raise UserError(f"{path} has {present[0]}, but no {lacking}; it must have both")
    arrays = npz.read_arrays(path, mean, covariance)
    for name, array in arrays.items():
        require(array.dtype.kind == "f", f"{name} of {path}", array.dtype, "of floating point")
        require(np.isfinite(array).all(), f"{name} of {path}", "not finite", "finite numbers")
    mu, sigma = (arrays[name].astype(np.float64) for name in (mean, covariance))
    require(mu.ndim == 1 and mu.size > 0, f"{mean} of {path}", f"of {mu.shape}", "of one axis")
    require(
        sigma.shape == (mu.size, mu.size),
        f"{covariance} of {path}",
        f"of {sigma.shape}",
        f"of {(mu.size, mu.size)}, as {mean} has {mu.size} numbers",
    )
    is_covariance = np.allclose(sigma, sigma.T, rtol=1e-4) and (np.diagonal(sigma) >= 0).all()
    require(
        is_covariance, f"{covariance} of {path}", "no covariance", "symmetric, variances above 0"
    )
    return Gaussian(mu, (sigma + sigma.T) / 2)


def _origin(path: epath.Path) -> dict[str, Any]:
    """Returns the JSON object that names the network and the images behind the statistics."""
    with contextlib.suppress(ValueError):  # UserError is a ValueError
        origin = json.loads(str(npz.read_arrays(path, ORIGIN)[ORIGIN]))
        if isinstance(origin, dict) and _is_complete(origin):
            return origin
    raise UserError(
        f"{ORIGIN} of {path} does not say which network, and images of which number and size, its "
        "statistics are of; write the file again by `evaluate --save-statistics`"
    )


def _is_complete(origin: dict[str, Any]) -> bool:
    network, shape = origin.get("features"), origin.get("image_shape")
    return (
        isinstance(network, dict)
        and all(isinstance(network.get(key), str) for key in IDENTITY)
        and isinstance(origin.get("count"), int)
        and isinstance(shape, list)
        and len(shape) == 3
    )
