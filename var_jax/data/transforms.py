"""Resizes, crops and flips: from an image file's bytes to uint8 pixels of the model's size.

The published recipe for photographs is a Lanczos resize of the short side to 1.125 times the size,
then a random crop (in evaluation a center crop). It has no flip; data may ask for one.
"""

import math
from typing import get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from var_jax.config.sections import Resize
from var_jax.data.image_file import decode, eight_bits, on_background
from var_jax.errors import UserError, did_you_mean

__all__ = ["Resize", "at_size", "check", "crop", "decode", "eight_bits", "fit"]
SHORT_SIDE = 1.125
# "crop" enlarges the short side of a line of pixels to the model's, so that its length would grow
# without bound: a longer image is cut to its middle.
MAX_ASPECT = 20


def check(image_shape: tuple[int, int, int], resize: str):
    """Raises UserError for a shape or a resizing mode that no image can be brought to."""
    if resize not in get_args(Resize):
        raise UserError(f"data.resize is {resize!r}{did_you_mean(resize, get_args(Resize))}")
    if len(image_shape) != 3 or min(image_shape) < 1 or image_shape[2] not in (1, 3):
        raise UserError(
            f"image shape is {image_shape}; it must be (height, width, channels) with 1 or 3 "
            "channels"
        )


def fit(
    pixels: UInt8[np.ndarray, "height width channels"],
    image_shape: tuple[int, int, int],
    resize: Resize,
    name: str = "image",
) -> UInt8[np.ndarray, "new_height new_width new_channels"]:
    """Applies the part of the transform that is the same in every epoch.

    Its memory is bounded by the sizes of image and shape: from an image that is more than
    MAX_ASPECT times as long as the shape, "crop" takes a part in the middle that is that long.

    Args:
      pixels: an image of 1, 3 or 4 channels (the last is alpha, composited as in `decode`).
      image_shape: (height, width, channels) that the model takes.
      resize: "stretch" and "pad" give just that size; "crop" 1.125 times the size along the side
        that is relatively the shorter, and more along the other, for `crop` to cut.
      name: the image's name, for the message.
    Raises:
      UserError: "pad", and the image is larger than the shape.
    """
    height, width, channels = image_shape
    if pixels.shape[-1] == 4:
        pixels = on_background(pixels[..., :3], pixels[..., 3])
    if resize == "crop":
        pixels = _shortened(pixels, height, width)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image = image.convert("L" if channels == 1 else "RGB")
    if resize == "pad":
        if image.height > height or image.width > width:
            raise UserError(
                f"{name} has {image.height} x {image.width} pixels, more than the {height} x "
                f"{width} that data.resize 'pad' fills; take 'stretch' or 'crop'"
            )
        canvas = Image.new(image.mode, (width, height))
        canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        image = canvas
    else:
        if resize == "crop":
            height, width = _covering(image.height, image.width, height, width)
        # Pillow would make all rows of a thin image as wide as the result first.
        if image.height > MAX_ASPECT * image.width:
            image = image.resize((image.width, height), Image.Resampling.LANCZOS)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(image.height, image.width, channels)


def at_size(
    pixels: UInt8[np.ndarray, "height width channels"],
    image_shape: tuple[int, int, int],
    resize: Resize = "crop",
    name: str = "image",
) -> UInt8[np.ndarray, "new_height new_width new_channels"]:
    """Returns a user's image at a model's size: resized as `fit` does, and center-cropped.

    An image of the model's size is not changed.

    Args:
      pixels: the image.
      image_shape: (height, width, channels) of the model.
      resize: as `data.resize` of a training config.
      name: the image's name, for messages.
    """
    how = "stretch" if pixels.shape[:2] == image_shape[:2] else resize
    return crop(fit(pixels, image_shape, how, name), image_shape)


def crop(
    pixels: UInt8[np.ndarray, "height width channels"],
    image_shape: tuple[int, int, int],
    rng: np.random.Generator | None = None,
) -> UInt8[np.ndarray, "new_height new_width channels"]:
    """Returns a random window of the shape's size, or without `rng` the one in the center."""
    spare = [have - want for have, want in zip(pixels.shape[:2], image_shape[:2], strict=True)]
    if rng is None:
        top, left = (round(s / 2) for s in spare)
    else:
        top, left = (int(rng.integers(s + 1)) for s in spare)
    return pixels[top : top + image_shape[0], left : left + image_shape[1]]


def flip(
    pixels: UInt8[np.ndarray, "height width channels"], rng: np.random.Generator
) -> UInt8[np.ndarray, "height width channels"]:
    """Returns the image or its mirror image, each with probability 1/2."""
    return np.ascontiguousarray(pixels[:, ::-1]) if rng.random() < 0.5 else pixels


def _covering(height: int, width: int, want_height: int, want_width: int) -> tuple[int, int]:
    """Returns the (height, width) of the same aspect ratio that covers SHORT_SIDE times a size."""
    least_height, least_width = round(SHORT_SIDE * want_height), round(SHORT_SIDE * want_width)
    if height * least_width <= width * least_height:  # relatively flat: the height decides
        return least_height, max(least_width, width * least_height // height)
    return max(least_height, height * least_width // width), least_width


def _shortened(pixels: np.ndarray, want_height: int, want_width: int) -> np.ndarray:
    """Returns the middle of an image that is more than MAX_ASPECT times as long as a size.

    Other images stay as they are.
    """
    for axis, ratio in ((0, want_height / want_width), (1, want_width / want_height)):
        length, other = pixels.shape[axis], pixels.shape[1 - axis]
        most = math.ceil(MAX_ASPECT * ratio * other)
        if length > most:
            start = (length - most) // 2
            middle = slice(start, length - start)  # symmetric, so that the center stays the center
            return pixels[middle] if axis == 0 else pixels[:, middle]
    return pixels
