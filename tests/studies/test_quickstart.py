"""The quickstart's study: both stages, its measurements, and its report."""

import dataclasses
import json
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from helpers import diffusion, masked, next_token, small, tiles
from var_jax import Pipeline
from var_jax.cli.main import main
from var_jax.errors import UserError
from var_jax.io.pictures import to_uint8
from var_jax.studies import quickstart

GUIDED, PLAIN = quickstart.compared_settings(small.pipeline())


def test_command_gives_its_own_words_to_the_report(tmp_path, monkeypatch):
    """The report of the command names the command line, from which its figures can be made again,
    and a report of the function names the one it was called with."""
    noted = []
    monkeypatch.setattr(quickstart, "run", lambda *_, command: noted.append(command))
    monkeypatch.setattr(quickstart, "lines", lambda _: [])
    (tmp_path / "config.py").write_text(small.CONFIG_FILE)
    arguments = ["quickstart", "--config", f"{tmp_path}/config.py", "--workdir", f"{tmp_path}/a b"]
    assert main(arguments) == 0
    assert [shlex.split(line) for line in noted] == [["var-jax", *arguments]]


@pytest.mark.slow
def test_run_trains_both_stages_samples_and_reports(digits_dir, tmp_path):
    """The report has every entry, the picture shows the model's own samples, and a second start
    trains nothing and keeps the times."""
    settings = {"steps": 2, "init_from": ""}
    stages = [
        small.train_config(stage, digits_dir, **settings) for stage in ("tokenizer", "transformer")
    ]
    report = quickstart.run(*stages, str(tmp_path), samples=20, command="var-jax quickstart")
    meta = json.loads((tmp_path / "transformer-run" / "meta.json").read_text())
    assert report["command"] == meta["command"] == "var-jax quickstart"
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert report.keys() == {"command", "reconstruction", "validation", "samples", "seconds"}
    assert report["samples"].keys() == {
        "classifier_accuracy_on_held_out",
        "held_out_images",
        "count",
        GUIDED,
        PLAIN,
    }
    assert report["samples"]["count"] == 20
    for row in (report["samples"][GUIDED], report["samples"][PLAIN]):
        assert row.keys() == {"label_accuracy", "variance_ratio", "nearest_ratio"}
        assert all(np.isfinite(value) for value in row.values())
    assert report["seconds"]["total"] == pytest.approx(
        sum(report["seconds"][k] for k in report["seconds"]) / 2
    )
    assert len(quickstart.lines(report)) == 7

    model = Pipeline.from_pretrained(tmp_path)
    assert model.config == small.MODEL
    # Ten rows of the ten classes: the picture shows the model's own samples of the seed.
    samples = to_uint8(model.sample(np.arange(100) % 10, seed=0))
    with Image.open(tmp_path / "samples.png") as grid:
        assert all(tiles.corners(grid, samples[i]) for i in (0, 9, 90, 99))

    again = quickstart.run(*stages, str(tmp_path), samples=20)  # everything is trained already
    for stage in ("tokenizer", "transformer"):
        assert again["seconds"][stage] == report["seconds"][stage]
    assert again["seconds"]["total"] == pytest.approx(
        sum(again["seconds"][k] for k in again["seconds"]) / 2
    )


def test_compared_settings_differ_in_their_guidance():
    """Masked prediction has none by default, so that some is compared with it; the others have."""
    for model, guidance in (
        (masked.pipeline(), [0, 1]),
        (next_token.pipeline(), [1, 0]),
        (diffusion.pipeline(), [0.5, 0]),
    ):
        compared = quickstart.compared_settings(model)
        assert [model.sampling_settings(**each)["cfg"] for each in compared.values()] == guidance


@pytest.fixture
def untrained(monkeypatch):
    """Training that only leaves the last step's checkpoint, and no model; what was called, in
    order."""
    calls = []

    def train(config, directory, *, command):
        calls.append(config.stage)
        return {"stage": config.stage}

    monkeypatch.setattr(quickstart, "train", train)
    monkeypatch.setattr(quickstart, "judge", lambda *_: {})
    monkeypatch.setattr(quickstart, "_samples_picture", lambda *_: None)
    monkeypatch.setattr(
        quickstart,
        "Pipeline",
        SimpleNamespace(
            from_pretrained=lambda _: SimpleNamespace(
                save=lambda directory: directory.mkdir(exist_ok=True)
            )
        ),
    )
    return calls


def stages():
    return [small.train_config(stage, "nowhere") for stage in ("tokenizer", "transformer")]


def test_run_checks_both_stages_before_it_trains(untrained, tmp_path):
    """Two configs of the same stage are refused, and nothing was trained by then."""
    tokenizer, transformer = stages()
    for wrong in ((tokenizer, tokenizer), (transformer, transformer)):
        with pytest.raises(UserError, match="the stage of the .*'s config is .*; it must be"):
            quickstart.run(*wrong, str(tmp_path))
    assert not untrained


@pytest.mark.parametrize(
    ("at", "reported", "expected"),
    [
        ((None, None), None, (0.0, 0.0)),
        ((3, 3), {"tokenizer": 5.0, "transformer": 7.0}, (5.0, 7.0)),
        ((3, 1), {"tokenizer": 5.0, "transformer": 7.0}, (5.0, None)),
        ((3, 1), None, (None, None)),
        ((3, None), {"tokenizer": None, "transformer": 7.0}, (None, 0.0)),
    ],
    ids=["fresh", "finished", "half way", "no report", "never known"],
)
def test_run_reports_seconds_of_whole_stages_only(
    untrained, tmp_path, monkeypatch, at, reported, expected
):
    """A stage that was resumed, or whose time is not in the report, has no time, and then the total
    has none either."""
    done = dict(zip(("tokenizer-run", "transformer-run"), at, strict=True))
    monkeypatch.setattr(
        quickstart,
        "Checkpoints",
        lambda path, keep: SimpleNamespace(latest_step=lambda: done[path.parent.name]),
    )
    if reported is not None:
        (tmp_path / "report.json").write_text(json.dumps({"seconds": reported}))
    seconds = quickstart.run(*stages(), str(tmp_path))["seconds"]
    assert untrained == ["tokenizer", "transformer"]
    for stage, value in zip(("tokenizer", "transformer"), expected, strict=True):
        assert seconds[stage] == (value if value is None else pytest.approx(value, abs=0.5))
    assert (seconds["total"] is None) == (None in expected)
    assert json.loads((tmp_path / "report.json").read_text())["seconds"] == seconds


def flat(values, side: int = 8) -> np.ndarray:
    """One gray image per value."""
    return np.broadcast_to(
        np.asarray(values, np.float32)[:, None, None, None], (len(values), side, side, 1)
    )


def test_within_class_variance_is_within_classes_at_8x8():
    """Differences between classes and patterns finer than 8 x 8 do not count."""
    labels = np.array([0, 0, 1, 1])
    assert quickstart.within_class_variance(flat([0, 1, 0.3, 0.3]), labels) == pytest.approx(
        0.25 / 2
    )
    assert (
        quickstart.within_class_variance(flat([0, 0, 1, 1]), labels) == 0
    )  # between classes does not count
    fine = np.indices((16, 16)).sum(axis=0)[..., None] % 2
    assert quickstart.within_class_variance(
        np.stack([fine, 1 - fine]), np.zeros(2)
    ) == pytest.approx(0)  # at 8x8


def test_nearest_distance_is_the_median_to_the_nearest():
    """An image's distance is that to the nearest reference image, and the result is the median over
    the images. Two images of 64 pixels that differ by 0.25 everywhere are 64 ** 0.5 * 0.25
    apart."""
    assert quickstart.nearest_distance(flat([0.5]), flat([0, 0.75])) == pytest.approx(
        64**0.5 * 0.25
    )
    assert quickstart.nearest_distance(flat([0, 0.5, 1]), flat([0])) == pytest.approx(
        64**0.5 * 0.5
    )  # the median


def planted(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of two classes: noise, with the upper or the lower half bright."""
    labels = np.arange(count) % 2
    images = np.random.default_rng(seed).uniform(0, 0.3, (count, 16, 16, 1)).astype(np.float32)
    images[labels == 0, :8] += 0.6
    images[labels == 1, 8:] += 0.6
    return images, labels


class Swapped:
    """Gives training images of the labels asked for, and without guidance fresh ones of the other
    class."""

    class_names = ("left", "right")
    sampling_settings = small.pipeline().sampling_settings

    def sample(self, labels, *, seed, cfg=1.5, **_):
        images, expected = planted(40, seed=0) if cfg else planted(40, seed=2)
        return np.stack(
            [
                images[expected == (label if cfg else 1 - label)][i // 2]
                for i, label in enumerate(labels)
            ]
        )


def test_judge_compares_samples_with_real_images(monkeypatch):
    """A model that returns held-out images of the label agrees with it everywhere, one that swaps
    the labels nowhere, and both have the variance of real images."""
    config = small.train_config("transformer", "")
    config = dataclasses.replace(
        config, transformer=dataclasses.replace(config.transformer, num_classes=2)
    )
    splits = {
        config.data.train_split: planted(40, seed=0),
        config.data.eval_split: planted(30, seed=1),
    }
    asked = []
    monkeypatch.setattr(
        quickstart, "_split", lambda _, split, names: asked.append(names) or splits[split]
    )
    report = quickstart.judge(Swapped(), config, 20)
    assert report["classifier_accuracy_on_held_out"] == 1
    assert (
        asked == [Swapped.class_names] * 2
    )  # labels are by the order of classes that the model has
    assert (report["held_out_images"], report["count"]) == (30, 20)
    copied, swapped = report[GUIDED], report[PLAIN]
    assert copied["label_accuracy"] == 1 and swapped["label_accuracy"] == 0
    assert (
        copied["nearest_ratio"] == pytest.approx(0, abs=1e-3)
        and 0.8 < swapped["nearest_ratio"] < 1.25
    )
    assert 0.8 < copied["variance_ratio"] < 1.25 and 0.8 < swapped["variance_ratio"] < 1.25


def test_lines_of_a_report_are_readable():
    """Each line has its values rounded, and times that are not known are said to be so."""
    row = {"label_accuracy": 0.975, "variance_ratio": 0.8, "nearest_ratio": 1.1}
    report = {
        "reconstruction": {
            "psnr": 25.678,
            "images": 360,
            "code_usage": [0.5, 1.0],
            "code_usage_all": 1.0,
        },
        "validation": {"loss": 3.25, "loss_last": 3.5},
        "samples": {
            "classifier_accuracy_on_held_out": 0.98,
            "count": 1000,
            GUIDED: row,
            PLAIN: row,
        },
        "seconds": {"tokenizer": 100.0, "transformer": 200.0, "samples": 30.0, "total": 330.0},
    }
    out = quickstart.lines(report)
    assert out[0] == "reconstruction  PSNR 25.68 dB on 360 held-out images"
    assert out[1] == "codes used      50% 100% by scale, 100% over all scales"
    assert out[2] == "validation      loss 3.2500 over all scales, 3.5000 over the last"
    assert out[3] == "classifier      0.980 right on real held-out images"
    assert out[4].startswith(
        "1000 samples    0.975 as labeled, variance ratio 0.80, nearest-training ratio 1.10: def"
    )
    assert (
        out[6] == "time            5.5 minutes (tokenizer 100 s, transformer 200 s, samples 30 s)"
    )
    report["seconds"] |= {"transformer": None, "total": None}
    assert quickstart.lines(report)[6] == (
        "time            not known, resumed (tokenizer 100 s, "
        "transformer not known, resumed, samples 30 s)"
    )
