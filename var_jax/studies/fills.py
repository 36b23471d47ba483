"""What an edit fills, and fills that need no model: regions, the mean image, and the nearest
training image."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from var_jax.config.strict import require
from var_jax.data.image_folder import fingerprint
from var_jax.evaluate.image_sets import Batch, ImageSet

TASKS = ("in-painting", "out-painting", "lower half", "another class")
BLANK = 0  # level of what is hidden from the features of a region that is no rectangle
CHUNK = 4096  # training images whose distances are taken at once


class Region(NamedTuple):
    """What a task fills.

    Attributes:
      keep: on the finest token grid, True where the image is kept.
      pixels: the same at image resolution.
    """

    keep: Bool[np.ndarray, "h w"]
    pixels: Bool[np.ndarray, "H W"]

    def alone(self, images: UInt8[np.ndarray, "n H W c"]) -> UInt8[np.ndarray, "n y x c"]:
        """The filled region: cropped where it is a rectangle, else with kept pixels blanked."""
        rows, columns = (np.flatnonzero(~self.pixels.all(axis=axis)) for axis in (1, 0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if not self.pixels[box].any():
            return images[:, *box]
        return np.where(self.pixels[..., None], np.uint8(BLANK), images)

    def described(self) -> dict[str, Any]:
        rectangle = (
            self.alone(np.zeros((1, *self.pixels.shape, 1), np.uint8)).shape[1:3]
            != self.pixels.shape
        )
        return {
            "filled_share": float(np.mean(~self.pixels)),
            "alone": "cropped" if rectangle else f"kept pixels blanked to {BLANK} in both sets",
        }


def region(task: str, grid: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Which tokens of the finest grid a task keeps.

    The box has half the height and half the width, centred and rounded to whole tokens: a quarter
      of the image.

    Raises:
      UserError: the grid is too small to keep some and fill some.
    """
    box = np.zeros(grid, bool)
    box[tuple(slice(round(n / 4), round(3 * n / 4)) for n in grid)] = True
    keep = {
        "in-painting": ~box,
        "another class": ~box,
        "out-painting": box,
        "lower half": np.broadcast_to(np.arange(grid[0])[:, None] < grid[0] / 2, grid),
    }[task]
    require(
        bool(keep.any()) and not keep.all(),
        "the finest token grid",
        grid,
        "large enough for a box of half a side",
    )
    return keep


def nearest(
    images: UInt8[np.ndarray, "n H W c"],
    training: UInt8[np.ndarray, "m H W c"],
    kept: Bool[np.ndarray, "H W"],
) -> Int[np.ndarray, " n"]:
    """The training image with the least sum of squared differences over kept pixels; of several,
    the first.

    Exact: products of levels are whole numbers, and their sums far below 2^53.
    """
    ours = images[:, kept].reshape(len(images), -1).astype(np.float64)
    best, found = np.full(len(images), np.inf), np.zeros(len(images), np.int64)
    for start in range(0, len(training), CHUNK):
        theirs = (
            training[start : start + CHUNK][:, kept].reshape(-1, ours.shape[1]).astype(np.float64)
        )
        # Less the image's own square, which is the same for all.
        distances = np.sum(theirs**2, axis=1) - 2 * (ours @ theirs.T)
        least = distances.argmin(axis=1)
        value = distances[np.arange(len(ours)), least]
        better = value < best
        best[better], found[better] = value[better], least[better] + start
    return found


def nearest_of_class(
    images: UInt8[np.ndarray, "n H W c"],
    wanted: Int[np.ndarray, " n"],
    training: UInt8[np.ndarray, "m H W c"],
    labels: Int[np.ndarray, " m"],
    kept: Bool[np.ndarray, "H W"],
) -> Int[np.ndarray, " n"]:
    """`nearest` among the training images of each one's wanted class.

    Raises:
      UserError: there is no training image of a wanted class.
    """
    found = np.zeros(len(images), np.int64)
    for label in np.unique(wanted):
        asked, known = np.flatnonzero(wanted == label), np.flatnonzero(labels == label)
        require(
            len(known) > 0,
            "the training images",
            f"without one of class {label}",
            "of every class of the model",
        )
        found[asked] = known[nearest(images[asked], training[known], kept)]
    return found


def mean_image(training: UInt8[np.ndarray, "m H W c"]) -> UInt8[np.ndarray, "H W c"]:
    """Rounded."""
    total = np.zeros(training.shape[1:], np.int64)
    for start in range(0, len(training), CHUNK):
        total += training[start : start + CHUNK].sum(axis=0, dtype=np.int64)
    return np.rint(total / len(training)).astype(np.uint8)


def held_out(images: ImageSet, num: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Images drawn by the seed, and all others.

    Raises:
      UserError: too few would be left.
    """
    require(
        num <= images.count - 4,
        "--num",
        num,
        f"at most {images.count - 4}, so that of the {images.count} images "
        f"of {images.name} at least 4 are left to compare with",
    )
    chosen = np.zeros(images.count, bool)
    chosen[np.random.default_rng(seed).permutation(images.count)[:num]] = True

    def part(rows: Bool[np.ndarray, " n"], told: str) -> ImageSet:
        def read(batch_size: int) -> Iterator[Batch]:
            start = 0
            for batch in images.read(batch_size):
                here = rows[start : start + len(batch.images)]
                start += len(batch.images)
                if here.any():
                    yield Batch(
                        batch.images[here], None if batch.labels is None else batch.labels[here]
                    )

        return dataclasses.replace(
            images,
            name=f"{images.name}, {told}",
            count=int(rows.sum()),
            read=read,
            fingerprint=fingerprint([images.fingerprint, told]),
        )

    return part(chosen, f"{num} drawn by seed {seed}"), part(
        ~chosen, f"without {num} drawn by seed {seed}"
    )


def regions_of(images: ImageSet, filled: Region) -> ImageSet:
    """The filled region alone of every image."""

    def read(batch_size: int) -> Iterator[Batch]:
        for batch in images.read(batch_size):
            yield Batch(filled.alone(batch.images), batch.labels)

    shape = filled.alone(np.zeros((1, *images.shape), np.uint8)).shape[1:]
    content = fingerprint([images.fingerprint, filled.pixels.tobytes().hex(), str(BLANK)])
    return dataclasses.replace(images, shape=shape, fingerprint=content, read=read)
