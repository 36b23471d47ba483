import json

import numpy as np
import pytest
from PIL import Image

from helpers import small, tiles, toy_network
from helpers.studies import REFERENCE, studied_images
from var_jax import Pipeline
from var_jax.config.scales import Scales
from var_jax.errors import UserError
from var_jax.evaluate import features
from var_jax.evaluate.image_sets import open_images
from var_jax.studies import editing, fills

RANDOM = np.random.default_rng(0)
TRAINING = RANDOM.integers(0, 256, (30, 4, 6, 1), dtype=np.uint8)
LABELS = np.arange(30) % 3
KEPT = np.ones((4, 6), bool)
KEPT[1:3, 2:5] = False


def test_regions():
    box = ~fills.region("in-painting", (8, 8))
    assert box.sum() == 16 and box[2:6, 2:6].all()
    np.testing.assert_array_equal(fills.region("out-painting", (8, 8)), box)
    np.testing.assert_array_equal(fills.region("another class", (8, 8)), ~box)
    lower = fills.region("lower half", (8, 8))
    assert lower[:4].all() and not lower[4:].any()
    with pytest.raises(UserError, match=r"the finest token grid is \(1, 1\)"):
        fills.region("in-painting", (1, 1))


def test_a_region_alone():
    cropped = fills.Region(KEPT, KEPT)
    np.testing.assert_array_equal(cropped.alone(TRAINING), TRAINING[:, 1:3, 2:5])
    assert cropped.described() == {"filled_share": 0.25, "alone": "cropped"}
    border = fills.Region(~KEPT, ~KEPT)
    blanked = border.alone(TRAINING)
    assert blanked.shape == TRAINING.shape and not blanked[:, 1:3, 2:5].any()
    np.testing.assert_array_equal(blanked[:, KEPT], TRAINING[:, KEPT])
    assert border.described()["alone"] == "kept pixels blanked to 0 in both sets"


def test_the_nearest_of_a_training_image_is_itself(monkeypatch):
    monkeypatch.setattr(fills, "CHUNK", 7)
    changed = np.where(KEPT[..., None], TRAINING, 255 - TRAINING)  # elsewhere, where nobody looks
    np.testing.assert_array_equal(fills.nearest(changed, TRAINING, KEPT), np.arange(30))
    twice = np.concatenate([TRAINING, TRAINING])
    np.testing.assert_array_equal(fills.nearest(TRAINING, twice, KEPT), np.arange(30))


def test_the_nearest_by_kept_pixels():
    images = RANDOM.integers(0, 256, (5, 4, 6, 1), dtype=np.uint8)
    by_hand = [
        ((image[KEPT].astype(int) - TRAINING[:, KEPT].astype(int)) ** 2).sum((1, 2))
        for image in images
    ]
    np.testing.assert_array_equal(fills.nearest(images, TRAINING, KEPT), np.argmin(by_hand, axis=1))
    wanted = np.array([2, 0, 1, 1, 2])
    found = fills.nearest_of_class(images, wanted, TRAINING, LABELS, KEPT)
    np.testing.assert_array_equal(LABELS[found], wanted)
    limited = np.where(wanted[:, None] == LABELS, by_hand, np.inf)
    np.testing.assert_array_equal(found, limited.argmin(axis=1))
    with pytest.raises(UserError, match="without one of class 3"):
        fills.nearest_of_class(images[:1], np.array([3]), TRAINING, LABELS, KEPT)


def test_the_mean_image(monkeypatch):
    monkeypatch.setattr(fills, "CHUNK", 7)
    np.testing.assert_array_equal(
        fills.mean_image(TRAINING), np.rint(TRAINING.mean(axis=0)).astype(np.uint8)
    )


def test_what_is_held_out_is_not_compared_with(tmp_path):
    np.savez(tmp_path / "a.npz", TRAINING, LABELS)
    images = open_images(str(tmp_path / "a.npz"))
    drawn, others = fills.held_out(images, 11, seed=3)
    found = [
        [np.concatenate(column) for column in zip(*part.read(4), strict=True)]
        for part in (drawn, others)
    ]
    assert [len(part[0]) for part in found] == [drawn.count, others.count] == [11, 19]
    places = [
        np.flatnonzero((image == TRAINING).all((1, 2, 3)))[0] for part in found for image in part[0]
    ]
    assert sorted(places) == list(range(30)) and places[:11] == sorted(places[:11])
    np.testing.assert_array_equal(np.concatenate([found[0][1], found[1][1]]), LABELS[places])
    other = fills.held_out(images, 11, seed=4)
    regions = fills.regions_of(others, fills.Region(KEPT, KEPT))
    assert regions.shape == (2, 3, 1) and regions.count == 19
    assert next(regions.read(50)).images.shape == (19, 2, 3, 1)
    border = fills.regions_of(others, fills.Region(~KEPT, ~KEPT))
    assert len({one.fingerprint for one in (images, drawn, others, *other, regions, border)}) == 7
    with pytest.raises(UserError, match="--num is 27; it must be at most 26"):
        fills.held_out(images, 27, seed=0)


def test_strengths():
    assert editing.strengths(Scales.parse("1,2,3,4,6,8"), "") == [0, 1, 3]
    assert editing.strengths(Scales.parse("1,2,3,4,5,6,8,10,13,16"), "") == [0, 1, 5]
    assert editing.strengths(small.SCALES, "") == [0, 1, 2] and editing.strengths(
        small.SCALES, "2,0"
    ) == [0, 2]
    for given in ("3", "a", "1,", "-1"):
        with pytest.raises(UserError, match="--from-scales"):
            editing.strengths(small.SCALES, given)


@pytest.mark.slow
def test_kept_pixels_are_the_images_own(monkeypatch):
    model = small.pipeline()
    shape = model.config.tokenizer.image_shape
    images = RANDOM.integers(0, 256, (3, *shape), dtype=np.uint8)
    monkeypatch.setattr(editing, "PART", 2)
    editor = editing.Editor(
        model, images, np.array([0, 1, 9]), images[:2], np.array([0, 1]), 0, "fid"
    )
    filled, kept = editor.fill("out-painting", 1), editor.region("out-painting").pixels
    assert editing.apart(filled, images, kept) == {
        "value": 0,
        "ci95": [0, 0],
        "largest": 0,
        "count": 3,
    }
    assert editing.apart(filled, images, ~kept)["value"] > 1
    assert editor.drift("out-painting", 1)["value"] > 1  # random weights reconstruct nothing
    assert editor.wanted("another class").tolist() == [1, 2, 0] and editor.wanted(
        "lower half"
    ).tolist() == [0, 1, 9]


class Editor:
    """In place of `Pipeline.edit`: whatever is filled is grey, whatever is kept is three levels
    off, for nothing."""

    def __init__(self, monkeypatch):
        self.calls = []
        monkeypatch.setattr(features, "load", lambda *_: toy_network.network())
        monkeypatch.setattr(
            Pipeline,
            "edit",
            lambda model, images, keep, labels, **given: self.edit(
                np.asarray(images), model.config.tokenizer.downsampling, keep, labels, **given
            ),
        )

    def edit(self, images, factor, keep, labels, *, composite, **given):
        self.calls.append({**given, "composite": composite, "labels": list(labels), "keep": keep})
        kept = np.kron(keep, np.ones((factor, factor), bool))[..., None]
        own = (images + 1) / 2
        return np.where(
            kept, own if composite else own + np.where(own > 0.5, -3, 3) / 255, np.float32(0.5)
        )


@pytest.fixture
def study(model_dir, digits_dir, tmp_path, monkeypatch):
    def run(*options):
        return editing.main(
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
                "--out",
                str(tmp_path / "out"),
                *options,
            ]
        )

    run.out, run.editor = tmp_path / "out", Editor(monkeypatch)
    return run


def test_a_study(study, digits_dir, capsys):
    assert study() == 0
    found = json.loads((study.out / "editing.json").read_text())
    rows = found["rows"]
    assert len(rows) == len(fills.TASKS) * 6 and found["about"]["reference"]["count"] == 30
    for task in fills.TASKS:
        truth, model = rows[f"{task}: truth"], rows[f"{task}: model, from scale 1"]
        assert truth["kept"] == {
            "composited": {"value": 0, "ci95": [0, 0], "largest": 0, "count": 10},
            "uncomposited": None,
        }
        assert model["kept"]["composited"]["largest"] == 0
        assert model["kept"]["uncomposited"]["value"] == pytest.approx(3, abs=1e-4)
        assert truth["frechet_distance"]["counts"] == truth["region"]["counts"] == [10, 30]
        assert rows[f"{task}: nearest"]["kept"]["composited"]["largest"] == 0
        assert truth["region"]["label"]["count"] == 10
        if task == "in-painting":  # grey alone looks like one class, whatever is kept around it
            assert model["region"]["label"]["value"] <= 0.5 < truth["region"]["label"]["value"]
        if task == "another class":
            assert truth["filled"] is None and truth["wanted_label"] != truth["original_label"]
        else:
            assert truth["filled"]["value"] == 0 and model["filled"]["value"] > 0
            assert truth["wanted_label"] == truth["original_label"]
    calls = [call for call in study.editor.calls if call["composite"]]
    own, others = calls[0]["labels"], calls[-1]["labels"]
    assert {call["from_scale"] for call in calls} == {0, 1, 2}
    assert [(label + 1) % 10 for label in own[: len(others)]] == others
    images = studied_images(digits_dir, 10)
    with Image.open(study.out / "editing.png") as picture:
        for image in images[:2]:  # the original is shown once for each task
            assert len(tiles.corners(picture, image)) == len(fills.TASKS)
    tables = (study.out / "editing.md").read_text()
    assert (
        tables.count("\n| model, from scale 2 |") == len(fills.TASKS) and "16.7% filled" in tables
    )

    count = len(study.editor.calls)
    assert study() == 0 and len(study.editor.calls) == count
    rows.pop("lower half: nearest")
    (study.out / "editing.json").write_text(json.dumps({**found, "rows": rows}))
    assert study() == 0
    assert json.loads((study.out / "editing.json").read_text())["rows"].keys() == {
        *rows,
        "lower half: nearest",
    }
    capsys.readouterr()
    for options, told in (
        (["--seed", "1"], "seed: 1 here, 0 there"),
        (["--num", "37"], "--num is 37"),
        (["--preset", "x"], "--preset is x"),
        (["--from-scales", "3"], "--from-scales is 3"),
    ):
        assert study(*options) == 2
        err = capsys.readouterr().err
        assert told in err and err.count("\n") == 1
