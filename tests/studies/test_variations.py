"""The study of variations and finer detail."""

import json

import numpy as np
import pytest
from PIL import Image

from helpers import tiles
from helpers.studies import studied_images
from var_jax.studies import variations


def test_enlarged_averages_down_and_up():
    """A flat image stays, a checkerboard becomes its mean, and an edge is blurred but stays."""
    flat = np.full((1, 8, 8, 1), 77, np.uint8)
    np.testing.assert_array_equal(variations.enlarged(flat, 4), flat)
    checks = np.indices((8, 8)).sum(axis=0)[None, ..., None] % 2 * np.uint8(200)
    np.testing.assert_array_equal(variations.enlarged(checks, 2), np.full((1, 8, 8, 1), 100))
    halves = np.zeros((1, 8, 8, 1), np.uint8)
    halves[:, :, 4:] = 200
    row = variations.enlarged(halves, 2)[0, 0, :, 0].astype(int)
    assert row[0] <= 10 and row[-1] >= 190 and np.all(np.diff(row[1:6]) >= 0)


def test_continued_rows_keep_every_number_of_scales():
    """Three scales allow one or two to be kept, of the image itself and of an enlarged one."""
    assert variations.continued_rows(3) == {
        "enlarged, first 1 scales kept": ("enlarged", 1),
        "enlarged, first 2 scales kept": ("enlarged", 2),
        "variation, first 1 kept": ("truth", 1),
        "variation, first 2 kept": ("truth", 2),
    }


@pytest.mark.slow
def test_study_measures_all_rows_once(run_study, digits_dir, capsys):
    """With random weights, an enlarged image is nearer to the image than a variation of it is; a
    second run changes nothing; a factor that does not divide the sides is refused."""
    options = ("--factor", "2")
    assert run_study(variations, *options) == 0
    path = run_study.out / "continuing.json"
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == 3 + 4 and rows["truth"]["off"]["value"] == 0
    assert rows["truth"]["frechet_distance"]["counts"] == [10, 30]
    enlarged, variation = rows["enlarged"], rows["variation, first 1 kept"]
    assert 0 < enlarged["off"]["value"] < variation["off"]["value"]
    images = studied_images(digits_dir, 10)
    enlarged_images = variations.enlarged(images, 2)
    with Image.open(run_study.out / "continuing.png") as picture:
        for image, enlarged_image in zip(images[:2], enlarged_images[:2], strict=True):
            original = tiles.corner(picture, image)
            beside = tiles.corner(picture, enlarged_image)
            assert original[0] == beside[0] and original[1] < beside[1]
    table = (run_study.out / "continuing.md").read_text()
    assert table.count("\n| ") == 8 and "a factor of 2" in table
    before = path.read_bytes()
    assert run_study(variations, *options) == 0 and path.read_bytes() == before
    capsys.readouterr()
    assert run_study(variations, "--factor", "5") == 2
    assert "--factor is 5; it must be a divisor of both sides of 6 x 8" in capsys.readouterr().err
