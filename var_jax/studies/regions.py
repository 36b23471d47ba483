"""The regions that the editing study fills, and images cut to such a region."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from var_jax.config.strict import require
from var_jax.data.image_folder import fingerprint
from var_jax.evaluate.image_sets import Batch, ImageSet

ANOTHER = "another class"
TASKS = ("in-painting", "out-painting", "lower half", ANOTHER)
BLANK = 0  # level of kept pixels in images of a region that is no rectangle


class Region(NamedTuple):
    """The region that a task fills.

    Attributes:
      keep: on the finest token grid, True where the image is kept.
      pixels: the same at image resolution.
    """

    keep: Bool[np.ndarray, "h w"]
    pixels: Bool[np.ndarray, "H W"]

    def cut(self, images: UInt8[np.ndarray, "n H W c"]) -> UInt8[np.ndarray, "n y x c"]:
        """Returns the filled region of images.

        It is cropped if it is a rectangle; else the kept pixels are blanked.
        """
        rows, columns = (np.flatnonzero(~self.pixels.all(axis=axis)) for axis in (1, 0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if not self.pixels[box].any():
            return images[:, *box]
        return np.where(self.pixels[..., None], np.uint8(BLANK), images)

    def describe(self) -> dict[str, Any]:
        """Returns the entries about the region in a row of the study."""
        cut_shape = self.cut(np.zeros((1, *self.pixels.shape, 1), np.uint8)).shape[1:3]
        is_rectangle = cut_shape != self.pixels.shape
        return {
            "filled_share": float(np.mean(~self.pixels)),
            "alone": "cropped" if is_rectangle else f"kept pixels blanked to {BLANK} in both sets",
        }


def keep_mask(task: str, grid: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Returns which tokens of the finest grid a task keeps.

    The box of in-painting and out-painting has half the height and half the width, centered and
    rounded to whole tokens: a quarter of the image.

    Raises:
      UserError: the grid is too small to keep some tokens and fill others.
    """
    box = np.zeros(grid, bool)
    box[tuple(slice(round(n / 4), round(3 * n / 4)) for n in grid)] = True
    keep = {
        "in-painting": ~box,
        ANOTHER: ~box,
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


def cut_set(images: ImageSet, region: Region) -> ImageSet:
    """Returns a set of the same images, each cut to a region as `Region.cut` does."""

    def read(batch_size: int) -> Iterator[Batch]:
        for batch in images.read(batch_size):
            yield Batch(region.cut(batch.images), batch.labels)

    shape = region.cut(np.zeros((1, *images.shape), np.uint8)).shape[1:]
    content = fingerprint([images.fingerprint, region.pixels.tobytes().hex(), str(BLANK)])
    return dataclasses.replace(images, shape=shape, fingerprint=content, read=read)
