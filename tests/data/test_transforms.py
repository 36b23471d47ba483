"""From image files to training pixels: decoding, resizing, crops and channels."""

import numpy as np
import pytest
from PIL import Image

from helpers.image_bytes import saved
from var_jax.data import transforms
from var_jax.errors import UserError


def gradient(height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): red grows along x, green along y."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x // (width - 1), 255 * y // (height - 1), 0 * x], -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("mode", "kind", "channels"),
    [
        ("L", "PNG", 1),
        ("1", "PNG", 1),
        ("LA", "PNG", 1),
        ("I;16", "PNG", 1),
        ("RGB", "PNG", 3),
        ("RGBA", "PNG", 3),
        ("P", "PNG", 3),
        ("P", "GIF", 3),
        ("CMYK", "JPEG", 3),
        ("L", "JPEG", 1),
        ("RGB", "WEBP", 3),
        ("RGB", "BMP", 3),
        ("RGB", "TIFF", 3),
        ("RGB", "PPM", 3),
    ],
)
def test_decode_gives_bytes_of_one_or_three_channels(mode, kind, channels):
    """Pictures of every mode and file format decode to bytes of one or three channels. A white
    picture stays white, which shows that palettes are looked up and 16-bit levels are scaled."""
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 7), 0xFFFF, np.uint16))
    else:
        image = Image.new("RGB", (7, 5), "white").convert(mode)
    pixels = transforms.decode(saved(image, kind), "x")
    assert pixels.dtype == np.uint8 and pixels.shape == (5, 7, channels)
    assert pixels.min() >= 250  # white stays white: a palette is looked up, 16 bits are scaled


def test_decode_names_damaged_and_other_files():
    """The error is one line with the file's name and without Pillow's internals."""
    content = saved(Image.fromarray(gradient(64, 64)), "JPEG")
    for broken in (
        content[: len(content) // 2],
        b"no image",
        b"",
        saved(Image.new("F", (4, 4)), "TIFF"),
    ):
        with pytest.raises(UserError, match="cat.jpg does not decode") as error:
            transforms.decode(broken, "cat.jpg")
        assert "\n" not in str(error.value) and "BytesIO" not in str(error.value)


@pytest.mark.parametrize(
    ("size", "shape", "expected"),
    [
        ((300, 400), (64, 64, 3), (72, 96)),  # the short side to 1.125 times the size
        ((400, 300), (64, 64, 3), (96, 72)),
        ((10, 20), (64, 64, 3), (72, 144)),  # upwards too
        ((300, 300), (64, 128, 3), (144, 144)),  # the side that is relatively the shorter decides
        ((100, 1000), (64, 128, 3), (72, 720)),
        ((60, 3), (64, 64, 1), (1440, 72)),  # 20 times as long: the longest that is whole
    ],
)
def test_crop_resizes_the_short_side(size, shape, expected):
    """The short side becomes 1.125 times the training size, but for images so long that a whole
    number would not fit."""
    fitted = transforms.fit(gradient(*size), shape, "crop")
    assert fitted.shape == (*expected, shape[2]) and fitted.dtype == np.uint8


def test_crop_stays_inside_and_reaches_every_place_and_never_flips():
    """600 windows are each found in the image, unflipped, and cover every offset; without a
    generator the window is the central one."""
    pixels = transforms.fit(gradient(300, 400), (64, 64, 3), "crop")
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(600):
        window = transforms.crop(pixels, (64, 64, 3), rng)
        assert window.shape == (64, 64, 3)
        red, green = window[32, :, 0].astype(int), window[:, 32, 1].astype(int)
        assert red[-1] > red[0] and green[-1] > green[0]
        places = [
            (t, left)
            for t in range(9)
            for left in range(33)
            if np.array_equal(pixels[t : t + 64, left : left + 64], window)
        ]
        seen.update(places)
        assert places
    assert {t for t, _ in seen} == set(range(9)) and {left for _, left in seen} == set(range(33))
    np.testing.assert_array_equal(transforms.crop(pixels, (64, 64, 3)), pixels[4:68, 16:80])


def test_flip_mirrors_half_of_the_images():
    """Each image comes out as it is or mirrored from left to right, about as often; nothing else
    changes."""
    pixels, rng = gradient(20, 30), np.random.default_rng(0)
    out = [transforms.flip(pixels, rng) for _ in range(400)]
    mirrored = [np.array_equal(one, pixels[:, ::-1]) for one in out]
    assert all(m or np.array_equal(one, pixels) for m, one in zip(mirrored, out, strict=True))
    assert 160 < sum(mirrored) < 240


def test_fit_stretch_keeps_all_of_the_image():
    """The older name of `stretch`, which is in workdirs, gives the same pixels."""
    fitted = transforms.fit(gradient(30, 90), (16, 24, 3), "stretch")
    older = transforms.fit(gradient(30, 90), (16, 24, 3), "whole")
    np.testing.assert_array_equal(fitted, older)
    assert fitted.shape == (16, 24, 3)
    assert fitted[0, 0, 0] < 10 and fitted[-1, -1, 0] > 245 and fitted[-1, 0, 1] > 240
    same = gradient(16, 24)
    np.testing.assert_array_equal(transforms.fit(same, (16, 24, 3), "stretch"), same)


def test_pad_centers_on_black_without_scaling():
    """The image stands in the middle with all its pixels, and one larger than the frame is
    named."""
    pixels = gradient(28, 28) // 2 + 100
    fitted = transforms.fit(pixels, (32, 35, 3), "pad")
    assert fitted.shape == (32, 35, 3)
    np.testing.assert_array_equal(fitted[2:30, 3:31], pixels)
    assert int(fitted.sum()) == int(pixels.sum())
    with pytest.raises(UserError, match="seven has 28 x 28 pixels"):
        transforms.fit(pixels, (27, 32, 3), "pad", "seven")


def test_fit_gives_the_channels_of_the_model():
    """Red becomes its ITU-R 601 luma, and gray becomes three equal channels."""
    color = np.zeros((4, 4, 3), np.uint8)
    color[..., 0] = 255
    assert (
        transforms.fit(color, (4, 4, 1), "stretch").tolist() == [[[76]] * 4] * 4
    )  # ITU-R 601 luma of red
    assert (
        transforms.fit(np.full((4, 4, 1), 9, np.uint8), (4, 4, 3), "stretch").tolist()
        == [[[9] * 3] * 4] * 4
    )


def test_check_names_wrong_settings():
    """A misspelled way of resizing is refused with the closest known one, and two channels are
    refused with the numbers that are possible."""
    with pytest.raises(UserError, match="did you mean 'crop'"):
        transforms.check((8, 8, 3), "corp")
    with pytest.raises(UserError, match="1 or 3 channels"):
        transforms.check((8, 8, 2), "crop")


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((2, 20_000), (64, 64, 3)),
        ((20_001, 2), (64, 64, 3)),
        ((1, 50_000), (32, 96, 1)),
        ((60_000, 1), (96, 32, 1)),
    ],
)
@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_fit_of_a_thin_image_is_bounded(size, shape, resize, monkeypatch):
    """Neither the result nor an intermediate image has more pixels than the longest image: a line
    of pixels that is enlarged as a whole would take gigabytes."""
    made = []
    original = Image.Image.resize

    def counted(image, new_size, *args, **kwargs):
        # Pillow makes all rows as wide as the result first.
        made.append(max(new_size[0] * image.height, new_size[0] * new_size[1]))
        return original(image, new_size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", counted)
    pixels = np.full((*size, 3), 7, np.uint8)
    fitted = transforms.fit(pixels, shape, resize)
    assert (fitted == 7).all() and fitted.shape[0] >= shape[0] and fitted.shape[1] >= shape[1]
    assert max(made) <= max(2 * transforms.MAX_ASPECT * 108 * 108, pixels.size)


@pytest.mark.parametrize("size", [(8, 200), (200, 8), (9, 301)])
def test_at_size_of_a_thin_image_is_its_middle(size):
    """Cutting first gives the pixels of the middle that resizing the whole image gives."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    height, width = transforms._covering(*size, 16, 16)
    full = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
    middle = transforms.crop(full, (16, 16, 3))
    np.testing.assert_array_equal(transforms.at_size(pixels, (16, 16, 3)), middle)


def test_fit_composites_a_fourth_channel_on_white():
    """Transparent pixels come out white and opaque ones black."""
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    assert transforms.fit(pixels, (4, 4, 1), "stretch")[:, 0, 0].tolist() == [0, 0, 255, 255]
