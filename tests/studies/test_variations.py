import json

import numpy as np
import pytest
from PIL import Image

from helpers import tiles, toy_network
from helpers.studies import REFERENCE, studied_images
from var_jax.evaluate import features
from var_jax.studies import variations


def test_what_is_left_of_a_small_image():
    flat = np.full((1, 8, 8, 1), 77, np.uint8)
    np.testing.assert_array_equal(variations.enlarged(flat, 4), flat)
    checks = np.indices((8, 8)).sum(axis=0)[None, ..., None] % 2 * np.uint8(200)
    np.testing.assert_array_equal(variations.enlarged(checks, 2), np.full((1, 8, 8, 1), 100))
    halves = np.zeros((1, 8, 8, 1), np.uint8)
    halves[:, :, 4:] = 200
    left = variations.enlarged(halves, 2)[0, 0, :, 0].astype(int)
    assert left[0] <= 10 and left[-1] >= 190 and np.all(np.diff(left[1:6]) >= 0)


def test_rows_keep_every_number_of_scales():
    assert variations.methods(3) == {
        "enlarged, first 1 scales kept": ("enlarged", 1),
        "enlarged, first 2 scales kept": ("enlarged", 2),
        "variation, first 1 kept": ("truth", 1),
        "variation, first 2 kept": ("truth", 2),
    }


@pytest.mark.slow
def test_a_study(model_dir, digits_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features, "load", lambda *_: toy_network.network())

    def study(*options):
        return variations.main(
            [
                "--model",
                str(model_dir),
                "--reference",
                REFERENCE,
                "--training",
                "digits:train[:80]",
                "--resize",
                "whole",
                "--data-dir",
                str(digits_dir),
                "--num",
                "10",
                "--resamples",
                "0",
                "--cache",
                "",
                "--factor",
                "2",
                "--out",
                str(tmp_path),
                *options,
            ]
        )

    assert study() == 0
    rows = json.loads((tmp_path / "continuing.json").read_text())["rows"]
    assert len(rows) == 3 + 4 and rows["truth"]["off"]["value"] == 0
    assert rows["truth"]["frechet_distance"]["counts"] == [10, 30]
    assert (
        0 < rows["enlarged"]["off"]["value"] < rows["variation, first 1 kept"]["off"]["value"]
    )  # of random weights
    images = studied_images(digits_dir, 10)
    with Image.open(tmp_path / "continuing.png") as picture:
        shown = [
            [
                tiles.corner(picture, column[i])
                for column in (images, variations.enlarged(images, 2))
            ]
            for i in range(2)
        ]
    for original, small_enlarged in shown:  # side by side, in rows one below the other
        assert original[0] == small_enlarged[0] and original[1] < small_enlarged[1]
    assert shown[0][0][0] < shown[1][0][0] and shown[0][0][1] == shown[1][0][1]
    table = (tmp_path / "continuing.md").read_text()
    assert table.count("\n| ") == 8 and "small ones by 2" in table
    before = (tmp_path / "continuing.json").read_bytes()
    assert study() == 0 and (tmp_path / "continuing.json").read_bytes() == before
    capsys.readouterr()
    assert study("--factor", "5") == 2
    assert "--factor is 5; it must be a divisor of both sides of 6 x 8" in capsys.readouterr().err
