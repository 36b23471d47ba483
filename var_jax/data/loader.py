"""Batches by Grain: what step s sees is a function of (seed, s) alone, on any number of hosts,
threads or processes."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import grain
import numpy as np

from var_jax.data import streams, transforms
from var_jax.data.sources import Split, open_split

if TYPE_CHECKING:
    from var_jax.config.train import (
        DataConfig,
    )  # for its type alone: data must not depend on training

CACHE_BYTES = 2**28  # per split, over all processes that read it


class FittedSplit:
    """A split with the transform's fixed part applied.

    The results are kept where CACHE_BYTES hold those of the whole split, in every process that
      reads it: of a larger
    split, what one epoch leaves is rarely what the next one asks for first.

    Args:
      processes: that read the split, each with a copy of its own.
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
        least = math.prod(image_shape) * (transforms.SHORT_SIDE**2 if resize == "crop" else 1)
        self._keeps = len(split) * least <= self._room
        self._kept: dict[int, dict[str, Any]] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        if (kept := self._kept.get(index)) is not None:
            return kept
        example = self._split[index]
        image = transforms.fit(example["image"], self._image_shape, self._resize, f"image {index}")
        fitted = {"image": image, "label": np.int32(example["label"])}
        if self._keeps:
            self._kept[index] = fitted
            self._kept_bytes += image.nbytes
            if (
                self._kept_bytes > self._room
            ):  # long images, which are cropped later, took more than was expected
                self._keeps, self._kept = False, {}
        return fitted

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_kept_bytes": 0}


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
    """Endless batches in random order, reshuffled every epoch, from step `start_step` on.

    Args:
      image_shape: (height, width, channels) that the model takes.
      batch_size: over all hosts; each yields its part.
      split: opened; by default `data.train_split`.
      rows: positions in the batch, ascending, that this host loads; by default all. The batch is
        the same whoever loads which of them.
      processes: of this run on this host, which share its memory.
    Yields:
      {"image": uint8 (rows, height, width, channels), "label": int32 (rows,)}.
    Raises:
      UserError: as `open_split`, a batch that the split does not fill, too little shared memory for
        `data.workers`, or an image that does not decode (when its batch comes).
    """
    transforms.check(image_shape, data.resize)
    split = open_split(data, data.train_split) if split is None else split

    def varied(images: grain.MapDataset, seed: int) -> grain.MapDataset:
        images = (
            images.random_map(_Crop(image_shape), seed=seed) if data.resize == "crop" else images
        )
        return images.random_map(_Flip(), seed=seed + 1) if data.flip else images

    return streams.shuffled(
        FittedSplit(split, image_shape, data.resize, max(1, data.workers)),
        varied,
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
    """One pass over a split in its order, centre crops; the last batch is padded.

    Args:
      limit: images at most; 0 for all.
      split: opened, fitted (of several passes, which then share what it keeps) or by name; by
        default `data.eval_split`.
      The others as `train_batches`.
    Yields:
      as `train_batches`, and "mask": bool (rows,), False on padding.
    Raises:
      UserError: as `train_batches`; a split smaller than a batch is none.
    """
    length, load, blank = _held_out(data, image_shape, split)
    return streams.in_order(
        length,
        load,
        blank,
        batch_size,
        limit,
        rows,
        example_bytes=math.prod(image_shape),
        workers=data.workers,
    )


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
    """Passes over a split, as many as are asked for, each as `eval_batches`; the same workers read
    all of them."""
    length, load, blank = _held_out(data, image_shape, split)
    return streams.passes(
        length,
        load,
        blank,
        batch_size,
        limit,
        rows,
        example_bytes=math.prod(image_shape),
        workers=data.workers,
        processes=processes,
    )


def _held_out(
    data: "DataConfig", image_shape: tuple[int, int, int], split: "Split | FittedSplit | str | None"
) -> tuple[int, Callable[[int], dict[str, Any]], dict[str, Any]]:
    """Returns the length of a split, what loads an image of it, and the padding."""
    transforms.check(image_shape, data.resize)
    opened = (
        open_split(data, split or data.eval_split)
        if split is None or isinstance(split, str)
        else split
    )
    fitted = (
        opened
        if isinstance(opened, FittedSplit)
        else FittedSplit(opened, image_shape, data.resize, max(1, data.workers))
    )
    blank = {"image": np.zeros(image_shape, np.uint8), "label": np.int32(0)}
    return len(opened), _Centred(fitted, image_shape), blank


class _Crop(grain.transforms.RandomMap):
    def __init__(self, image_shape: tuple[int, int, int]):
        self._image_shape = image_shape

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**element, "image": transforms.crop(element["image"], self._image_shape, rng)}


class _Flip(grain.transforms.RandomMap):
    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**element, "image": transforms.flip(element["image"], rng)}


class _Centred:
    def __init__(self, source: FittedSplit, image_shape: tuple[int, int, int]):
        self._source = source
        self._image_shape = image_shape

    def __call__(self, index: int) -> dict[str, Any]:
        fitted = self._source[index]
        return {**fitted, "image": transforms.crop(fitted["image"], self._image_shape)}
