"""Batches of images for training and evaluation.

The batch of step s depends only on (seed, s), for any number of hosts, threads or processes.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import grain
import numpy as np

from var_jax.data import streams, transforms
from var_jax.data.sources import Split, open_split

if TYPE_CHECKING:
    # Only for its type: data must not depend on training.
    from var_jax.config.train import DataConfig

CACHE_BYTES = 2**28  # per split, shared by all processes that read it


class FittedSplit:
    """A split with its images resized, which is the part of the transform that is not random.

    The resized images are cached if those of the whole split fit into CACHE_BYTES. Nothing of a
    larger split is cached: the images that one epoch leaves in a cache are rarely those that the
    next epoch reads first.

    Args:
      processes: number of processes that read the split, each with its own cache.
    """

    def __init__(
        self,
        split: Split,
        image_shape: tuple[int, int, int],
        resize: transforms.Resize,
        processes: int = 1,
    ):
        self._split = split
        self._image_shape = image_shape
        self._resize: transforms.Resize = resize
        self._room = CACHE_BYTES // processes
        min_bytes = math.prod(image_shape) * (transforms.SHORT_SIDE**2 if resize == "crop" else 1)
        self._caches = len(split) * min_bytes <= self._room
        self._cached: dict[int, dict[str, Any]] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        if index in self._cached:
            return self._cached[index]
        example = self._split[index]
        image = transforms.fit(example["image"], self._image_shape, self._resize, f"image {index}")
        fitted = {"image": image, "label": np.int32(example["label"])}
        if self._caches:
            self._cached[index] = fitted
            self._cached_bytes += image.nbytes
            # Long images, which are cropped later, may take more than the estimate.
            if self._cached_bytes > self._room:
                self._caches, self._cached = False, {}
        return fitted

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": {}, "_cached_bytes": 0}


def train_batches(
    data: "DataConfig",
    image_shape: tuple[int, int, int],
    batch_size: int,
    seed: int,
    start_step: int = 0,
    *,
    split: Split | None = None,
    rows: Sequence[int] | None = None,
    processes: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns endless training batches in random order, reshuffled every epoch.

    Args:
      image_shape: (height, width, channels) that the model takes.
      batch_size: images over all hosts; each host gets its part.
      start_step: step whose batch comes first.
      split: an opened split; by default `data.train_split`.
      rows: rows of the batch that this host loads, ascending; by default all. They hold the same
        examples whichever host loads them.
      processes: number of processes of this run on this host, which share its memory.
    Yields:
      {"image": uint8 (rows, height, width, channels), "label": int32 (rows,)}.
    Raises:
      UserError: as in `open_split`; the split is smaller than a batch; shared memory is too small
        for `data.workers`; or an image does not decode (when its batch comes).
    """
    transforms.check(image_shape, data.resize)
    split = open_split(data, data.train_split) if split is None else split

    def augment(images: grain.MapDataset, seed: int) -> grain.MapDataset:
        if data.resize == "crop":
            images = images.random_map(_Crop(image_shape), seed=seed)
        return images.random_map(_Flip(), seed=seed + 1) if data.flip else images

    return streams.shuffled(
        FittedSplit(split, image_shape, data.resize, max(1, data.workers)),
        augment,
        batch_size,
        seed,
        start_step,
        rows,
        name=f"split {data.train_split!r} of {data.name!r}",
        example_bytes=math.prod(image_shape),
        workers=data.workers,
        processes=processes,
    )


def eval_batches(
    data: "DataConfig",
    image_shape: tuple[int, int, int],
    batch_size: int,
    limit: int = 0,
    split: "Split | FittedSplit | str | None" = None,
    *,
    rows: Sequence[int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns the batches of one pass over a split, in order and center-cropped.

    The last batch is padded.

    Args:
      limit: number of images at most; 0 for all.
      split: an opened split, a `FittedSplit` (several passes then share its cache) or a name; by
        default `data.eval_split`.

    The other arguments are those of `train_batches`.

    Yields:
      the arrays of `train_batches`, and "mask": bool (rows,), False on padding.
    Raises:
      UserError: as in `train_batches`, except that a split may be smaller than a batch.
    """
    examples = _held_out(data, image_shape, split)
    return streams.in_order(examples, batch_size, limit, rows=rows, workers=data.workers)


def eval_passes(
    data: "DataConfig",
    image_shape: tuple[int, int, int],
    batch_size: int,
    limit: int = 0,
    split: "Split | FittedSplit | str | None" = None,
    *,
    rows: Sequence[int] | None = None,
    processes: int = 1,
) -> streams.Passes:
    """Returns repeatable passes over a split, like `eval_batches`, read by the same workers."""
    examples = _held_out(data, image_shape, split)
    return streams.passes(
        examples, batch_size, limit, rows=rows, workers=data.workers, processes=processes
    )


def _held_out(
    data: "DataConfig", image_shape: tuple[int, int, int], split: "Split | FittedSplit | str | None"
) -> streams.Examples:
    """Returns the examples of a split, center-cropped."""
    transforms.check(image_shape, data.resize)
    if split is None or isinstance(split, str):
        split = open_split(data, split or data.eval_split)
    if not isinstance(split, FittedSplit):
        split = FittedSplit(split, image_shape, data.resize, max(1, data.workers))
    blank = {"image": np.zeros(image_shape, np.uint8), "label": np.int32(0)}
    load = _CenterCrop(split, image_shape)
    return streams.Examples(len(split), load, blank, math.prod(image_shape))


class _Crop(grain.transforms.RandomMap):
    def __init__(self, image_shape: tuple[int, int, int]):
        self._image_shape = image_shape

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**element, "image": transforms.crop(element["image"], self._image_shape, rng)}


class _Flip(grain.transforms.RandomMap):
    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**element, "image": transforms.flip(element["image"], rng)}


class _CenterCrop:
    def __init__(self, source: FittedSplit, image_shape: tuple[int, int, int]):
        self._source = source
        self._image_shape = image_shape

    def __call__(self, index: int) -> dict[str, Any]:
        fitted = self._source[index]
        return {**fitted, "image": transforms.crop(fitted["image"], self._image_shape)}
