"""Image and mask files mean the same to every command: one decoder stands behind all of them."""

import numpy as np
import pytest
from PIL import Image

from helpers import small
from helpers.image_bytes import png
from var_jax.cli.images import read_image, read_mask
from var_jax.config.train import DataConfig
from var_jax.data import sources
from var_jax.demo import uploads
from var_jax.evaluate.image_sets import open_images

SHAPE = small.TOKENIZER.image_shape  # (6, 8, 1)


@pytest.fixture
def plain() -> np.ndarray:
    """What a viewer shows of every file below: a gray ramp, white at its left."""
    pixels = np.random.default_rng(0).integers(0, 200, SHAPE[:2], np.uint8)
    pixels[:, :3] = 255
    return pixels


def save_on_its_side(pixels: np.ndarray, path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(path, exif=exif)


def save_transparent(pixels: np.ndarray, path):
    hidden = pixels.copy()
    hidden[:, :3] = 77
    alpha = np.where(pixels == 255, 0, 255).astype(np.uint8)
    Image.merge("LA", [Image.fromarray(hidden), Image.fromarray(alpha)]).save(path)


def save_deep(pixels: np.ndarray, path):
    Image.fromarray(pixels.astype(np.uint16) * 257).save(path)


@pytest.mark.parametrize("save", [save_on_its_side, save_transparent, save_deep])
def test_readers_give_what_a_viewer_shows(save, plain, tmp_path):
    """`edit` and `reconstruct`, the demo, `evaluate` and training agree on a file's pixels."""
    folder = tmp_path / "photos" / "cat"
    folder.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        save(plain, folder / name)
    file = folder / "a.png"
    command = np.rint((read_image(str(file), small.TOKENIZER) + 1) * 127.5)
    (batch,) = open_images(str(folder)).read(2)
    split = sources.open_split(
        DataConfig(
            "image_folder", source_dir=str(tmp_path / "photos"), data_dir=str(tmp_path / "tfds")
        ),
        "train",
    )
    for pixels in (
        command,
        uploads.read_upload(file, small.TOKENIZER),
        batch.images[0],
        split[0]["image"],
    ):
        np.testing.assert_array_equal(pixels[..., 0], plain)


def test_edit_lays_a_mask_on_the_upright_image(plain, tmp_path):
    """A mask drawn over what a viewer shows of a photo stored on its side covers the same part."""
    large = np.kron(plain, np.ones((4, 4), np.uint8))
    save_on_its_side(large, tmp_path / "phone.png")
    top = np.zeros_like(large)
    top[:12] = 255
    Image.fromarray(top).save(tmp_path / "top.png")
    mask = read_mask(
        str(tmp_path / "top.png"), str(tmp_path / "phone.png"), small.TOKENIZER, "stretch"
    )
    np.testing.assert_array_equal(mask, np.arange(6)[:, None].repeat(8, 1) < 3)


def test_read_image_says_what_a_file_hides(tmp_path, caplog):
    """Frames beyond the first, and 16 bits that hold fewer, are named, as nothing else shows
    them."""
    frames = [Image.new("L", (8, 6), value) for value in (10, 200)]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((6, 8), 4095, np.uint16)).save(tmp_path / "twelve.png")
    (tmp_path / "colors.png").write_bytes(png(np.full((6, 8, 3), 4095, np.uint16), 16, 2))
    for name, line in (
        ("two.gif", "several frames"),
        ("twelve.png", "15 of 255"),
        ("colors.png", "15 of 255"),
    ):
        caplog.clear()
        read_image(str(tmp_path / name), small.TOKENIZER)
        assert name in caplog.text and line in caplog.text
