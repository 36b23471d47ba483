"""The HTML of the demo's results: images, strips and their downloads."""

import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from var_jax.demo.session import Choices
from var_jax.io import pictures

# The least number of pixels that the longer side of an image has on the page, and that of an image
# in a strip.
LARGE, TILE = 384, 96


class Row(NamedTuple):
    """Images that are shown side by side, the last one large above them.

    Attributes:
      images: the images.
      titles: one per image.
      heading: a line above the small images; "" for none.
      status: the request in words and the time that it took.
      file_name: the downloads' name, without its ending.
    """

    images: UInt8[np.ndarray, "k H W c"]
    titles: Sequence[str]
    heading: str
    status: str
    file_name: str


def generated(
    steps: UInt8[np.ndarray, "k H W c"], scales: Sequence[str], choices: Choices, status: str
) -> str:
    """Returns the HTML of an image, the image after each scale, and their downloads.

    Args:
      steps: the image after each scale.
      scales: titles of the scales.
      status: a line about how it was made.
    """
    return _html(
        Row(
            steps,
            scales,
            heading="After each scale, named by its tokens:",
            status=status,
            file_name=f"class{choices.label}_seed{choices.seed}",
        )
    )


def edited(
    before: UInt8[np.ndarray, "H W c"],
    mask: Bool[np.ndarray, "H W"],
    after: UInt8[np.ndarray, "H W c"],
    choices: Choices,
    status: str,
) -> str:
    """Returns the HTML of an edited image, the image before and the mask, and their downloads.

    Args:
      mask: True where the image was edited; its download is a mask that `var-jax edit` takes.
      status: a line about how it was made.
    """
    white = np.broadcast_to(np.where(mask, 255, 0).astype(np.uint8)[..., None], before.shape)
    return _html(
        Row(
            np.stack([before, white, after]),
            ("before", "mask", "after"),
            heading="",
            status=status,
            file_name=f"edited_class{choices.label}_seed{choices.seed}",
        )
    )


def magnified(image: UInt8[np.ndarray, "H W c"]) -> Image.Image:
    """Returns an image magnified by a whole number, so that one can paint on it."""
    return pictures.grid(image[None], columns=1, scale=magnification(image.shape, LARGE))


def magnification(shape: Sequence[int], side: int) -> int:
    """Returns the whole number that brings the longer side of an image to at most `side` pixels."""
    return max(1, side // max(shape[:2]))


def _html(row: Row) -> str:
    """Returns the HTML of the last image, large, and of all images, small."""
    strip = pictures.strip([row.images], column_titles=row.titles)
    links = _link(f"{row.file_name}.png", "Download image", pictures.image(row.images[-1]))
    links += _link(f"{row.file_name}_strip.png", "Download strip", strip)
    tiles = "".join(
        _figure(image, title, TILE) for image, title in zip(row.images, row.titles, strict=True)
    )
    heading = f"<p>{row.heading}</p>" if row.heading else ""
    return (
        f'<div class="result"><div class="pictures large">{_figure(row.images[-1], "", LARGE)}'
        f'</div><p role="status">{html.escape(row.status)}</p><div>{links}</div>{heading}'
        f'<div class="pictures strip">{tiles}</div></div>'
    )


def _link(file_name: str, text: str, picture: Image.Image) -> str:
    return f'<a class="download" download="{file_name}" href="{_data_url(picture)}">{text}</a>'


def _figure(image: UInt8[np.ndarray, "H W c"], title: str, side: int) -> str:
    """Returns the HTML of an image, whose pixels are its own however large it is shown."""
    height, width, _ = image.shape
    factor = magnification(image.shape, side)
    shown_width = width * factor
    if side != LARGE:
        shown_width = round(width * min(factor, 1.25 * side / max(height, width)))
    css_class = ' class="pixels"' if factor > 1 else ""
    caption = f"<figcaption>{title}</figcaption>" if title else ""
    return (
        f'<figure><img{css_class} width="{shown_width}" alt="{title or "result"}" '
        f'src="{_data_url(pictures.image(image))}">{caption}</figure>'
    )


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
