"""What stands behind the page of `var-jax demo`, without a browser."""

import base64
import io
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from helpers import small
from var_jax.demo import results, session, uploads
from var_jax.demo.session import Choices
from var_jax.errors import UserError
from var_jax.io import pictures
from var_jax.sampling import sampler

MASK = np.zeros((6, 8), bool)
MASK[:4, :4] = True


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 1), dtype=np.uint8)


def png_header(height: int, width: int) -> bytes:
    """A PNG that ends after its header, which says so many pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
    )
    return start + struct.pack(">I", 100) + b"IDAT"


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def test_draw_matches_sample():
    """The steps of the page are those of `sample` with the same settings, and a repetition gives
    the same."""
    model = small.pipeline()
    steps = session.draw(model, Choices(3, seed=5, cfg=2.0))
    expected, full = model.sample([3], seed=5, cfg=2.0, return_steps=True, as_uint8=True)
    np.testing.assert_array_equal(steps, full[0])
    np.testing.assert_array_equal(steps[-1], expected[0])
    np.testing.assert_array_equal(session.draw(model, Choices(3, seed=5, cfg=2.0)), steps)


def test_draw_compiles_nothing_for_a_seed_a_class_or_guidance(image):
    """After the warm-up the number of compiled programs stays the same over all choices, in editing
    as well, and all images differ."""
    model, last = small.pipeline(), Choices(9, seed=2**32 - 1, cfg=4.0)
    before = sampler.generate._cache_size()
    session.warm_up(model, Choices(0))
    compiled = sampler.generate._cache_size()
    assert compiled > before
    sampled = [
        session.draw(model, choices)
        for choices in (
            Choices(0),
            Choices(0, seed=1),
            Choices(1),
            Choices(10),
            Choices(0, cfg=0),
            Choices(0, cfg=3.0),
            last,
        )
    ]
    assert len({one.tobytes() for one in sampled}) == len(sampled)
    for choices in (Choices(1), Choices(10, seed=3), Choices(2, cfg=0.0), last):
        session.redraw(model, image, MASK, choices, session.default_keep_scales(small.TOKENIZER))
    assert sampler.generate._cache_size() == compiled


@pytest.mark.slow
def test_session_without_guidance_has_none():
    """A guidance of 0 runs the guided program and gives the unguided image."""
    unguided = small.pipeline().sample([4], seed=2, cfg=0, as_uint8=True)[0]
    np.testing.assert_allclose(
        session.draw(small.pipeline(), Choices(4, seed=2, cfg=0))[-1].astype(int), unguided, atol=1
    )
    guided = session.draw(small.pipeline(), Choices(4, seed=2, cfg=4.0))[-1]
    assert np.abs(guided.astype(int) - unguided).max() > 1


def test_redraw_keeps_every_other_pixel(image):
    """Unpainted pixels stay as they were; painted ones are those of `edit` and change with the seed
    and the class."""
    model = small.pipeline()
    edited = session.redraw(model, image, MASK, Choices(3, seed=1), 1)
    np.testing.assert_array_equal(edited[~MASK], image[~MASK])
    assert not np.array_equal(edited[MASK], image[MASK])
    expected = model.edit(
        image[None].astype(np.float32) / 127.5 - 1,
        ~MASK,
        [3],
        seed=1,
        keep_scales=1,
        composite=True,
    )
    np.testing.assert_array_equal(edited, pictures.to_uint8(expected)[0])
    np.testing.assert_array_equal(edited, session.redraw(model, image, MASK, Choices(3, seed=1), 1))
    others = [
        session.redraw(model, image, MASK, choices, 1)
        for choices in (Choices(3, seed=2), Choices(4, seed=1))
    ]
    assert all(not np.array_equal(other, edited) for other in others)
    assert session.default_keep_scales(small.TOKENIZER) == 1


def test_redraw_refuses_an_empty_mask_and_choices_out_of_range(image):
    """Each refusal is a sentence for the page."""

    def refused(mask, choices, k=1) -> str:
        with pytest.raises(UserError) as output:
            session.redraw(small.pipeline(), image, mask, choices, k)
        return str(output.value)

    dot = np.zeros((6, 8), bool)
    assert "the painted region is empty, so that nothing would change" in refused(dot, Choices(0))
    dot[0, 0] = True
    assert "less than a token" in refused(
        dot, Choices(0)
    ) and "at least 1/3 of the height" in refused(dot, Choices(0))
    assert "keep_scales is 3" in refused(MASK, Choices(0), 3)
    assert "seed is None" in refused(MASK, Choices(0, seed=None))
    for choices, line in (
        (Choices(11), "label is 11"),
        (Choices(0, seed=-1), "seed is -1"),
        (Choices(0, cfg=-1.0), "cfg is -1.0"),
        (Choices(0, preset="best"), "unknown preset 'best'"),
    ):
        with pytest.raises(UserError, match=re.escape(line)):
            session.draw(small.pipeline(), choices)


def test_read_upload_gives_the_models_size(image, tmp_path):
    """Uploads of every format are the pixels that `edit` reads from the same file."""
    (tmp_path / "same.png").write_bytes(encoded(image[..., 0]))
    np.testing.assert_array_equal(
        uploads.read_upload(tmp_path / "same.png", small.TOKENIZER), image
    )
    from var_jax.cli.images import read_image

    color = np.random.default_rng(1).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM", "TIFF"):
        (tmp_path / "large").write_bytes(encoded(color, kind))
        uploaded = uploads.read_upload(tmp_path / "large", small.TOKENIZER)
        assert uploaded.shape == (6, 8, 1) and uploaded.dtype == np.uint8
        command = read_image(str(tmp_path / "large"), small.TOKENIZER)  # in [-1, 1]
        np.testing.assert_array_equal(uploaded, np.rint((command + 1) * 127.5))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not an image", "not an image that can be read; it must be PNG, JPEG,"),
        (b"", "not an image that can be read"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
            "not an image that can be read",
        ),
        (
            encoded(np.random.default_rng(0).integers(0, 256, (30, 30), dtype=np.uint8))[:300],
            "the upload does not decode",
        ),
        (png_header(30, 30), "the upload does not decode"),
        (png_header(10_000, 9_000), "of 10000 x 9000 pixels; it must be at most 50 million"),
        (png_header(60_000, 60_000), "too many pixels; it must be at most 50 million"),
        (
            encoded(np.zeros((1, 30), np.uint8)),
            "of 1 x 30 pixels; it must be at most 20 times as long",
        ),
    ],
    ids=("text", "empty", "eps", "cut short", "header alone", "many pixels", "bomb", "line"),
)
def test_read_upload_refuses_bad_files(content, message, tmp_path):
    """Files that are no image, damaged, or too large are refused by one line that does not show
    where the server keeps them."""
    (tmp_path / "upload.png").write_bytes(content)
    with pytest.raises(UserError) as output:
        uploads.read_upload(tmp_path / "upload.png", small.TOKENIZER)
    assert (
        message in str(output.value)
        and "\n" not in str(output.value)
        and str(tmp_path) not in str(output.value)
    )


def test_read_upload_refuses_too_many_bytes(tmp_path):
    """An upload above the limit is refused by its number of bytes alone: the file holds no image
    that could be decoded."""
    with (tmp_path / "upload.png").open("wb") as file:
        file.truncate(uploads.MAX_BYTES + 2**19)
    with pytest.raises(UserError, match=r"the upload is of 20\.5 MB; it must be at most 20 MB"):
        uploads.read_upload(tmp_path / "upload.png", small.TOKENIZER)


# A process that serves, of a page that is none.
SERVING = """
import io, sys, types
from unittest import mock

import numpy as np
from PIL import Image, UnidentifiedImageError

from var_jax.demo import page, server, session, uploads

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\\n%%BoundingBox: 0 0 10 10\\n%%EndComments\\n"

def saved(kind):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(buffer, format=kind)
    return buffer.getvalue()

files = {kind: saved(kind) for kind in (*uploads.FORMATS, "ICO", "TGA", "JPEG2000", "PCX")}
files["EPS"] = EPS
for kind, content in files.items():
    assert Image.open(io.BytesIO(content), formats=[kind]).format == kind
sys.modules["gradio"] = types.ModuleType("gradio")
blocks = mock.Mock(**{"launch.return_value": (None, "address", None)})
with mock.patch.object(page, "build", return_value=blocks), mock.patch.object(page, "theme"), \
        server.serving(None, (), "", "127.0.0.1", 1) as address:
    assert address == "address"
    for kind, content in files.items():
        try:
            image = Image.open(io.BytesIO(content))
        except UnidentifiedImageError:
            assert kind not in uploads.FORMATS, kind
        else:
            assert kind in uploads.FORMATS and image.format == kind, kind
            image.load()
    for kind in ("PNG", "GIF"):
        assert saved(kind) == files[kind]
"""


def test_serving_opens_no_other_kinds_of_files():
    """While the page is served, Pillow opens no other kind of file for any caller, such as Gradio
    itself: EPS would start another program."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SERVING], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_read_mask_is_true_where_something_is_painted():
    """Opacity decides and color does not, and several layers are joined."""
    layer = np.zeros((60, 80, 4), np.uint8)
    layer[..., :3] = 200  # color counts for nothing
    assert (
        not session.read_mask([layer], small.TOKENIZER).any()
        and not session.read_mask([], small.TOKENIZER).any()
    )
    layer[:40, :40, 3] = 255
    np.testing.assert_array_equal(session.read_mask([layer], small.TOKENIZER), MASK)
    other = np.zeros((6, 8, 4), np.uint8)
    other[5, 7] = 255
    both = MASK.copy()
    both[5, 7] = True
    np.testing.assert_array_equal(session.read_mask([layer, other], small.TOKENIZER), both)


def test_class_choices_have_names_and_ids():
    """Names stand beside their ids; classes without a name are offered by id."""
    numbers = [(str(i), i) for i in range(10)]
    assert session.class_choices(small.MODEL, ()) == [*numbers, ("no class", 10)]
    named = session.class_choices(small.MODEL, ("cat", "1"))
    assert named[:3] == [("0: cat", 0), ("1", 1), ("2", 2)]


def test_generated_shows_images_pixel_by_pixel(image):
    """The page's pictures and downloads have the images' own pixels, however large they are
    shown."""
    steps = np.stack([image, 255 - image])
    text = results.generated(steps, ["1x1", "<3x4>"], Choices(3, seed=5), "a <b> & c")
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("L"))
        for one in re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    ]
    for pixels, expected in zip(shown, [steps[1], steps[0], steps[1]], strict=True):
        np.testing.assert_array_equal(pixels, expected[..., 0])
    files = dict(re.findall(r'download="([^"]*)" href="data:image/png;base64,([^"]*)"', text))
    assert list(files) == ["class3_seed5.png", "class3_seed5_strip.png"]
    saved = Image.open(io.BytesIO(base64.b64decode(files["class3_seed5.png"]))).convert("L")
    np.testing.assert_array_equal(np.asarray(saved), steps[1, ..., 0])
    assert "a &lt;b&gt; &amp; c" in text and text.count("<b>") == 0
    assert [int(width) for width in re.findall(r'<img class="pixels" width="(\d+)"', text)] == [
        384,
        96,
        96,
    ]


def test_edited_shows_the_image_before_and_the_mask(image):
    """The page's three pictures are the image, the mask and the result, pixel by pixel."""
    text = results.edited(image, MASK, 255 - image, Choices(10, seed=1), "")
    sources = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("L")) for one in sources
    ]
    for pixels, expected in zip(
        shown[1:], [image[..., 0], 255 * MASK, 255 - image[..., 0]], strict=True
    ):
        np.testing.assert_array_equal(pixels, expected)
