"""Rows of studies: a file that grows row by row, and the fingerprints and distances in it."""

import json

import jax
import numpy as np
import pytest

from helpers import small, toy_network
from var_jax import Pipeline
from var_jax.data.model_fingerprint import model_fingerprint
from var_jax.errors import UserError
from var_jax.evaluate import classifier
from var_jax.evaluate.features import features_of
from var_jax.evaluate.fid import frechet_distance
from var_jax.evaluate.image_sets import open_images
from var_jax.evaluate.samples import Distance
from var_jax.studies.measured_rows import Rows

ABOUT = {"study": "toy", "model": "a", "small": None, "reference": {"count": 3}}


def test_rows_are_written_one_by_one(tmp_path):
    """A second object reads what the first has added, and no temporary file stays."""
    path = tmp_path / "deep" / "rows.json"
    rows = Rows(path, ABOUT, ["a note"])
    assert rows.missing(["x", "y", "x"]) == ["x", "y"] and not path.exists()
    rows.add("x", {"value": 1.5, "counts": (1, 2)})
    again = Rows(path, ABOUT)
    assert (
        again.missing(["x", "y"]) == ["y"]
        and "x" in again
        and again["x"] == {"value": 1.5, "counts": [1, 2]}
    )
    again.add("y", {})
    assert list(Rows(path, ABOUT).rows) == ["x", "y"]
    assert [file.name for file in path.parent.iterdir()] == ["rows.json"]


def test_rows_refuse_other_settings(tmp_path):
    """The setting with both values, a damaged file and a place that cannot be written are named,
    and the file stays."""
    path = tmp_path / "rows.json"
    Rows(path, ABOUT).add("x", {})
    before = path.read_bytes()
    for changed, output in (
        ({"model": "b"}, "model: b here, a there"),
        ({"reference": {"count": 4}}, "reference.count: 4 here, 3 there"),
        ({"seed": 1}, "seed: 1 here, None there"),
    ):
        with pytest.raises(UserError, match=f"rows.json is of other settings: {output}"):
            Rows(path, {**ABOUT, **changed})
    assert path.read_bytes() == before
    for content in ("[]", "{", '{"rows": 3}'):
        path.write_text(content)
        with pytest.raises(UserError, match="rows.json"):
            Rows(path, ABOUT)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to .*; give another --out"):
        Rows(tmp_path / "file" / "rows.json", ABOUT)


def test_rows_of_an_earlier_version_go_on_whatever_it_called_the_resizing(tmp_path):
    """A file that says "whole, centred" is of the same images as one that says "stretch,
    centered"."""
    path = tmp_path / "rows.json"
    earlier = {"count": 3, "resize": "whole, centred, to 8 x 8"}
    Rows(path, {**ABOUT, "reference": earlier}).add("x", {})
    today = {"count": 3, "resize": "stretch, centered, to 8 x 8"}
    assert "x" in Rows(path, {**ABOUT, "reference": today})
    other = {"count": 3, "resize": "crop, centered, to 8 x 8"}
    with pytest.raises(UserError, match="reference.resize: crop, .* here, stretch, .* there"):
        Rows(path, {**ABOUT, "reference": other})


def test_rows_take_what_an_earlier_run_did_not_know(tmp_path):
    """A new setting is added to those that are known, and may not change afterwards."""
    path = tmp_path / "rows.json"
    Rows(path, ABOUT).add("x", {})
    Rows(path, {**ABOUT, "small": "s"}).add("y", {})
    assert json.loads(path.read_text())["about"]["small"] == "s"
    Rows(path, ABOUT).add("z", {})  # without it: what is known stays
    assert json.loads(path.read_text())["about"]["small"] == "s"
    with pytest.raises(UserError, match="small: t here, s there"):
        Rows(path, {**ABOUT, "small": "t"})


def test_model_fingerprint_is_of_both_parts():
    """A change of either part's last parameter changes it, and an equal model has the same."""
    model = small.pipeline()
    result = {model_fingerprint(model.config, model.params)}
    for part in ("tokenizer", "transformer"):
        leaves, tree = jax.tree.flatten(model.params[part])
        leaves[-1] = leaves[-1] + 1e-3
        result.add(
            model_fingerprint(
                model.config, {**model.params, part: jax.tree.unflatten(tree, leaves)}
            )
        )
    assert len(result) == 3
    again = Pipeline(model.config, model.params)
    assert model_fingerprint(again.config, again.params) == model_fingerprint(
        model.config, model.params
    )


def test_distance_is_that_of_the_moments():
    """Values are those of the moments, with an interval where resamples are asked for, and 0 for
    equal sets."""
    random, network = np.random.default_rng(0), toy_network.network()
    real, other = (
        features_of(network, random.integers(0, high, (50, 4, 6, 1), dtype=np.uint8))
        for high in (256, 200)
    )
    result = Distance(real, 5, 0).of(other)
    assert result["value"] == pytest.approx(frechet_distance(real.moments, other.moments))
    assert result["counts"] == [50, 50] and result["ci95"][0] < result["value"] < result["ci95"][1]
    assert Distance(real, 0, 0).of(real)["value"] == pytest.approx(0, abs=1e-4)
    assert Distance(real, 0, 0).of(real)["ci95"] is None


def test_load_all_refuses_labels_that_are_not_the_models(tmp_path):
    """Images without labels, with a label that the model lacks, and of one class alone are refused
    with the reason; images of both classes load with their labels."""
    file = str(tmp_path / "a.npz")
    pixels = np.zeros((3, 4, 4, 1), np.uint8)
    for labels, output in (
        (None, "without labels"),
        ([0, 1, 2], "is 2; it must be below the number"),
        ([1, 1, 1], "of one class"),
    ):
        np.savez(file, pixels, **({} if labels is None else {"arr_1": np.array(labels)}))
        with pytest.raises(UserError, match=output):
            classifier.load_all(open_images(file), classes=2)
    np.savez(file, pixels, np.array([0, 1, 0]))
    assert classifier.load_all(open_images(file), classes=2)[1].tolist() == [0, 1, 0]
