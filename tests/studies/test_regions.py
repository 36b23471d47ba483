"""Regions of the editing study."""

import numpy as np
import pytest

from var_jax.errors import UserError
from var_jax.evaluate.image_sets import open_images
from var_jax.studies import regions

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 4, 6, 1), dtype=np.uint8)
KEPT = np.ones((4, 6), bool)
KEPT[1:3, 2:5] = False


def test_keep_mask_of_each_task():
    """The box is a quarter of the image; a grid without room for it is refused."""
    box = ~regions.keep_mask("in-painting", (8, 8))
    assert box.sum() == 16 and box[2:6, 2:6].all()
    np.testing.assert_array_equal(regions.keep_mask("out-painting", (8, 8)), box)
    np.testing.assert_array_equal(regions.keep_mask("another class", (8, 8)), ~box)
    lower = regions.keep_mask("lower half", (8, 8))
    assert lower[:4].all() and not lower[4:].any()
    with pytest.raises(UserError, match=r"the finest token grid is \(1, 1\)"):
        regions.keep_mask("in-painting", (1, 1))


def test_region_cut_crops_rectangles_and_blanks_around_other_shapes():
    """Images cut to a rectangle are cropped, and those cut to another shape have its surroundings
    set to 0; the description says which of the two was done."""
    rectangle = regions.Region(KEPT, KEPT)
    np.testing.assert_array_equal(rectangle.cut(IMAGES), IMAGES[:, 1:3, 2:5])
    assert rectangle.describe() == {"filled_share": 0.25, "alone": "cropped"}
    border = regions.Region(~KEPT, ~KEPT)
    blanked = border.cut(IMAGES)
    assert blanked.shape == IMAGES.shape and not blanked[:, 1:3, 2:5].any()
    np.testing.assert_array_equal(blanked[:, KEPT], IMAGES[:, KEPT])
    assert border.describe()["alone"] == "kept pixels blanked to 0 in both sets"


def test_cut_set_has_its_own_fingerprint(tmp_path):
    """Features of cut images are cached by the fingerprint, so that each region needs another."""
    np.savez(tmp_path / "a.npz", IMAGES, np.arange(30) % 3)
    images = open_images(str(tmp_path / "a.npz"))
    cropped = regions.cut_set(images, regions.Region(KEPT, KEPT))
    assert cropped.shape == (2, 3, 1) and cropped.count == 30
    assert next(cropped.read(50)).images.shape == (30, 2, 3, 1)
    border = regions.cut_set(images, regions.Region(~KEPT, ~KEPT))
    assert len({one.fingerprint for one in (images, cropped, border)}) == 3
