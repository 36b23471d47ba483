"""Reads the images, masks and boxes that a command line names, at the model's size."""

import glob
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from var_jax.config.model import TokenizerConfig
from var_jax.data import image_file, mask_file, transforms
from var_jax.errors import UserError
from var_jax.ops.normalize import normalize_images

log = logging.getLogger(__name__)


def read_image(
    path: str, config: TokenizerConfig, resize: transforms.Resize = "crop"
) -> np.ndarray:
    """Returns one image file as float32 (H, W, C) in [-1, 1] at the model's size.

    It is turned upright, and composited on white where it is transparent; an image of that size is
    not resized.

    Raises:
      UserError: the file is missing or does not decode.
    """
    samples = image_file.read(_read(path), path)
    pixels = image_file.pixels_of(samples, path)
    for line in image_file.remarks(samples):
        log.warning("%s %s", path, line)
    return normalize_images(transforms.at_size(pixels, config.image_shape, resize, path))


def read_mask(
    path: str, image: str, config: TokenizerConfig, resize: transforms.Resize = "crop"
) -> np.ndarray:
    """Returns a mask file as bool (H, W) at the model's size, True where new content goes.

    That is where the mask is white.

    A mask as large as the image file is brought to the model's size as that is; one of any other
    size is taken as drawn over the whole of what the model sees, and stretched. What counts as
      white: `mask_file.levels`.

    Raises:
      UserError: a file is missing or does not decode, or the mask's meaning is not certain.
    """
    pixels = transforms.decode(_read(image), image)
    whiteness = mask_file.levels(_read(path), path, pixels)
    as_large = whiteness.shape == pixels.shape[:2]
    return mask_file.region(whiteness, config.image_shape[:2], resize if as_large else "stretch")


def expand(patterns: str | Sequence[str]) -> list[str]:
    """Returns the files of glob patterns, sorted, and of names.

    Raises:
      UserError: there are none.
    """
    matches = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        files = sorted(glob.glob(pattern, recursive=True))
        if not files:
            raise UserError(f"no files match {pattern!r}")
        matches += files
    return matches


class Box(NamedTuple):
    """A rectangle, in fractions of the image's height and width."""

    y0: float
    x0: float
    y1: float
    x1: float


def parse_box(text: str) -> Box:
    """Returns the box that `--box y0,x0,y1,x1` names.

    Raises:
      UserError: these are not four numbers, or not a box within the image.
    """
    try:
        y0, x0, y1, x1 = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--box {text!r} is not y0,x0,y1,x1, such as 0.25,0.25,0.75,0.75") from None
    if not (0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1):
        raise UserError(f"--box {text!r} is not within the image; 0 <= y0 < y1 <= 1, and so for x")
    return Box(y0, x0, y1, x1)


def box_mask(box: Sequence[float], grid: tuple[int, int]) -> np.ndarray:
    """Returns bool (h, w) on the token grid, True inside the box, rounded to whole tokens."""
    y0, x0, y1, x1 = (round(f * n) for f, n in zip(box, (*grid, *grid), strict=True))
    mask = np.zeros(grid, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def _read(path: str) -> bytes:
    try:
        return epath.Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"no image file {path}") from None
    except OSError as error:  # a directory, a link that leads back to itself, a disk that fails
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
