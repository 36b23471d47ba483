"""The editing study."""

import json

import numpy as np
import pytest
from PIL import Image

from helpers import small, tiles
from helpers.studies import studied_images
from var_jax import Pipeline
from var_jax.config.scales import Scales
from var_jax.errors import UserError
from var_jax.studies import editing
from var_jax.studies.held_out import Labeled
from var_jax.studies.regions import TASKS

RANDOM = np.random.default_rng(0)


def test_keep_scales_to_compare():
    """The numbers are none, that of the published rule and a larger one by default, else those of
    the option."""
    compare = editing.keep_scales_to_compare
    assert compare(Scales.parse("1,2,3,4,6,8"), "") == [0, 1, 3]
    assert compare(Scales.parse("1,2,3,4,5,6,8,10,13,16"), "") == [0, 1, 5]
    assert compare(small.SCALES, "") == [0, 1, 2] and compare(small.SCALES, "2,0") == [0, 2]
    for option in ("3", "a", "1,", "-1"):
        with pytest.raises(UserError, match="--keep-scales"):
            compare(small.SCALES, option)


@pytest.mark.slow
def test_editor_keeps_the_images_own_pixels(monkeypatch):
    """Composited edits differ from the image in the region alone; without compositing, random
    weights reconstruct nothing of it."""
    model = small.pipeline()
    shape = model.config.tokenizer.image_shape
    images = RANDOM.integers(0, 256, (3, *shape), dtype=np.uint8)
    monkeypatch.setattr(editing, "EDITED_AT_ONCE", 2)
    held_out = Labeled(images, np.array([0, 1, 9]))
    training = Labeled(images[:2], np.array([0, 1]))
    editor = editing.Editor(model, held_out, training, seed=0, preset="fid")
    filled, remaining = editor.fill("out-painting", 1), editor.region("out-painting").pixels
    same = {"value": 0, "ci95": [0, 0], "largest": 0, "count": 3}
    assert editing.masked_mae(filled, images, remaining) == same
    assert editing.masked_mae(filled, images, ~remaining)["value"] > 1
    assert editor.reconstruction_error("out-painting", 1)["value"] > 1
    assert editor.target_labels("another class").tolist() == [1, 2, 0]
    assert editor.target_labels("lower half").tolist() == [0, 1, 9]


class FakeEdit:
    """Replaces `Pipeline.edit` at no cost: filled pixels are gray, and kept ones three levels
    off."""

    def __init__(self, monkeypatch):
        self.calls = []

        def edit(model, images, keep, labels, **settings):
            self.calls.append({**settings, "labels": list(labels)})
            factor = model.config.tokenizer.downsampling
            remaining = np.kron(keep, np.ones((factor, factor), bool))[..., None]
            own = (np.asarray(images) + 1) / 2
            off = own + np.where(own > 0.5, -3, 3) / 255
            return np.where(remaining, own if settings["composite"] else off, np.float32(0.5))

        monkeypatch.setattr(Pipeline, "edit", edit)


@pytest.fixture
def fake_edit(monkeypatch):
    return FakeEdit(monkeypatch)


@pytest.mark.long
def test_study_measures_every_task_and_method(run_study, fake_edit, digits_dir):
    """Every value follows from what the fake edit does: the truth is at no distance, kept pixels
    are composited exactly and three levels off without, and other classes are asked for in turn."""
    assert run_study(editing) == 0
    written = json.loads((run_study.out / "editing.json").read_text())
    rows = written["rows"]
    assert len(rows) == len(TASKS) * 6 and written["about"]["reference"]["count"] == 30
    same = {"value": 0, "ci95": [0, 0], "largest": 0, "count": 10}
    for task in TASKS:
        truth, model = rows[f"{task}: truth"], rows[f"{task}: model, from scale 1"]
        assert truth["kept"] == {"composited": same, "uncomposited": None}
        assert model["kept"]["composited"]["largest"] == 0
        assert model["kept"]["uncomposited"]["value"] == pytest.approx(3, abs=1e-4)
        assert truth["frechet_distance"]["counts"] == truth["region"]["counts"] == [10, 30]
        assert rows[f"{task}: nearest"]["kept"]["composited"]["largest"] == 0
        assert truth["region"]["label"]["count"] == 10
        if task == "in-painting":  # gray alone looks like one class, whatever is kept around it
            assert model["region"]["label"]["value"] <= 0.5 < truth["region"]["label"]["value"]
        if task == "another class":
            assert truth["filled"] is None and truth["wanted_label"] != truth["original_label"]
        else:
            assert truth["filled"]["value"] == 0 and model["filled"]["value"] > 0
            assert truth["wanted_label"] == truth["original_label"]
    calls = [call for call in fake_edit.calls if call["composite"]]
    own, others = calls[0]["labels"], calls[-1]["labels"]
    assert {call["keep_scales"] for call in calls} == {0, 1, 2}
    assert [(label + 1) % 10 for label in own[: len(others)]] == others
    images = studied_images(digits_dir, 10)
    with Image.open(run_study.out / "editing.png") as picture:
        for image in images[:2]:  # the original is shown once for each task
            assert len(tiles.corners(picture, image)) == len(TASKS)
    tables = (run_study.out / "editing.md").read_text()
    assert tables.count("\n| model, from scale 2 |") == len(TASKS) and "16.7% filled" in tables


@pytest.mark.long
def test_study_measures_missing_rows_alone(run_study, fake_edit, capsys):
    """A second run edits nothing; a row that is removed is measured again; a mistake is one line
    that names the option."""
    options = ("--keep-scales", "1")
    assert run_study(editing, *options) == 0
    calls = len(fake_edit.calls)
    assert run_study(editing, "--from-scales", "1") == 0 and len(fake_edit.calls) == calls
    path = run_study.out / "editing.json"
    written = json.loads(path.read_text())
    row = written["rows"].pop("lower half: nearest")
    path.write_text(json.dumps(written))
    assert run_study(editing, *options) == 0
    assert json.loads(path.read_text())["rows"]["lower half: nearest"] == row
    capsys.readouterr()
    for mistake, message in (
        (["--seed", "1"], "seed: 1 here, 0 there"),
        (["--num", "37"], "--num is 37"),
        (["--preset", "x"], "--preset is x"),
        (["--keep-scales", "3"], "--keep-scales is 3"),
    ):
        assert run_study(editing, *mistake) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
