"""The choice of Neon's weight: halves of the reference, the verdict, and a run that resumes."""

import json
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from helpers import small, toy_network
from helpers.scripts import load_script
from var_jax import Pipeline
from var_jax.evaluate import feature_networks, image_sets
from var_jax.studies.measured_rows import Rows

ARGS = SimpleNamespace(base="a", tuned="b")
WEIGHTS = (-2.0, -1.0, 0.0)


@pytest.fixture(scope="module")
def script():
    return load_script("neon")


def measured(script, tmp_path, choice: dict, final: dict) -> Rows:
    """Rows of given distances, with intervals of one to both sides."""
    rows = Rows(tmp_path / "neon.json", {})
    for half, values in ((script.CHOICE, choice), (script.FINAL, final)):
        for weight, value in values.items():
            distance = {"value": value, "ci95": [value - 1, value + 1]}
            rows.add(script.row_name(half, weight), {"frechet_distance": distance})
    return rows


def test_halves_share_no_image_and_have_all(script, tmp_path):
    """Read in any batches, the two halves are the even and the odd images with their labels, and
    they are cached under different fingerprints."""
    pixels = np.arange(7, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    np.savez(tmp_path / "real.npz", arr_0=pixels, arr_1=np.arange(7))
    images = image_sets.open_images(str(tmp_path / "real.npz"))
    halves = [script.half(images, which) for which in (script.CHOICE, script.FINAL)]
    for batch_size in (1, 3, 16):
        for half, expected in zip(halves, ([0, 2, 4, 6], [1, 3, 5]), strict=True):
            batches = list(half.read(batch_size))
            shown = np.concatenate([batch.images[:, 0, 0, 0] for batch in batches])
            labels = np.concatenate([batch.labels for batch in batches])
            assert shown.tolist() == labels.tolist() == expected and half.count == len(expected)
    assert len({images.fingerprint, *(half.fingerprint for half in halves)}) == 3


@pytest.mark.parametrize(
    ("choice", "final", "weight", "words"),
    [
        ((9, 5, 8), {-1: 5, 0: 9}, -1, "beyond the noise"),
        ((9, 5, 8), {-1: 7.5, 0: 9}, -1, "within the noise"),
        ((9, 5, 8), {-1: 9.5, 0: 9}, -1, "the choice was noise"),
        ((3, 5, 8), {-2: 3, 0: 9}, -2, "outermost of those tried: try weights beyond -2"),
        ((9, 8, 7), {0: 8}, 0, "No weight is better than 0"),
        ((7, 7, 7), {0: 8}, 0, "No weight is better than 0"),
    ],
)
def test_verdict_is_what_the_other_half_says(script, tmp_path, choice, final, weight, words):
    """The weight is that of the choosing half, and its gain is judged by the other half alone;
    where nothing is better than the base, that is said."""
    rows = measured(script, tmp_path, dict(zip(WEIGHTS, choice, strict=True)), final)
    assert script.chosen(rows, WEIGHTS) == weight
    text = " ".join(script.verdict(rows, WEIGHTS, ARGS))
    assert words in text
    assert ("var-jax merge" in text) == (weight != 0)
    assert len(script.table(rows, WEIGHTS).splitlines()) == 2 + len(WEIGHTS)


@pytest.mark.long
def test_script_measures_each_row_once(script, tmp_path, monkeypatch, capsys):
    """The base and one weight are measured on the choosing half, then the base and the chosen one
    on the other; a second start measures nothing, and another seed is refused."""
    monkeypatch.setattr(feature_networks, "load", lambda kind, path="": toy_network.network())
    base = small.pipeline()
    base.save(tmp_path / "base")
    moved = jax.tree.map(lambda x: x * np.float32(1.01), base.params["transformer"])
    Pipeline(base.config, {**base.params, "transformer": moved}).save(tmp_path / "tuned")
    real = np.random.default_rng(0).integers(0, 256, (16, 6, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "real.npz", arr_0=real)
    options = [
        *("--base", tmp_path / "base", "--tuned", tmp_path / "tuned", "--cache", ""),
        *("--reference", tmp_path / "real.npz", "--num", 8, "--resamples", 2, "--top-k", 0),
        *("--merge-weights", -0.5, "--out", tmp_path / "out"),
    ]

    def start(*more) -> int:
        monkeypatch.setattr(sys, "argv", ["neon.py", *map(str, (*options, *more))])
        return script.main()

    assert start() == 0
    rows = json.loads((tmp_path / "out" / "neon.json").read_text())["rows"]
    assert {"choice -0.5", "choice 0", "final 0"} <= set(rows)
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "out" / "neon.md").read_text()
    assert (tmp_path / "out" / "neon.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(script.Measures, "row", lambda *_: pytest.fail("measured again"))
    assert start() == 0 and capsys.readouterr().out == printed
    assert start("--seed", 1) == 2 and "is of other settings" in capsys.readouterr().err
    assert start("--merge-weights", "nan") == 2
    assert "--merge-weights is" in capsys.readouterr().err
