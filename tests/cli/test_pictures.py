"""What `sample` and `edit` write beyond one plain picture: strips, animations, edits of several
images, variations."""

import numpy as np
import pytest
from PIL import Image, ImageSequence

from helpers import small
from helpers.commands import run
from var_jax import Pipeline
from var_jax.cli.main import main

SIDE = (96 // 8) * np.array([6, 8])  # of a magnified image of the small model: 72 x 96 pixels


def pixels(path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


@pytest.fixture
def photos(tmp_path):
    """Two gray images of the small model's size, and one twice as large."""
    random = np.random.default_rng(0)
    directory = tmp_path / "photos"
    directory.mkdir()
    for name, size in (("a", (6, 8)), ("b", (6, 8)), ("large", (12, 16))):
        Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(
            directory / f"{name}.png"
        )
    return directory


def test_sample_ends_strip_and_animation_with_the_image(capsys, model_dir, tmp_path):
    """The strip's last column and the animation's last frame are the image of the grid, and the
    first ones are not."""
    out, strip, gif = (tmp_path / name for name in ("out.png", "strip.png", "new/steps.gif"))
    text = run(
        capsys,
        "sample",
        "--model",
        model_dir,
        "--labels",
        "0,3",
        "--preset",
        "greedy",
        "--out",
        out,
        "--strip",
        strip,
        "--gif",
        gif,
    )
    assert text == f"2 images in {out}, {strip}, {gif}\n"
    grid, rows = pixels(out), pixels(strip)
    h, w = SIDE
    for i in range(2):  # each image, from below and from the right: the last of its row
        y, x = grid.shape[0] - 6 - h, 6 + i * (w + 4)
        image = grid[y : y + h, x : x + w]
        bottom = rows.shape[0] - 6 - (1 - i) * (h + 4)
        np.testing.assert_array_equal(
            rows[bottom - h : bottom, rows.shape[1] - 6 - w : rows.shape[1] - 6], image
        )
        assert not np.array_equal(rows[bottom - h : bottom, 6 : 6 + w], image)
    with Image.open(gif) as opened:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(opened)]
    assert len(frames) == len(small.SCALES) and frames[0].shape == grid.shape
    assert np.abs(frames[-1].astype(int) - grid).mean() < 2  # a GIF has 256 colors
    assert np.abs(frames[0].astype(int) - grid).mean() > 4
    assert sorted(file.name for file in tmp_path.rglob("*")) == [
        "new",
        "out.png",
        "steps.gif",
        "strip.png",
    ]


@pytest.mark.slow
def test_sample_takes_settings_by_scale_presets_and_another_model(capsys, model_dir, tmp_path):
    """The preset `greedy` with a second model that is the same one equals its settings written out,
    and other guidance changes the image."""
    out = tmp_path / "out.png"
    sample = ("sample", "--model", model_dir, "--labels", "0-3", "--out", out)
    run(capsys, *sample, "--preset", "greedy", "--then", model_dir, "--from-scale", 2)
    two = pixels(out)
    run(
        capsys,
        *sample,
        "--top-k",
        "1,1,1",
        "--top-p",
        "0",
        "--cfg",
        "0:1.5",
        "--temperature",
        "1:1",
    )
    np.testing.assert_allclose(two.astype(int), pixels(out), atol=1)
    run(capsys, *sample, "--preset", "greedy", "--cfg", "0,3,0")
    assert not np.array_equal(pixels(out), two)


def test_edit_keeps_other_pixels_to_the_last_bit(capsys, model_dir, photos, tmp_path):
    """Outside the box both images stay as they were, and --no-composite decodes those pixels
    anew."""
    edit = (
        "edit",
        "--model",
        model_dir,
        "--box",
        "0,0,0.67,0.5",
        "--label",
        3,
        "--preset",
        "greedy",
    )
    text = run(capsys, *edit, "--image", photos / "[ab].png", "--out", tmp_path / "edited")
    assert text == f"2 edited images in {tmp_path / 'edited'}\n"
    outside = np.ones((6, 8), bool)
    outside[:4, :4] = False
    for name in "ab":
        before, after = pixels(photos / f"{name}.png"), pixels(tmp_path / "edited" / f"{name}.png")
        np.testing.assert_array_equal(after[outside], before[outside])
        assert not np.array_equal(after[~outside], before[~outside])
    run(
        capsys,
        *edit,
        "--image",
        photos / "a.png",
        photos / "b.png",
        "--no-composite",
        "--out",
        tmp_path / "edited",
    )
    assert not np.array_equal(
        pixels(tmp_path / "edited" / "b.png")[outside], pixels(photos / "b.png")[outside]
    )


def test_edit_resizes_a_mask_as_its_image(capsys, model_dir, photos, tmp_path):
    """A mask of the large image is cut as that is; one of another size is stretched over what the
    model sees."""
    from var_jax.cli.images import read_mask

    white = np.zeros((12, 16), np.uint8)
    white[:, 8:] = 255
    Image.fromarray(white).save(tmp_path / "half.png")
    config = small.TOKENIZER
    halves = np.zeros((6, 8), bool)
    halves[:, 4:] = True
    np.testing.assert_array_equal(
        read_mask(str(tmp_path / "half.png"), str(photos / "large.png"), config), halves
    )
    np.testing.assert_array_equal(
        read_mask(str(tmp_path / "half.png"), str(photos / "a.png"), config), halves
    )
    white[:] = 0
    white[:, :4] = white[:, 14:] = white[10:] = 255
    Image.fromarray(white).save(tmp_path / "edges.png")
    cut = read_mask(str(tmp_path / "edges.png"), str(photos / "large.png"), config)
    stretched = read_mask(str(tmp_path / "edges.png"), str(photos / "a.png"), config)
    # At 7 x 9, 1.125 times the size, white are columns 0 to 2.25 and from 7.875, and rows from
    # 5.83: of the window of 6 x 8, which begins at 0, two columns. Stretched to 6 x 8 it is columns
    # 0 to 2 and from 7, and rows from 5.
    left = np.broadcast_to(np.arange(8) < 2, (6, 8))
    np.testing.assert_array_equal(cut, left)
    np.testing.assert_array_equal(
        stretched, left | (np.arange(8) == 7) | (np.arange(6) == 5)[:, None]
    )


def test_edit_numbers_its_outputs(capsys, model_dir, photos, tmp_path):
    """A directory is one by its name, by being there, or since a glob might find several."""
    edit = ("edit", "--model", model_dir, "--box", "0,0,0.67,0.5", "--preset", "greedy", "--image")
    (tmp_path / "there").mkdir()
    for image, out in (("a.png", "new/"), ("a.png", "there"), ("[a].png", "globbed")):
        run(capsys, *edit, photos / image, "--out", f"{tmp_path}/{out}")
        assert [file.name for file in (tmp_path / out).iterdir()] == ["a.png"]
    before = (photos / "a.png").read_bytes()
    for image, out, message in (
        ("[a].png", "x.png", "it must be a directory, as --image has wildcards"),
        ("a.png", "photos", "is an image to edit; give another directory"),
    ):
        assert main([str(a) for a in (*edit, photos / image, "--out", tmp_path / out)]) == 2
        assert message in capsys.readouterr().err
    assert (photos / "a.png").read_bytes() == before and not (tmp_path / "x.png").exists()


@pytest.mark.long
def test_edit_by_keep_scales_varies_an_image(capsys, model_dir, photos, tmp_path):
    """The picture is that of `Pipeline.vary`."""
    out = tmp_path / "varied.png"
    assert (
        run(
            capsys,
            "edit",
            "--model",
            model_dir,
            "--image",
            photos / "a.png",
            "--keep-scales",
            2,
            "--preset",
            "greedy",
            "--out",
            out,
        )
        == f"edited image in {out}\n"
    )
    images = pixels(photos / "a.png")[None, ..., :1].astype(np.float32) / 127.5 - 1
    expected = Pipeline.from_pretrained(model_dir).vary(images, keep_scales=2, preset="greedy")[
        0, ..., 0
    ]
    np.testing.assert_allclose(pixels(out)[..., 0], expected * 255, atol=0.51)


@pytest.mark.long
def test_sample_and_edit_name_mistakes_and_write_nothing(capsys, model_dir, photos, tmp_path):
    """One line has the option, its value and what would be right, and no file is added."""
    sample = ("sample", "--model", model_dir, "--labels", "1", "--out", tmp_path / "out.png")
    edit = (
        "edit",
        "--model",
        model_dir,
        "--image",
        photos / "a.png",
        "--out",
        tmp_path / "out.png",
    )
    several = (
        "edit",
        "--model",
        model_dir,
        "--image",
        f"{photos}/[ab].png",
        "--box",
        "0,0,0.5,0.5",
        "--out",
    )
    before = sorted(tmp_path.rglob("*"))
    for command, message in (
        (
            (*sample, "--cfg", "1,2"),
            "cfg is a list of 2; it must be of 3 numbers, one for each of the scales 1,",
        ),
        (
            (*sample, "--top-k", "3,x,1"),
            "--top-k: invalid int value: 'x'; write a number, a ramp such as 0:3",
        ),
        ((*sample, "--top-p", "0:2"), "top_p.last is 2.0"),
        ((*sample, "--preset", "best"), "choice: 'best'"),
        (
            (*sample, "--then", model_dir),
            "--keep-scales is None; it must be given together with --then",
        ),
        ((*sample, "--then", tmp_path / "none", "--from-scale", 1), "no model directory"),
        (
            (*sample, "--then", model_dir, "--from-scale", 3),
            "keep_scales is 3; it must be a whole number from 1",
        ),
        ((*sample, "--gif", tmp_path), "cannot write the picture"),
        ((*sample, "--dtype", "float16"), "invalid choice: 'float16'"),
        (
            (*edit, "--keep-scales", 3),
            "keep_scales is 3; it must be a whole number from 1 to 2, as there are",
        ),
        ((*edit, "--keep-scales", 1, "--outpaint"), "--outpaint needs a region"),
        (edit, "one of --mask, --box and --keep-scales is required"),
        ((*edit, "--box", "0,0,1,1", "--from-scale", 3), "keep_scales is 3"),
        ((*edit, "--box", "0,0,1,1", "--keep-scales", 3), "keep_scales is 3"),
        ((*several, tmp_path / "out.png"), "it must be a directory, as there are 2 images"),
        (
            (*several, tmp_path / "x", "--image", photos / "a.png", photos / "a.png"),
            "would be written to",
        ),
        ((*several, photos / "a.png" / "x"), "a.png is a file, not a directory"),
    ):
        capsys.readouterr()
        assert main([str(a) for a in command]) == 2, command
        printed = capsys.readouterr()
        assert message in printed.err and printed.err.count("\n") == 1 and printed.out == "", (
            printed.err
        )
    assert sorted(tmp_path.rglob("*")) == before
