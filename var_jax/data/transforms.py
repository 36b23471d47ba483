"""From a file's bytes to uint8 pixels of the model's size.

The published recipe for photographs: Lanczos resize of the short side to 1.125 times the size, then a random crop
(evaluation: centre crop) and no flip.
"""

import io
from typing import Literal, get_args

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from var_jax.errors import UserError, did_you_mean

Resize = Literal["crop", "whole", "pad"]
SHORT_SIDE = 1.125


def check(image_shape: tuple[int, int, int], resize: str):
    """Raises UserError unless (height, width, channels) and the way of resizing can be met."""
    if resize not in get_args(Resize):
        raise UserError(f"data.resize is {resize!r}{did_you_mean(resize, get_args(Resize))}")
    if len(image_shape) != 3 or min(image_shape) < 1 or image_shape[2] not in (1, 3):
        raise UserError(f"image shape is {image_shape}; it must be (height, width, channels) with 1 or 3 channels")


def decode(content: bytes, name: str) -> UInt8[np.ndarray, "height width channels"]:
    """Pixels of an image file of any Pillow format: grey images with 1 channel, all others with 3.

    Of several frames the first counts; transparency is dropped, as Pillow's conversion does.

    Raises:
      UserError: the file does not decode to its end; `name` is in the message.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.mode == "F":
                raise ValueError("floating-point pixels have no known range")
            if image.mode == "I" or image.mode.startswith("I;16"):  # 16 bits, which Pillow's own conversion clips
                return eight_bits(np.asarray(image).clip(0, 65535).astype(np.uint16)[..., None])
            pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB"))
    except Exception as error:  # Pillow's plugins raise nearly every kind
        # An image of an unknown kind has Pillow name the buffer, which says nothing to a reader.
        reason = "not an image that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f"{name} does not decode: {reason}") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def eight_bits(pixels: Shaped[np.ndarray, "height width channels"]) -> UInt8[np.ndarray, "height width channels"]:
    """uint8 of uint8 or uint16 pixels, white staying white."""
    return (pixels // 257).astype(np.uint8) if pixels.dtype == np.uint16 else pixels


def fit(pixels: UInt8[np.ndarray, "height width channels"], image_shape: tuple[int, int, int], resize: Resize,
        name: str = "image") -> UInt8[np.ndarray, "new_height new_width new_channels"]:
    """The part of the transform that is the same in every epoch.

    Args:
      pixels: 1, 3 or 4 channels (the last dropped).
      image_shape: (height, width, channels) that the model takes.
      resize: "whole" and "pad" give just that size; "crop" 1.125 times the size along the side that is relatively
        the shorter, and more along the other, for `crop` to cut.
      name: for the message.
    Raises:
      UserError: "pad", and the image is larger than the shape.
    """
    height, width, channels = image_shape
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image = image.convert("L" if channels == 1 else "RGB")
    if resize == "pad":
        if image.height > height or image.width > width:
            raise UserError(f"{name} has {image.height} x {image.width} pixels, more than the {height} x {width} that "
                            "data.resize 'pad' fills; take 'whole' or 'crop'")
        canvas = Image.new(image.mode, (width, height))
        canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        image = canvas
    else:
        if resize == "crop":
            height, width = _covering(image.height, image.width, height, width)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(image.height, image.width, channels)


def at_size(pixels: UInt8[np.ndarray, "height width channels"], image_shape: tuple[int, int, int],
            resize: Resize = "crop", name: str = "image") -> UInt8[np.ndarray, "new_height new_width new_channels"]:
    """An image that a user hands a model: `fit` and cut in the centre; one of the model's size is taken as it is."""
    how = "whole" if pixels.shape[:2] == image_shape[:2] else resize
    return crop(fit(pixels, image_shape, how, name), image_shape)


def crop(pixels: UInt8[np.ndarray, "height width channels"], image_shape: tuple[int, int, int],
         rng: np.random.Generator | None = None) -> UInt8[np.ndarray, "new_height new_width channels"]:
    """A uniformly random window of the shape's size, or without `rng` the one in the centre."""
    spare = [have - want for have, want in zip(pixels.shape[:2], image_shape[:2], strict=True)]
    if rng is None:
        top, left = (round(s / 2) for s in spare)
    else:
        top, left = (int(rng.integers(s + 1)) for s in spare)
    return pixels[top:top + image_shape[0], left:left + image_shape[1]]


def _covering(height: int, width: int, want_height: int, want_width: int) -> tuple[int, int]:
    """(height, width) of the same aspect ratio that just covers 1.125 times what is wanted."""
    least_height, least_width = round(SHORT_SIDE * want_height), round(SHORT_SIDE * want_width)
    if height * least_width <= width * least_height:  # relatively flat: the height decides
        return least_height, max(least_width, width * least_height // height)
    return max(least_height, height * least_width // width), least_width
