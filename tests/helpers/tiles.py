"""Finds images in the grids and strips that `io.pictures` draws."""

import math

import numpy as np
from PIL import Image

from var_jax.io import pictures


def corners(picture: Image.Image, image: np.ndarray) -> list[tuple[int, int]]:
    """Returns the (top, left) corners at which a picture shows an image, from top to bottom.

    The image, (height, width, channels) of uint8, is looked for as pictures show it: magnified to
    at least `pictures.VISIBLE` pixels, each of its pixels a square of one color.
    """
    factor = math.ceil(pictures.VISIBLE / max(image.shape[:2]))
    tile = np.kron(image, np.ones((factor, factor, 1), np.uint8))
    tile = np.broadcast_to(tile, (*tile.shape[:2], 3))
    pixels = np.asarray(picture.convert("RGB"))
    height, width = (pixels.shape[i] - tile.shape[i] + 1 for i in (0, 1))
    # Where the centers of all magnified pixels agree; few places are left to compare as a whole.
    agrees = np.ones((height, width), bool)
    for row in range(factor // 2, tile.shape[0], factor):
        for column in range(factor // 2, tile.shape[1], factor):
            there = pixels[row : row + height, column : column + width]
            agrees &= (there == tile[row, column]).all(axis=-1)
    return [
        (int(top), int(left))
        for top, left in np.argwhere(agrees)
        if np.array_equal(pixels[top : top + tile.shape[0], left : left + tile.shape[1]], tile)
    ]


def corner(picture: Image.Image, image: np.ndarray) -> tuple[int, int]:
    """Returns the one corner at which a picture shows an image."""
    places = corners(picture, image)
    assert len(places) == 1, f"the image is shown at {places}"
    return places[0]
