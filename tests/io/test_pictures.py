"""Grids, strips, titles and files of pictures."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from var_jax.errors import UserError
from var_jax.io.pictures import grid, image, save_gif, save_png, strip, title, to_uint8

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def flat(*colors) -> np.ndarray:
    """32 x 32 images of one color each."""
    return np.stack([np.full((32, 32, 3), color, np.uint8) for color in colors])


def box(picture: Image.Image, color) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels of that color, which must fill the box."""
    result = np.all(np.asarray(picture) == color, axis=-1)
    y, x = np.nonzero(result)
    left, top, right, bottom = x.min(), y.min(), x.max() + 1, y.max() + 1
    assert result[top:bottom, left:right].all()
    return left, top, right, bottom


def test_grid_lays_out_row_by_row_and_magnifies():
    """Boxes of three colors lie where a row of two puts them, each 96 pixels wide."""
    picture = grid(flat(RED, GREEN, BLUE), columns=2)
    red, green, blue = (box(picture, c) for c in (RED, GREEN, BLUE))
    assert red[2] - red[0] == red[3] - red[1] == 96
    assert green[1] == red[1] and green[0] > red[2]
    assert blue[0] == red[0] and blue[1] > red[3]


def test_grid_has_titles_above_their_images():
    """Dark pixels lie above each image, and without titles nowhere."""
    images = flat(RED, GREEN)
    picture = grid(images, columns=2, titles=["0", "cat"])
    ink = np.all(np.asarray(picture) < 100, axis=-1)
    for color in (RED, GREEN):
        left, top, right, _ = box(picture, color)
        assert ink[:top, left:right].any()
    assert not np.all(np.asarray(grid(images, columns=2)) < 100, axis=-1).any()


def test_grid_keeps_a_long_title_over_its_image():
    """No part of a long title reaches the next column."""
    picture = grid(flat(RED, GREEN), columns=2, titles=["a very long title of a class, and on", ""])
    left, top, _, _ = box(picture, GREEN)
    assert (np.asarray(picture)[:top, left:] == 255).all()


def test_grid_magnifies_by_repeating_pixels():
    """With a scale of 3 each pixel becomes 3 x 3 equal pixels, and a gray image gets three equal
    channels."""
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), np.uint8)
    picture = np.asarray(grid(image, columns=1, scale=3))
    np.testing.assert_array_equal(
        picture, np.repeat(np.repeat(np.repeat(image[0], 3, 0), 3, 1), 3, 2)
    )


def test_grid_keeps_the_size_of_large_images():
    """An image of 256 x 200 pixels, which is large enough to look at, is not enlarged."""
    assert grid(np.zeros((1, 256, 200, 3)), columns=1).size == (200, 256)


def test_to_uint8_rounds_and_clips_floats():
    """Values from 0 to 1 become 0 to 255, rounded, and values beyond are clipped. Arrays of
    bfloat16 are accepted as well."""
    np.testing.assert_array_equal(
        to_uint8(np.array([-1.0, 0, 0.5, 1, 2]).reshape(1, 1, 5, 1)).ravel(), [0, 0, 128, 255, 255]
    )
    assert to_uint8(jnp.ones((1, 2, 2, 3), jnp.bfloat16)).dtype == np.uint8
    assert grid(jnp.ones((2, 4, 4, 1)), columns=5).size == (2 * 96 + 4, 96)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_image_keeps_channels_and_pixels(channels, mode):
    """An edited gray image is a gray file again, so that it goes through other tools, and through
    the next edit, as the original does."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    picture = image(pixels)
    assert picture.mode == mode
    np.testing.assert_array_equal(np.asarray(picture).reshape(pixels.shape), pixels)


def test_strip_has_titles_above():
    """Titles stand over the columns, and none stands below them."""
    picture = strip([flat(RED, GREEN), flat(BLUE)], ["first", "second"])
    red, green, blue = (box(picture, c) for c in (RED, GREEN, BLUE))
    assert blue[0] == red[0] and blue[1] == red[3] + 4 and green[1] == red[1]
    ink = np.all(np.asarray(picture) < 100, axis=-1)
    assert ink[: red[1], red[0] : red[2]].any() and ink[: red[1], green[0] : green[2]].any()
    assert not ink[red[3] :].any()


def test_grid_takes_titles_of_its_columns():
    """The second row has no empty line for titles, and a wrong number of them is named."""
    picture = grid(flat(RED, GREEN, BLUE), columns=2, titles=["0", "1"])
    assert (
        box(picture, BLUE)[1] == box(picture, GREEN)[3] + 4
    )  # no empty line for titles above the second row
    with pytest.raises(ValueError, match="3 titles for 2 images"):
        grid(flat(RED, GREEN), columns=2, titles=["0", "1", "2"])


def test_save_png_writes_the_picture_and_its_folder(tmp_path):
    """The file is a PNG with the picture's pixels; its folder is created, and no temporary file
    stays there."""
    picture = grid(flat(RED), columns=1)
    save_png(tmp_path / "new" / "x.png", picture)
    read = Image.open(io.BytesIO((tmp_path / "new" / "x.png").read_bytes()))
    assert read.format == "PNG"
    np.testing.assert_array_equal(np.asarray(read), np.asarray(picture))
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["x.png"]


def test_save_png_has_a_temporary_file_per_writer(tmp_path):
    """A temporary name that is taken does no harm."""
    (tmp_path / "x.png.tmp").mkdir()  # as that of another process, whatever it is
    save_png(tmp_path / "x.png", grid(flat(RED), columns=1))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["x.png", "x.png.tmp"]


def test_save_gif_repeats_and_rests_on_its_last_frame(tmp_path):
    """Frames and durations are read back, the last one four times as long; a path that is a folder
    is named."""
    frames = [grid(flat(color), columns=1) for color in (RED, GREEN, BLUE)]
    save_gif(tmp_path / "new" / "x.gif", frames, milliseconds=100)
    with Image.open(tmp_path / "new" / "x.gif") as opened:
        assert opened.format == "GIF" and opened.info["loop"] == 0 and opened.n_frames == 3
        times = []
        for i, expected in enumerate(frames):
            opened.seek(i)
            times.append(opened.info["duration"])
            np.testing.assert_array_equal(np.asarray(opened.convert("RGB")), np.asarray(expected))
    assert times == [100, 100, 400]
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["x.gif"]
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(UserError, match="cannot write the picture"):
        save_gif(tmp_path / "folder.gif", frames)


def test_save_png_names_an_unwritable_path(tmp_path):
    """A path below a file and a path that is a folder are refused in one line with the picture's
    path, and nothing is left behind."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the picture .*x\.png") as caught:
        save_png(tmp_path / "file" / "x.png", grid(flat(RED), columns=1))
    assert "\n" not in str(caught.value)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match="cannot write the picture"):
        save_png(tmp_path / "folder.png", grid(flat(RED), columns=1))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file", "folder.png"]


def test_row_titles_stand_left_of_their_images():
    """A strip tells whose images it shows, wherever its columns begin; without titles there is no
    room for them."""
    rows = [flat(RED, GREEN), flat(BLUE, (255, 255, 0))]
    picture = strip(
        rows,
        column_titles=["1x1", "2x2"],
        row_titles=["circle", "a long name of a class, and on and on"],
    )
    ink = np.all(np.asarray(picture) < 100, axis=-1)
    for color in (RED, BLUE):
        left, top, _, bottom = box(picture, color)
        assert ink[top:bottom, :left].any() and left < picture.width - 96
    assert ink[: box(picture, RED)[1], box(picture, RED)[0] : box(picture, RED)[2]].any()
    without = strip(rows, column_titles=["1x1", "2x2"])
    assert picture.height == without.height and picture.width > without.width
    assert (
        box(picture, GREEN)[2] - picture.width == box(without, GREEN)[2] - without.width
    )  # the same on the right


def test_titles_are_drawn_in_letters_that_there_are():
    """Pillow's own font has ASCII alone and draws all else as the same box."""
    assert (
        title("café, Ωmega, кот", "3") == "café, Ωmega, кот"
        and title("T-shirt/top", "3") == "T-shirt/top"
    )
    assert title("\U000f0000", "3") == "3"
    pictures = [np.asarray(grid(flat(RED), columns=1, titles=[text])) for text in ("é", "ß", "e")]
    assert len({picture.tobytes() for picture in pictures}) == 3
    assert (
        grid(flat(RED), columns=1, titles=["two\nlines"]).size
        == grid(flat(RED), columns=1, titles=["a"]).size
    )
