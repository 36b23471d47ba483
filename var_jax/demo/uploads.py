"""Images that visitors of the page upload: limits, kinds, and how they are read."""

import io
import os

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from var_jax.config.model import TokenizerConfig
from var_jax.config.strict import require
from var_jax.data import transforms
from var_jax.errors import UserError

# Of an uploaded file. Its pixels are counted by its header, before any is decoded.
MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
# In seconds. Uploads and the editor's pictures are in a directory of their own, and are removed
# after a day.
CLEAN_EVERY, KEEP = 3600, 24 * 3600
# Kinds that Pillow recognizes by their first bytes and decodes by itself; EPS, say, would run
# another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM", "TIFF")


def open_only_formats():
    """Leaves Pillow's `Image.open` no other kinds than FORMATS, in the whole process and for good.

    Gradio's editor opens a visitor's upload by `Image.open` without `formats`, and no field of the
    page changes that: the plugin that recognizes the first bytes reads the file, and that of EPS
    starts Ghostscript on it. The formats that Pillow can save stay as they were.
    """
    Image.init()  # all of them, so that none comes later
    for kind in set(Image.ID) - set(FORMATS):
        Image.ID.remove(kind)
        Image.OPEN.pop(kind, None)
        Image.MIME.pop(kind, None)


def read_upload(path: str | os.PathLike, config: TokenizerConfig) -> UInt8[np.ndarray, "H W c"]:
    """Returns an uploaded image at the model's size, cropped to its shape as `var-jax edit` does.

    Raises:
      UserError: too many bytes or pixels, too long and narrow, or not an image that decodes to its
        end.
    """
    size = os.stat(path).st_size
    require(
        size <= MAX_BYTES,
        "the upload",
        f"of {size / 2**20:.1f} MB",
        f"at most {MAX_BYTES >> 20} MB",
    )
    with open(path, "rb") as file:
        content = file.read()
    height, width = _header_size(content)
    require(
        height * width <= MAX_PIXELS,
        "the upload",
        f"of {height} x {width} pixels",
        f"at most {MAX_PIXELS // 10**6} million",
    )
    require(
        0 < max(height, width) <= transforms.MAX_ASPECT * min(height, width),
        "the upload",
        f"of {height} x {width} pixels",
        f"at most {transforms.MAX_ASPECT} times as long as it is wide",
    )
    return transforms.at_size(transforms.decode(content, "the upload", FORMATS), config.image_shape)


def _header_size(content: bytes) -> tuple[int, int]:
    """Returns the (height, width) that the file's header states."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.height, image.width
    except (
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:  # beyond Pillow's own limit
        raise UserError(
            f"the upload has too many pixels; it must be at most {MAX_PIXELS // 10**6} million"
        ) from error
    except Exception as error:  # Pillow's plugins raise nearly every kind
        kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise UserError(
            f"the upload is not an image that can be read; it must be {kinds}"
        ) from error
