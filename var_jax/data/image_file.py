"""Decodes an image file's bytes to samples: the one decoder of images and masks.

Every command reads through here, so that a file has the same pixels wherever it is used: upright
(EXIF orientation), its transparency kept apart from its colors, and its samples with the value that
is white. A file that cannot be read correctly is refused by name.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from var_jax.errors import UserError
from var_jax.io import failed_downloads

BACKGROUND = 255  # transparent images are composited on white, as on a page
DARK = 0.25  # share of white: 14 bits in 16 and fewer have nothing brighter
# Pillow starts other programs on these, which hold drawing commands.
DRAWINGS = ("EPS", "WMF")
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339


class Samples(NamedTuple):
    """The samples of an image file, and how they were read.

    Attributes:
      format: Pillow's name of the file's kind.
      values: gray or RGB samples (height, width, 1 or 3), uint8, uint16, int32 or float32.
      white: the value that is white; None where the file's kind has no known range.
      alpha: opacity (height, width), 255 where opaque; None for an image that is opaque everywhere.
      turned: whether an EXIF orientation turned or mirrored the samples.
      rescaled: whether the file's white differs from what its number of bytes suggests.
      several: whether the file holds more frames or pages; these are the first's samples.
      deep: whether the file has 16 bits per sample; of colors the upper 8 are kept.
    """

    format: str
    values: Shaped[np.ndarray, "height width channels"]
    white: int | None
    alpha: UInt8[np.ndarray, "height width"] | None
    turned: bool
    rescaled: bool
    several: bool
    deep: bool


def read(content: bytes, name: str, formats: Sequence[str] | None = None) -> Samples:
    """Returns the samples of an image file of any kind that Pillow decodes by itself.

    Args:
      content: the file's bytes.
      name: for the message.
      formats: Pillow's names of the kinds to accept; all by default.
    Raises:
      UserError: the file does not decode to its end, or its pixels have no meaning that is
        certain; `name` is in the message.
    """
    kinds = None if formats is None else tuple(formats)
    with _errors_named(name, content), Image.open(io.BytesIO(content), formats=kinds) as image:
        return _samples(image)


def decode(
    content: bytes, name: str, formats: Sequence[str] | None = None
) -> UInt8[np.ndarray, "height width channels"]:
    """Returns an image file's pixels: gray images with 1 channel, all others with 3.

    White is 255 for every bit depth. Transparent images are composited on white. If there are
    several frames or pages, the first one is decoded. Arguments and errors are those of `read`;
    floating-point and 32-bit integer pixels, which have no known range, are refused too.
    """
    return pixels_of(read(content, name, formats), name)


def pixels_of(samples: Samples, name: str) -> UInt8[np.ndarray, "height width channels"]:
    """Converts the samples that `read` returned to pixels, with the same result as `decode`."""
    if samples.white is None:
        kind = "floating-point" if samples.values.dtype.kind == "f" else "signed or 32-bit integer"
        raise UserError(
            f"{name} does not decode: its {kind} pixels have no known range; "
            "save it with 8 or 16 bits per channel"
        )
    pixels = eight_bits(samples.values)
    return pixels if samples.alpha is None else on_background(pixels, samples.alpha)


def remarks(samples: Samples) -> list[str]:
    """Returns warnings about a file that decodes, as sentences without their subject."""
    texts = []
    if samples.several:
        texts.append("holds several frames or pages; the first is used")
    brightest = samples.values.max()
    if samples.deep and samples.white is not None and 0 < brightest < samples.white * DARK:
        most = f"{brightest} of {samples.white}"
        of_255 = f" ({brightest // 257} of 255)" if samples.white == 65535 else ""
        texts.append(
            f"has 16 bits and no value above {most}, so that it is dark{of_255}; if its white is "
            "lower, scale it first"
        )
    return texts


def eight_bits(
    pixels: Shaped[np.ndarray, "height width channels"],
) -> UInt8[np.ndarray, "height width channels"]:
    """Returns uint8 or uint16 pixels as uint8; white stays white."""
    return (pixels // 257).astype(np.uint8) if pixels.dtype == np.uint16 else pixels


def on_background(
    pixels: UInt8[np.ndarray, "height width channels"], alpha: UInt8[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width channels"]:
    """Returns pixels composited on BACKGROUND; opaque ones stay as they are."""
    weight = alpha[..., None].astype(np.uint16)  # no sum below is more than 255 * 255 + 127
    blended = pixels * weight + BACKGROUND * (255 - weight)
    return ((blended + 127) // 255).astype(np.uint8)


def _samples(image: Image.Image) -> Samples:
    if image.format in DRAWINGS:
        raise ValueError(f"{image.format} files hold drawings, not pixels; save it as PNG")
    several = bool(getattr(image, "is_animated", False)) and image.format != "MPO"  # phones' photos
    raw_mode = _raw_mode(image)
    image.load()
    tags = getattr(image, "tag_v2", {})
    if 2 in tags.get(TIFF_SAMPLE_FORMAT, ()) and image.mode == "L":  # Pillow reads it as unsigned
        raise ValueError("signed 8-bit pixels have no known range; save it with unsigned ones")
    rescaled = False
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        values = np.asarray(image).astype(np.uint16)[..., None]
        white, alpha = 65535, _alpha_of_color(values, image.info.get("transparency"))
        if tags.get(TIFF_BITS) == (12,):
            values, rescaled = (values * np.uint32(65535) // 4095).astype(np.uint16), True
        if tags.get(TIFF_PHOTOMETRIC) == 0:  # white is zero, which Pillow respects only at 8 bits
            values, rescaled = 65535 - values, True
    elif image.mode in ("I", "F"):
        values, white, alpha = np.asarray(image)[..., None], None, None
    else:
        values, alpha = _of_bytes(image, raw_mode)
        white = 255
    if alpha is not None and alpha.min() == 255:
        alpha = None
    turn = UPRIGHT.get(_orientation(image))
    if turn is not None:
        values = _turned(values, turn)
        alpha = None if alpha is None else _turned(alpha[..., None], turn)[..., 0]
    values = np.ascontiguousarray(values)  # not a view that keeps other channels in memory
    deep = white == 65535 or ";16" in raw_mode
    return Samples(
        image.format or "", values, white, alpha, turn is not None, rescaled, several, deep
    )


def _of_bytes(image: Image.Image, raw_mode: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns (values, alpha) of an image that Pillow reads with 8 bits per channel or fewer."""
    gray = image.mode in ("1", "L", "LA", "La") or raw_mode == "LA;16B"
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple) and raw_mode.startswith("RGB;16"):
        # Pillow keeps only the upper byte of each sample, which does not identify the pixels.
        raise ValueError(
            "one color of its 16-bit RGB is transparent (tRNS); save it with an alpha channel"
        )
    if isinstance(transparent, int) and raw_mode in ("L;2", "L;4"):
        # The file's own value, if Pillow has scaled the samples to 255.
        image.info["transparency"] = transparent * (85 if raw_mode == "L;2" else 17)
    if not image.has_transparency_data:
        pixels = np.asarray(image.convert("L" if gray else "RGB"))
        return pixels.reshape(*pixels.shape[:2], -1), None
    if image.mode in ("La", "RGBa"):  # colors multiplied by alpha
        image = image.convert("LA" if gray else "RGBA")
    pixels = np.asarray(image.convert("RGBA"))
    return pixels[..., : 1 if gray else 3], pixels[..., 3]


def _alpha_of_color(
    values: Shaped[np.ndarray, "height width 1"], transparent: Any
) -> UInt8[np.ndarray, "height width"] | None:
    """Returns an alpha of 0 where a 16-bit gray image has the one value that is transparent."""
    if not isinstance(transparent, int):
        return None
    return np.where(values[..., 0] == transparent, 0, 255).astype(np.uint8)


def _raw_mode(image: Image.Image) -> str:
    """Returns the layout of the samples in the file, which Pillow keeps only until it loads."""
    tile = getattr(image, "tile", None)
    if not tile:
        return ""
    arguments = tile[0][3]
    first = arguments if isinstance(arguments, str) or not arguments else arguments[0]
    return first if isinstance(first, str) else ""


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, or 1 if there is none or the EXIF block is damaged.

    `ImageOps.exif_transpose` also writes the block anew, and fails on images whose block has any
    entry that it cannot write; viewers show those.
    """
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # as many kinds as there are ways to damage it
        return 1
    return orientation if isinstance(orientation, int) else 1


def _turned(
    values: Shaped[np.ndarray, "height width channels"], turn: Image.Transpose
) -> Shaped[np.ndarray, "new_height new_width channels"]:
    """Returns Pillow's transposition, also for samples that Pillow has no mode for."""
    match turn:
        case Image.Transpose.FLIP_LEFT_RIGHT:
            return values[:, ::-1]
        case Image.Transpose.FLIP_TOP_BOTTOM:
            return values[::-1]
        case Image.Transpose.ROTATE_180:
            return values[::-1, ::-1]
        case Image.Transpose.ROTATE_90:
            return np.rot90(values)
        case Image.Transpose.ROTATE_270:
            return np.rot90(values, -1)
        case Image.Transpose.TRANSPOSE:
            return values.swapaxes(0, 1)
        case _:  # transverse
            return values[::-1, ::-1].swapaxes(0, 1)


@contextlib.contextmanager
def _errors_named(name: str, content: bytes) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        size = str(error).partition(", could")[0]
        raise UserError(f"{name} does not decode: {size}; make it smaller") from error
    except Exception as error:  # Pillow's plugins raise nearly every kind
        # For an image of an unknown kind Pillow names the buffer, which does not help a reader.
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = _unknown(content) if unknown else _first_line(error)
        raise UserError(f"{name} does not decode: {reason}") from error


def _unknown(content: bytes) -> str:
    """Returns the kind of a file that no plugin of Pillow reads, by its first bytes."""
    head = content[: failed_downloads.HEAD_BYTES]
    if b"<svg" in head.lower():
        return "SVG files hold drawings, not pixels; save it as PNG"
    if kind := failed_downloads.failed_download(head):
        return f"it is {kind}"
    if head[:4] in (b"II*\0", b"MM\0*"):
        return (
            "a TIFF whose samples are laid out in a way that Pillow does not read; save it with "
            "8 bits per channel, or as PNG"
        )
    if head[4:8] == b"ftyp":
        return "not an image that Pillow knows (HEIC, perhaps, or a video); save it as JPEG or PNG"
    return "not an image that Pillow knows"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
