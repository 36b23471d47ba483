"""Masks of the pixels that get new content, from files and from painted layers.

Only this module decides the meaning of a mask, so that it does not depend on how a program saved
it: bit depth, palette, alpha, or 0 and 1 in place of black and white. If two readings are possible,
the mask is refused by name.
"""

import logging

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image

from var_jax.data import image_file, transforms
from var_jax.errors import UserError

log = logging.getLogger(__name__)
RIGHT = "make new content white, the rest black, and nothing transparent"
COLORED = 48  # of 255: least difference of a pixel's channels that is more than a noisy gray
FEW, DARK = 8, 16  # so few levels, one of them above 0 so dark, are numbers rather than grays
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")  # whose noise makes such levels of 0
ALIKE = 8  # of 255: largest mean difference of one picture after two compressions


def levels(
    content: bytes, name: str, image: UInt8[np.ndarray, "h w c"]
) -> UInt8[np.ndarray, "height width"]:
    """Returns a mask file's whiteness, 255 where new content goes, at the file's own size.

    - Black and white of any depth: as they are; a gray counts as the nearer of the two.
    - Two levels that are both dark, one of them 0 (a mask saved as 0 and 1, or as 0 and 255 in 16
      bits, or black and one dark color): the brighter counts as white, and a line is logged.
    - White, or one color that is not black, painted on a transparent page: where it is opaque.
    - The image itself with a transparent hole: the hole.

    Args:
      content: the file's bytes.
      name: for messages.
      image: pixels of the image that the mask belongs to, at that file's own size.
    Raises:
      UserError: the file does not decode, or has another meaning or none.
    """
    samples = image_file.read(content, name)
    if samples.several:
        log.warning("%s holds several frames or pages; the first is used", name)
    alpha = samples.alpha
    if alpha is None:
        return _opaque(samples, name)
    if alpha.max() <= 127:
        raise UserError(f"{name} is no mask: it is transparent everywhere; {RIGHT}")
    if alpha.min() == alpha.max():  # equal everywhere, which says nothing
        return _opaque(samples, name)
    return _transparent(samples, alpha, name, image)


def region(
    whiteness: UInt8[np.ndarray, "h w"], shape: tuple[int, int], resize: transforms.Resize
) -> Bool[np.ndarray, "height width"]:
    """Returns True where a mask, resized to (height, width), is whiter than one half."""
    return transforms.at_size(whiteness[..., None], (*shape, 1), resize)[..., 0] > 127


def _opaque(samples: image_file.Samples, name: str) -> UInt8[np.ndarray, "height width"]:
    """Returns the whiteness of a mask without transparency."""
    white, values = samples.white, _gray(samples.values)
    colored = np.ptp(samples.values, axis=-1).max() > COLORED
    if colored and _count_colors(samples.values) > 2:
        raise UserError(f"{name} is no mask: it has several colors; {RIGHT}")
    if not np.isfinite(values).all():
        raise UserError(f"{name} is no mask: it has pixels that are not finite; {RIGHT}")
    darkest, brightest = values.min().item(), values.max().item()
    levels = _levels(values)
    if white is None and values.dtype.kind == "f" and darkest >= 0 and 0.5 < brightest <= 1:
        return np.round(values * 255).astype(np.uint8)
    if darkest == brightest == 0:
        return np.zeros(values.shape, np.uint8)
    if white is not None and brightest > white / 2:
        has_few = samples.format not in LOSSY and 2 < len(levels) <= FEW
        if has_few and 0 < levels[levels > 0][0] < DARK:  # such as 0, 1, 2, and 255 for "ignore"
            raise UserError(
                f"{name} is no mask: its values {_listed(levels)} look like class numbers; {RIGHT}"
            )
        if darkest > white / 2 and brightest - darkest > COLORED * (white // 255):
            raise UserError(
                f"{name} is no mask: its darkest pixel is {darkest} of {white}, "
                f"so that all of it would be white; {RIGHT}"
            )
        return image_file.eight_bits(values)
    # All pixels are dark, or have no known range: two levels are black and white.
    if len(levels) == 2 and darkest == 0:
        range_ = f"of {white}" if white else "of no known range"
        log.warning(
            "%s has the values 0 and %s %s: taken for black and white", name, levels[1], range_
        )
        return np.where(values > 0, 255, 0).astype(np.uint8)
    if white is None:
        raise UserError(
            f"{name} is no mask: its values run from {darkest:g} to {brightest:g}, "
            f"and which is white is not known; save it with 8 bits, and {RIGHT}"
        )
    raise UserError(
        f"{name} is no mask: its brightest pixel is {brightest} of {white}, "
        f"so that none of it is white; {RIGHT}"
    )


def _transparent(
    samples: image_file.Samples,
    alpha: UInt8[np.ndarray, "height width"],
    name: str,
    image: UInt8[np.ndarray, "h w c"],
) -> UInt8[np.ndarray, "height width"]:
    """Returns the whiteness of a mask with transparent places; hidden colors do not count."""
    visible = alpha > 127
    values = image_file.eight_bits(samples.values)
    gray = _gray(values)
    colors = values[visible]
    if gray[visible].min() > 127 or (colors.max() > COLORED and _count_colors(colors) == 1):
        return alpha
    if np.ptp(gray[visible]) > COLORED and _is_same(gray, image, visible):
        return 255 - alpha
    raise UserError(
        f"{name} is no mask: it is transparent in places and has dark or colored ones too, so "
        f"that its meaning is not known; {RIGHT}"
    )


def _gray(values: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "h w"]:
    """Returns the brightness of pixels, in their own units."""
    if values.shape[-1] == 1:
        return values[..., 0]
    return np.asarray(Image.fromarray(values).convert("L"))


def _is_same(
    gray: UInt8[np.ndarray, "h w"],
    image: UInt8[np.ndarray, "height width c"],
    where: Bool[np.ndarray, "h w"],
) -> bool:
    """Returns whether a mask file has the image's own brightness where `where` is true."""
    if gray.shape != image.shape[:2]:
        return False
    return np.abs(gray.astype(np.int16) - _gray(image))[where].mean() <= ALIKE


def _levels(values: Shaped[np.ndarray, "height width"]) -> Shaped[np.ndarray, " levels"]:
    """Returns the distinct values, in order."""
    if values.dtype.kind == "u":  # without sorting millions of pixels
        return np.flatnonzero(np.bincount(values.ravel()))
    return np.unique(values)


def _count_colors(pixels: Shaped[np.ndarray, "... channels"]) -> int:
    if pixels.shape[-1] == 1:
        return len(np.unique(pixels))
    red, green, blue = np.moveaxis(pixels.astype(np.uint32), -1, 0)
    return len(np.unique(red << 16 | green << 8 | blue))


def _listed(levels: Shaped[np.ndarray, " levels"]) -> str:
    return ", ".join(str(value) for value in levels)
