"""What a mask marks, over formats, modes and ways to save it."""

import io
import logging

import numpy as np
import pytest
from PIL import Image

from helpers.image_bytes import png, saved, tiff
from var_jax.data import mask_file
from var_jax.errors import UserError

REGION = np.zeros((12, 16), bool)
REGION[:6, :8] = True
PICTURE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)


def where(inside, outside=0, dtype=np.uint8) -> np.ndarray:
    """(12, 16) or (12, 16, channels) of one value in the region and another elsewhere."""
    region = REGION if np.ndim(inside) == 0 else REGION[..., None]
    return np.where(region, inside, outside).astype(dtype)


def gray(inside, outside=0, dtype=np.uint8) -> Image.Image:
    return Image.fromarray(where(inside, outside, dtype))


def palette(*colors: tuple[int, int, int], inside: int = 1) -> Image.Image:
    image = gray(inside, 1 - inside)
    image.putpalette(sum(colors, ()))
    return image


def painted(color: tuple[int, int, int], hidden: tuple[int, int, int]) -> Image.Image:
    """Strokes of a color on a transparent page."""
    return Image.fromarray(where((*color, 255), (*hidden, 0)))


def hole() -> Image.Image:
    """The picture, transparent in the region."""
    return Image.fromarray(np.dstack([PICTURE, where(0, 255)]))


WHITE, BLACK, RED = (255,) * 3, (0,) * 3, (230, 25, 75)
MARKED = {
    "1 in PNG": saved(gray(255).convert("1"), "PNG"),
    "1 in TIFF": saved(gray(255).convert("1"), "TIFF"),
    "1 in PBM": saved(gray(255).convert("1"), "PPM"),
    "L in PNG": saved(gray(255), "PNG"),
    "L in JPEG": saved(gray(255), "JPEG"),
    "L in BMP": saved(gray(255), "BMP"),
    "grays": saved(gray(200, 40), "PNG"),
    "RGB in PNG": saved(gray(255).convert("RGB"), "PNG"),
    "RGB in WebP": saved(gray(255).convert("RGB"), "WEBP"),
    "P in PNG": saved(palette(BLACK, WHITE), "PNG"),
    "P in PNG, white first": saved(palette(WHITE, BLACK, inside=0), "PNG"),
    "P in GIF": saved(palette(BLACK, WHITE), "GIF"),
    "P of one dark color": saved(palette(BLACK, (128, 0, 0)), "PNG"),
    "16 bits": saved(gray(65535, dtype=np.uint16), "PNG"),
    "16 bits in TIFF": saved(gray(65535, dtype=np.uint16), "TIFF"),
    "255 in 16 bits": saved(gray(255, dtype=np.uint16), "PNG"),
    "1 in 16 bits": saved(gray(1, dtype=np.uint16), "PNG"),
    "1 in 8 bits": saved(gray(1), "PNG"),
    "1 in RGB": saved(gray(1).convert("RGB"), "PNG"),
    "1 in 32 bits": saved(gray(1, dtype=np.int32), "TIFF"),
    "255 in 32 bits": saved(gray(255, dtype=np.int32), "TIFF"),
    "1.0": saved(gray(1, dtype=np.float32), "TIFF"),
    "0.9 and 0.1": saved(gray(0.9, 0.1, dtype=np.float32), "TIFF"),
    "255.0": saved(gray(255, dtype=np.float32), "TIFF"),
    "CMYK": saved(gray(255).convert("CMYK"), "TIFF"),
    "white is zero": tiff(where(0, 255).tobytes(), 12, 16, 8, 0),
    "opaque RGBA": saved(gray(255).convert("RGBA"), "PNG"),
    "white on transparent black": saved(painted(WHITE, BLACK), "PNG"),
    "white on transparent white": saved(painted(WHITE, WHITE), "PNG"),
    "red on transparent white": saved(painted(RED, WHITE), "PNG"),
    "red on transparent, in WebP": saved(painted(RED, WHITE), "WEBP", lossless=True, exact=True),
    "LA, white on transparent white": saved(Image.merge("LA", [gray(255, 255), gray(255)]), "PNG"),
    "P with tRNS": saved(palette(WHITE, WHITE), "PNG", transparency=0),
    "transparent in GIF": saved(palette(WHITE, WHITE), "GIF", transparency=0),
    "16 bits with tRNS": png(where(65535, 65534, np.int64)[..., None], 16, 0, (65534,)),
    "constant alpha": saved(Image.fromarray(where((255,) * 3 + (128,), (0, 0, 0, 128))), "PNG"),
    "the image with a hole": saved(hole(), "PNG"),
    "the image with a hole, in WebP": saved(hole(), "WEBP", quality=90),
}


@pytest.mark.parametrize("content", MARKED.values(), ids=MARKED)
def test_levels_mark_the_same_region_however_a_mask_is_saved(content):
    """Holds that bit depth, format, palette, alpha, hidden colors and value range do not change
    what a mask marks."""
    whiteness = mask_file.levels(content, "mask.png", PICTURE)
    assert whiteness.dtype == np.uint8
    np.testing.assert_array_equal(whiteness > 127, REGION)
    np.testing.assert_array_equal(mask_file.region(whiteness, (12, 16), "crop"), REGION)


def three(low: int, middle: int, high: int, dtype=np.uint8) -> Image.Image:
    values = where(high, low, dtype)
    values[-1] = middle
    return Image.fromarray(values)


REFUSED = {
    "class numbers": (saved(three(0, 1, 2), "PNG"), "brightest pixel is 2 of 255"),
    "class numbers and 255": (saved(three(0, 255, 1), "PNG"), "0, 1, 255 look like class numbers"),
    "class numbers in 16 bits": (saved(three(0, 1, 2, np.uint16), "PNG"), "2 of 65535"),
    "grays of 8 bits in 16": (saved(three(0, 100, 255, np.uint16), "PNG"), "255 of 65535"),
    "grays of unknown range": (saved(three(0, 100, 255, np.int32), "TIFF"), "from 0 to 255"),
    "floats of unknown range": (saved(three(0, 100, 255, np.float32), "TIFF"), "from 0 to 255"),
    "negative floats": (saved(gray(1, -1, np.float32), "TIFF"), "from -1 to 1"),
    "no number": (saved(gray(np.nan, 0, np.float32), "TIFF"), "not finite"),
    "nothing white": (saved(gray(100, 50), "PNG"), "brightest pixel is 100 of 255"),
    "nothing black": (saved(gray(255, 180), "PNG"), "darkest pixel is 180 of 255"),
    "several colors": (saved(Image.fromarray(PICTURE), "PNG"), "several colors"),
    "palette of classes": (saved(three(0, 1, 2).convert("P"), "PNG"), "2 of 255"),
    "black strokes": (saved(painted(BLACK, WHITE), "PNG"), "transparent in places"),
    "black and white, and transparent": (
        saved(Image.merge("LA", [gray(255), three(255, 0, 255)]), "PNG"),
        "transparent in places",
    ),
    "another image with a hole": (
        saved(Image.fromarray(np.dstack([PICTURE[::-1], where(0, 255)])), "PNG"),
        "transparent in places",
    ),
    "nothing opaque": (
        saved(Image.fromarray(where((255, 255, 255, 90), (0, 0, 0, 0))), "PNG"),
        "transparent everywhere",
    ),
    "all transparent": (
        saved(Image.new("RGBA", (16, 12), (255, 255, 255, 0)), "PNG"),
        "transparent everywhere",
    ),
    "no image": (b"text", "does not decode"),
}


@pytest.mark.parametrize("content, reason", REFUSED.values(), ids=REFUSED)
def test_levels_refuse_by_name_what_could_mean_two_things(content, reason):
    """The error is one line with the file and the reason."""
    with pytest.raises(UserError, match=reason) as error:
        mask_file.levels(content, "mask.png", PICTURE)
    assert str(error.value).startswith("mask.png ") and "\n" not in str(error.value)


def test_levels_say_that_a_dark_level_is_taken_for_white(caplog):
    """A mask of 0 and 1 looks black to its author, and the warning has both values."""
    with caplog.at_level(logging.WARNING):
        mask_file.levels(saved(gray(255), "PNG"), "mask.png", PICTURE)
        assert not caplog.records
        mask_file.levels(saved(gray(1), "PNG"), "mask.png", PICTURE)
    assert "mask.png has the values 0 and 1 of 255: taken for black and white" in caplog.text


def test_levels_say_that_only_the_first_frame_counts(caplog):
    """A layer or page that is left out is an edit that the user asked for and does not get."""
    pages = io.BytesIO()
    Image.new("L", (16, 12), 255).save(
        pages, "TIFF", save_all=True, append_images=[Image.new("L", (16, 12))]
    )
    with caplog.at_level(logging.WARNING):
        mask_file.levels(pages.getvalue(), "mask.tiff", PICTURE)
    assert "mask.tiff holds several frames or pages; the first is used" in caplog.text


@pytest.mark.parametrize(("value", "share"), [(0, 0), (255, 1)])
def test_levels_of_a_mask_of_one_level_are_all_or_nothing(value, share):
    """A mask that is black everywhere replaces no pixel and one that is white everywhere replaces
    all, although the two have no contrast that tells the levels apart."""
    whiteness = mask_file.levels(saved(Image.new("L", (16, 12), value), "PNG"), "x", PICTURE)
    assert (whiteness > 127).mean() == share


def test_levels_turn_a_mask_upright():
    """A mask with an orientation in its EXIF data marks the region as it is seen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(Image.fromarray(np.rot90(where(255))), "PNG", exif=exif)
    np.testing.assert_array_equal(mask_file.levels(content, "x", PICTURE) > 127, REGION)
