"""Labeled grids and strips of images as PNGs, and animations of them as GIFs."""

import functools
import importlib.util
import io
import math
import os
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from var_jax.config.scales import Scales
from var_jax.errors import UserError
from var_jax.io import atomic

Images = Float[np.ndarray, "n h w c"] | UInt8[np.ndarray, "n h w c"]

GAP = 4
MARGIN = 6
FONT_SIZE = 14
BLOCK_GAP = 28  # between the pictures of `titled_blocks`, with room for a title
BLOCK_FONT_SIZE = 18
FRAME_MS = 400
SIDE_TILES = 2  # largest width of a title to the left of a row, in tiles
VISIBLE = 96  # least pixels of the longer side of a magnified image
INK, PAPER = (20, 20, 20), (255, 255, 255)


def grid(
    images: Images, columns: int, titles: Sequence[str] | None = None, scale: int | None = None
) -> Image.Image:
    """Returns images row by row, each below its title; without titles there is no margin.

    Args:
      images: in [0, 1] (values beyond are clamped), or uint8; one channel (gray) or three.
      columns: number of images per row.
      titles: titles of the first images, in order; as many as there are columns label the columns.
      scale: whole number by which both sides are magnified; by default a small image is made
        visible.
    """
    tiles, titles = _tiles(images, scale), list(titles or [])
    if len(titles) > len(tiles):
        raise ValueError(f"{len(titles)} titles for {len(tiles)} images")
    starts = range(0, len(tiles), columns)
    return _tile_rows(
        [tiles[i : i + columns] for i in starts], [titles[i : i + columns] for i in starts]
    )


def image(pixels: Float[np.ndarray, "h w c"] | UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """Returns one image at its own size, without a margin: gray with 1 channel, RGB with 3."""
    values = to_uint8(pixels)
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)


def strip(
    rows: Sequence[Images],
    column_titles: Sequence[str] | None = None,
    scale: int | None = None,
    row_titles: Sequence[str] | None = None,
) -> Image.Image:
    """Returns rows of images, such as an original and its reconstructions from coarse to fine.

    Args:
      rows: one batch of images per row, as in `grid`.
      column_titles: one title per column, above the first row.
      row_titles: one title per row, to its left.
    """
    heads = [list(column_titles or []), *([[]] * (len(rows) - 1))]
    return _tile_rows([_tiles(row, scale) for row in rows], heads, list(row_titles or []))


def reconstruction_strip(
    originals: Images, reconstructions: Sequence[Float[np.ndarray, "n h w c"]], scales: Scales
) -> Image.Image:
    """Returns a strip with one row per image: the original, then its reconstructions.

    These are from the first scale, the first two, ... and all of them.

    Args:
      originals: the images, in [0, 1].
      reconstructions: one batch per scale, in [-1, 1].
    """
    rows = []
    for i, original in enumerate(originals):
        rows.append(np.stack([original, *((step[i] + 1) / 2 for step in reconstructions)]))
    return strip(rows, column_titles=["original", *scale_titles(scales)])


def titled_blocks(
    blocks: Sequence[Image.Image], titles: Sequence[str], columns: int
) -> Image.Image:
    """Returns pictures, such as strips, side by side in columns, each below its title."""
    font = ImageFont.load_default(BLOCK_FONT_SIZE)
    width, height = (max(block.size[i] for block in blocks) for i in (0, 1))
    lines = -(-len(blocks) // columns)
    size = (columns * (width + BLOCK_GAP) - BLOCK_GAP, lines * (height + BLOCK_GAP))
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (block, title) in enumerate(zip(blocks, titles, strict=True)):
        x, y = i % columns * (width + BLOCK_GAP), i // columns * (height + BLOCK_GAP)
        draw.text((x + width / 2, y + 4), title, INK, font, anchor="ma")
        canvas.paste(block, (x, y + BLOCK_GAP))
    return canvas


def scale_titles(scales: Scales) -> list[str]:
    """Returns a title for each scale: the size of its token map, such as "3x4"."""
    return [f"{height}x{width}" for height, width in scales.sizes]


def title(text: str, otherwise: str) -> str:
    """Returns the text, or `otherwise` if the fonts have no glyphs for it.

    It would be drawn as a row of boxes.
    """
    font = _font(text)
    missing = _glyph(font, "\uffff")
    has_glyphs = all(letter.isspace() or _glyph(font, letter) != missing for letter in text)
    return text if has_glyphs else otherwise


def place(path: epath.PathLike) -> epath.Path:
    """Checks that a picture can be written, before hours of work, and returns its path.

    Raises:
      UserError: the path names no file.
    """
    path = epath.Path(path)
    if path.name in ("", "..") or path.is_dir():
        raise UserError(
            f"cannot write the picture {str(path)!r}: it is a directory; name a file, such as "
            "samples.png"
        )
    above = [] if "://" in str(path) else path.parents  # buckets have no directories
    if file := next((one for one in above if one.exists() and not one.is_dir()), None):
        raise UserError(f"cannot write the picture {path}: {file} is a file, not a directory")
    return path


def save_png(path: epath.PathLike, image: Image.Image):
    """Writes the file completely or not at all.

    Raises:
      UserError: it cannot be written.
    """
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    atomic.save(place(path), [buffer.getvalue()], "the picture")


def save_gif(path: epath.PathLike, frames: Sequence[Image.Image], milliseconds: int = FRAME_MS):
    """Writes an animation that repeats, completely or not at all.

    Args:
      frames: pictures of one size.
      milliseconds: duration of a frame; the last one stays four times as long.
    Raises:
      UserError: it cannot be written.
    """
    buffer = io.BytesIO()
    times = [milliseconds] * (len(frames) - 1) + [4 * milliseconds]
    frames[0].save(
        buffer, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0
    )
    atomic.save(place(path), [buffer.getvalue()], "the picture")


def to_uint8(images: Images) -> UInt8[np.ndarray, "n h w c"]:
    """Returns images in [0, 1] as uint8, rounded; uint8 images stay as they are."""
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    return np.rint(np.clip(images.astype(np.float32), 0, 1) * 255).astype(np.uint8)


def _tiles(images: Images, scale: int | None) -> list[Image.Image]:
    pixels = to_uint8(images)
    scale = scale or math.ceil(VISIBLE / max(pixels.shape[1:3]))
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    tiles = [Image.fromarray(one) for one in pixels]
    return [
        tile.resize((tile.width * scale, tile.height * scale), Image.Resampling.NEAREST)
        for tile in tiles
    ]


def _font(text: str) -> ImageFont.FreeTypeFont:
    """Returns the font that has the text's letters, or the most of them."""
    return _fonts()[0 if text.isascii() else 1]


@functools.cache
def _fonts() -> tuple[ImageFont.FreeTypeFont, ImageFont.FreeTypeFont]:
    """Returns Pillow's own font and the one that comes with matplotlib.

    The first has only ASCII; the second has the letters of the Latin, Greek, Cyrillic and other
    alphabets, and few of East Asia. matplotlib itself takes long to import.
    """
    own = ImageFont.load_default(FONT_SIZE)
    assert isinstance(own, ImageFont.FreeTypeFont)
    spec = importlib.util.find_spec("matplotlib")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = os.path.join(place, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
        if os.path.exists(path):
            return own, ImageFont.truetype(path, FONT_SIZE)
    return own, own


def _glyph(font: ImageFont.FreeTypeFont, letter: str) -> tuple:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def _tile_rows(
    rows: list[list[Image.Image]], heads: list[list[str]], sides: Sequence[str] = ()
) -> Image.Image:
    """Returns tiles in rows, with any titles above each row, and its own of `sides` to its left."""
    titles = [title for head in heads for title in head] + list(sides)
    line = max((math.ceil(sum(_font(title).getmetrics())) + 2 for title in titles), default=0)
    margin = MARGIN if any(map(any, heads)) or any(sides) else 0
    columns = max(map(len, rows))
    width = max(tile.width for row in rows for tile in row)
    sides = [_fit(side, SIDE_TILES * width) for side in sides]
    left = margin + max((math.ceil(_font(side).getlength(side)) + GAP for side in sides), default=0)
    head_heights = [line if any(head) else 0 for head in heads]
    heights = [max(tile.height for tile in row) for row in rows]
    across = left + columns * (width + GAP) - GAP + margin
    down = 2 * margin + sum(head_heights) + sum(heights) + GAP * (len(rows) - 1)
    canvas = Image.new("RGB", (across, down), PAPER)
    draw = ImageDraw.Draw(canvas)
    y = margin
    for k, (row, head, head_height, height) in enumerate(
        zip(rows, heads, head_heights, heights, strict=True)
    ):
        for i, title in enumerate(head):
            fitted = _fit(title, width)
            draw.text(
                (left + i * (width + GAP) + width / 2, y), fitted, INK, _font(fitted), anchor="ma"
            )
        y += head_height
        if sides:
            draw.text((left - GAP, y + height / 2), sides[k], INK, _font(sides[k]), anchor="rm")
        for i, tile in enumerate(row):
            canvas.paste(tile, (left + i * (width + GAP), y))
        y += height + GAP
    return canvas


def _fit(title: str, width: int) -> str:
    """Returns a title cut to its width, with an ellipsis: it must not run into the next one."""
    title = " ".join(title.split())
    if _font(title).getlength(title) <= width:
        return title
    font = _font("…")
    while title and font.getlength(f"{title}…") > width:
        title = title[:-1]
    return f"{title}…"
