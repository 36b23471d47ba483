"""What pixels a file becomes, over formats and modes."""

import numpy as np
import pytest
from PIL import Image

from helpers.image_bytes import png, saved, tiff
from var_jax.data import image_file
from var_jax.errors import UserError

HIDDEN = (0, 255, 0)  # under alpha 0
COLOR, GRAY = (200, 60, 30), 90
LEFT, RIGHT = np.s_[:, :4], np.s_[:, 4:]  # transparent, opaque


def half_transparent(mode: str) -> Image.Image:
    """6 x 8: the left half transparent over a color that no viewer shows, the right half opaque."""
    alpha = np.zeros((6, 8), np.uint8)
    alpha[RIGHT] = 255
    color = np.full((6, 8, 3), HIDDEN, np.uint8)
    color[RIGHT] = COLOR
    if mode == "LA":
        return Image.merge(
            "LA", [Image.fromarray(np.full((6, 8), GRAY, np.uint8)), Image.fromarray(alpha)]
        )
    return Image.fromarray(np.dstack([color, alpha])).convert(mode)


def palette() -> Image.Image:
    """6 x 8 of two palette entries: HIDDEN at the left, COLOR at the right."""
    index = np.zeros((6, 8), np.uint8)
    index[RIGHT] = 1
    image = Image.fromarray(index)
    image.putpalette([*HIDDEN, *COLOR])
    return image


def levels(left: int, right: int) -> np.ndarray:
    values = np.full((6, 8, 1), left, np.int64)
    values[RIGHT] = right
    return values


def colors(left: tuple[int, ...], right: tuple[int, ...]) -> np.ndarray:
    values = np.empty((6, 8, len(left)), np.int64)
    values[LEFT], values[RIGHT] = left, right
    return values


TRANSPARENT = {
    "RGBA in PNG": (saved(half_transparent("RGBA"), "PNG"), COLOR),
    "RGBA in WebP": (saved(half_transparent("RGBA"), "WEBP", lossless=True, exact=True), COLOR),
    "RGBA in TIFF": (saved(half_transparent("RGBA"), "TIFF"), COLOR),
    "RGBA in TGA": (saved(half_transparent("RGBA"), "TGA"), COLOR),
    "RGBA in JPEG 2000": (saved(half_transparent("RGBA"), "JPEG2000"), COLOR),
    "LA in PNG": (saved(half_transparent("LA"), "PNG"), (GRAY,)),
    "RGBA in ICO": (saved(half_transparent("RGBA"), "ICO", sizes=[(8, 6)]), COLOR),
    "RGBA in DDS": (saved(half_transparent("RGBA"), "DDS"), COLOR),
    "PA in TIFF": (saved(half_transparent("PA"), "TIFF"), COLOR),
    "LA in TIFF": (saved(half_transparent("LA"), "TIFF"), (GRAY,)),
    "P with tRNS in PNG": (saved(palette(), "PNG", transparency=0), COLOR),
    "P with tRNS of bytes in PNG": (saved(palette(), "PNG", transparency=b"\x00\xff"), COLOR),
    "P in GIF": (saved(palette(), "GIF", transparency=0), COLOR),
    "1 with tRNS": (png(levels(1, 0), 1, 0, (1,)), (0,)),
    "2-bit gray with tRNS": (png(levels(2, 1), 2, 0, (2,)), (85,)),
    "4-bit gray with tRNS": (png(levels(9, 4), 4, 0, (9,)), (68,)),
    "L with tRNS": (png(levels(7, 90), 8, 0, (7,)), (90,)),
    "I;16 with tRNS": (png(levels(7, 90 * 257), 16, 0, (7,)), (90,)),
    "RGB with tRNS": (png(colors(HIDDEN, COLOR), 8, 2, HIDDEN), COLOR),
    "LA of 16 bits": (png(colors((7, 0), (90 * 257, 65535)), 16, 4), (90,)),
    "RGBA of 16 bits": (png(257 * colors((*HIDDEN, 0), (*COLOR, 255)), 16, 6), COLOR),
    "premultiplied RGBA in TIFF": (
        tiff(
            colors((0, 0, 0, 0), (*COLOR, 255)).astype(np.uint8).tobytes(), 6, 8, 8, 2, 4, extra=1
        ),
        COLOR,
    ),
}


@pytest.mark.parametrize("content, color", TRANSPARENT.values(), ids=TRANSPARENT)
def test_decode_composites_transparency_on_white(content, color):
    """Holds for every mode that has transparency: white where a viewer shows the page, and the
    opaque part unchanged; a decoder that drops alpha gives the hidden color instead."""
    pixels = image_file.decode(content, "x")
    assert pixels.shape == (6, 8, len(color)) and pixels.dtype == np.uint8
    assert (pixels[LEFT] == 255).all()
    assert (pixels[RIGHT] == color).all()


def test_decode_blends_half_transparent_pixels_with_white():
    """A fifth of the color and four fifths of white are worked out by hand."""
    image = Image.new("RGBA", (1, 1), (100, 0, 255, 51))  # a fifth
    assert image_file.decode(saved(image, "PNG"), "x").tolist() == [[[224, 204, 255]]]


def gray_ramp(dtype=np.uint8, top: int = 255) -> np.ndarray:
    return np.round(np.linspace(0, top, 48)).reshape(6, 8).astype(dtype)


def packed12(values: np.ndarray) -> bytes:
    """Two 12-bit samples in three bytes, the most significant bits first."""
    bits = (values.reshape(-1, 1) >> np.arange(11, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


RAMPS = {
    "L in PNG": saved(Image.fromarray(gray_ramp()), "PNG"),
    "L in TIFF": saved(Image.fromarray(gray_ramp()), "TIFF"),
    "L in PGM": saved(Image.fromarray(gray_ramp()), "PPM"),
    "I;16 in PNG": png(257 * gray_ramp().astype(np.int64)[..., None], 16, 0),
    "I;16 in TIFF": saved(Image.fromarray(gray_ramp().astype(np.uint16) * 257), "TIFF"),
    "I;16B in TIFF": saved(
        Image.frombytes("I;16B", (8, 6), (gray_ramp().astype(">u2") * 257).tobytes()), "TIFF"
    ),
    "16 bits in PGM": b"P5 8 6 65535\n" + (gray_ramp().astype(">u2") * 257).tobytes(),
    "10 bits in PGM": b"P5 8 6 1023\n" + gray_ramp(">u2", 1023).tobytes(),
    "12 bits in TIFF": tiff(packed12(gray_ramp(np.int64, 4095)), 6, 8, 12, 1),
    "white is zero in TIFF": tiff((255 - gray_ramp()).tobytes(), 6, 8, 8, 0),
    "16 bits, white is zero, in TIFF": tiff(
        (65535 - gray_ramp().astype("<u2") * 257).tobytes(), 6, 8, 16, 0
    ),
    "P in PNG": saved(Image.fromarray(gray_ramp()).convert("P"), "PNG"),
    "RGB of 16 bits": png(257 * np.repeat(gray_ramp()[..., None], 3, -1).astype(np.int64), 16, 2),
    "CMYK in TIFF": saved(Image.fromarray(gray_ramp()).convert("CMYK"), "TIFF"),
    "CMYK in JPEG": saved(Image.fromarray(gray_ramp()).convert("CMYK"), "JPEG", quality=100),
    "YCbCr in JPEG": saved(Image.fromarray(gray_ramp()).convert("RGB"), "JPEG", quality=100),
    "YCbCr in TIFF": saved(
        Image.fromarray(gray_ramp()).convert("RGB"), "TIFF", compression="jpeg", quality=100
    ),
    "AVIF": saved(Image.fromarray(gray_ramp()).convert("RGB"), "AVIF", quality=100),
    "JPEG 2000": saved(Image.fromarray(gray_ramp()), "JPEG2000"),
    "16 bits in JPEG 2000": saved(Image.fromarray(gray_ramp().astype(np.uint16) * 257), "JPEG2000"),
}


@pytest.mark.parametrize("content", RAMPS.values(), ids=RAMPS)
def test_decode_scales_every_depth_to_the_same_ramp(content):
    """Holds that black is 0, white 255, and between them nothing is clipped, inverted or cut,
    whatever the file's samples are."""
    pixels = image_file.decode(content, "x")
    assert pixels.shape[:2] == (6, 8) and pixels.shape[2] in (1, 3)
    assert np.abs(pixels.astype(int) - gray_ramp()[..., None]).max() <= 2


def test_decode_reads_lab_as_its_color():
    """L* = 100 is white and the a* axis leads from green to red: the sign of a* and b* is kept."""
    white = Image.merge("LAB", [Image.new("L", (2, 2), v) for v in (255, 128, 128)])
    red = Image.merge("LAB", [Image.new("L", (2, 2), v) for v in (136, 208, 195)])  # sRGB's red
    assert image_file.decode(saved(white, "TIFF"), "x").min() >= 250
    pixels = image_file.decode(saved(red, "TIFF"), "x")
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 12


REFUSED = {
    "float in TIFF": (saved(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
    "float in PFM": (b"Pf\n2 2\n-1.0\n" + np.ones(4, "<f4").tobytes(), "floating-point"),
    "32 bits in TIFF": (saved(Image.new("I", (4, 4), 200), "TIFF"), "32-bit integer"),
    "signed 16 bits in TIFF": (tiff(b"\xff\xff" * 4, 2, 2, 16, 1, sample_format=2), "signed"),
    "signed 8 bits in TIFF": (tiff(b"\xff" * 4, 2, 2, 8, 1, sample_format=2), "signed"),
    "RGB of 16 bits with tRNS": (png(colors((1, 2, 3), (300, 2, 3)), 16, 2, (1, 2, 3)), "tRNS"),
    "EPS": (saved(Image.new("RGB", (4, 4)), "EPS"), "EPS"),
    "YCbCr as it is in TIFF": (saved(Image.new("YCbCr", (4, 4)), "TIFF"), "truncated"),
    "more pixels than Pillow's limit": (b"P5 65536 65536 255\n", "limit of 178956970 pixels"),
    "text": (b"no image", "not an image"),
    "nothing": (b"", "empty file"),
    "Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "git lfs pull",
    ),
    "HTML page": (b"<!DOCTYPE html><html></html>", "HTML page"),
    "SVG": (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(64), "HEIC"),
    "gray and alpha of 16 bits in TIFF": (
        tiff(bytes(4 * 4), 2, 2, 16, 1, 2, extra=2),
        "a TIFF whose samples",
    ),
    "doubles in TIFF": (tiff(bytes(4 * 8), 2, 2, 64, 1, sample_format=3), "a TIFF whose samples"),
}


@pytest.mark.parametrize("content, reason", REFUSED.values(), ids=REFUSED)
def test_decode_refuses_by_name_what_has_no_certain_meaning(content, reason):
    """The error is one line with the file and the reason."""
    with pytest.raises(UserError, match=reason) as error:
        image_file.decode(content, "cat.tif")
    assert str(error.value).startswith("cat.tif does not decode: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "TGA"])
def test_decode_refuses_a_file_that_is_cut_short(kind):
    """Half of a file of each format is an error and no image that is half gray."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = saved(Image.fromarray(noise), kind)
    with pytest.raises(UserError, match="cat.jpg does not decode: "):
        image_file.decode(content[: len(content) // 2], "cat.jpg")


def corners(orientation: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture whose upper left is dark, and how a file of that EXIF orientation stores it."""
    shown = np.full((16, 24) if orientation < 5 else (24, 16), 255, np.uint8)
    shown[:8, :8] = 0
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, -1),
    }
    return shown, np.ascontiguousarray(undo[orientation](shown))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_turns_images_upright(kind, orientation):
    """Holds for each of the eight orientations of EXIF in every format that carries them."""
    shown, stored = corners(orientation)
    exif = Image.Exif()
    exif[image_file.ORIENTATION] = orientation
    pixels = image_file.decode(saved(Image.fromarray(stored), kind, exif=exif), "x")
    assert pixels.shape[:2] == shown.shape
    assert np.abs(pixels[..., 0].astype(int) - shown).mean() < 4


def test_decode_turns_sixteen_bits_and_alpha_too():
    """Images of both kinds that are stored on their side come out upright."""
    exif = Image.Exif()
    exif[image_file.ORIENTATION] = 6
    deep = Image.fromarray(np.array([[0, 65535, 0]], np.uint16))
    assert image_file.decode(saved(deep, "PNG", exif=exif), "x").tolist() == [[[0]], [[255]], [[0]]]
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    clear.putpixel((0, 0), (9, 9, 9, 0))
    pixels = image_file.decode(saved(clear, "PNG", exif=exif), "x")
    assert pixels[..., 0].tolist() == [[255], [0]]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "damage", [b"Exif\0\0MM", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 40]
)
def test_decode_reads_images_whose_exif_is_damaged(damage):
    """The pixels are those of the same file without EXIF, neither turned nor lost."""
    image = Image.fromarray(np.arange(4 * 2 * 3, dtype=np.uint8).reshape(2, 4, 3) * 10)
    expected = image_file.decode(saved(image, "JPEG"), "x")
    assert expected.shape == (2, 4, 3)
    np.testing.assert_array_equal(
        image_file.decode(saved(image, "JPEG", exif=damage), "x"), expected
    )


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_decode_ignores_orientations_that_do_not_exist(orientation):
    """The image is neither turned nor mirrored: its pixels are those of the file without it."""
    exif = Image.Exif()
    exif[image_file.ORIENTATION] = orientation
    image = Image.fromarray(np.arange(0, 80, 10, dtype=np.uint8).reshape(2, 4))
    content = saved(image, "PNG", exif=exif)
    np.testing.assert_array_equal(image_file.decode(content, "x")[..., 0], np.asarray(image))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_read_takes_the_first_of_several_frames_and_says_so(kind):
    """The first frame is dark and the second bright, and a file of one frame gives no remark."""
    frames = [Image.new("L", (4, 4), value).convert("RGB") for value in (10, 200)]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    samples = image_file.read(content, "x")
    assert image_file.pixels_of(samples, "x").max() <= 12
    assert samples.several and "several frames" in image_file.remarks(samples)[0]
    alone = image_file.read(saved(frames[0], kind, **options), "x")
    assert not alone.several and image_file.remarks(alone) == []


def test_remarks_say_how_dark_sixteen_bits_are():
    """12 bits stored as 16 give at most 15 of 255, which the remark says; a full range gives
    none."""
    twelve = Image.fromarray(gray_ramp(np.uint16, 4095))
    (line,) = image_file.remarks(image_file.read(saved(twelve, "PNG"), "x"))
    assert "4095 of 65535" in line and "15 of 255" in line
    colors = png(np.full((4, 4, 3), 4095, np.uint16), 16, 2)
    (line,) = image_file.remarks(image_file.read(colors, "x"))
    assert "16 bits and no value above 15 of 255" in line
    full = Image.fromarray(gray_ramp(np.uint16, 65535))
    assert image_file.remarks(image_file.read(saved(full, "PNG"), "x")) == []
