"""The study of sampling settings."""

import json

import jax
import numpy as np
import pytest

from helpers import small
from var_jax import Pipeline
from var_jax.sampling.settings import PRESETS, Ramp, settings
from var_jax.studies import compared_settings, sampling_report, sampling_settings

SHAPE = small.TOKENIZER.image_shape


class FakeSample:
    """Replaces `Pipeline.sample` at no cost: noise that depends on the settings and on each image's
    index and label."""

    def __init__(self, monkeypatch):
        self.calls = []
        monkeypatch.setattr(
            Pipeline, "sample", lambda model, labels, **settings: self.sample(labels, **settings)
        )

    def sample(self, labels, first_index=0, as_uint8=False, then=None, **settings):
        labels = [int(label) for label in labels]
        self.calls.append({**settings, "labels": labels, "first_index": first_index, "then": then})
        images = []
        for i, label in enumerate(labels):
            random = np.random.default_rng([first_index + i, label, len(str(settings))])
            images.append(random.integers(0, 256, SHAPE, dtype=np.uint8))
        return np.stack(images) if as_uint8 else np.stack(images) / np.float32(255)

    def measured(self):
        """Returns the calls of rows, not those of speeds."""
        return [call for call in self.calls if len(call["labels"]) == 24]


@pytest.fixture
def fake_sample(monkeypatch):
    return FakeSample(monkeypatch)


@pytest.fixture
def study(run_study):
    def run(*options, **arguments):
        defaults = ("--resamples", "2", "--speed-images", "3")
        return run_study(sampling_settings, *defaults, *options, num=24, **arguments)

    run.out = run_study.out
    return run


@pytest.fixture(scope="module")
def other_dir(tmp_path_factory):
    """Another model of the same tokenizer."""
    model = small.pipeline()
    changed = jax.tree.map(lambda x: x * 0.9, model.params["transformer"])
    Pipeline(model.config, {**model.params, "transformer": changed}).save(
        tmp_path_factory.mktemp("other") / "model"
    )
    return tmp_path_factory.getbasetemp() / "other0" / "model"


def test_entries_vary_one_setting_of_the_base():
    """In every panel all other settings are the base's, and the base is among the values."""
    rows = compared_settings.entries(compared_settings.PANELS, vocab=4096, scales=10)
    base = settings("fid", {})
    for panel, values in compared_settings.VALUES.items():
        chosen = [entry.settings for entry in rows if entry.panel == panel]
        assert [entry[panel] for entry in chosen] == list(values) and base in chosen
        assert all({**entry, panel: base[panel]} == base for entry in chosen)
    presets = [entry for entry in rows if entry.panel == "preset"]
    assert {entry.label: entry.settings for entry in presets} == PRESETS
    assert [entry.sampler for entry in rows if entry.panel == "then"] == ["large", 9, 8, 7, "small"]
    assert [entry.sampler for entry in compared_settings.entries(["then"], 4096, 3)] == [
        "large",
        2,
        1,
        "small",
    ]


def test_entries_of_equal_settings_share_a_row():
    """The base is in every panel and is measured once; a top_k beyond the vocabulary is off."""
    rows = compared_settings.entries(compared_settings.PANELS, vocab=512, scales=10)
    assert [e.label for e in rows if e.panel == "top_k"] == [
        "off",
        "10",
        "50",
        "200",
        "200:10",
        "10:200",
    ]
    base = {e.row for e in rows if e.label in ("1.5", "fid", "large alone")}
    assert len(base) == 1 and {e.panel for e in rows if e.row in base} == set(
        compared_settings.PANELS
    )
    assert len({e.row for e in rows}) == len(rows) - (len(compared_settings.PANELS) - 1)
    assert (
        compared_settings.text("cfg", Ramp(1.5, 1.5)) == "1.5:1.5"
        and compared_settings.text("temperature", 0.7) == "0.7"
    )


def test_time_in_turn_alternates_contenders():
    """Each runs once for nothing, and then all in turn, so that a slow moment slows all."""
    runs = []
    result = sampling_settings.time_in_turn(
        {name: lambda name=name: runs.append(name) for name in "ab"}, 3
    )
    assert runs == list("ab" + "ababab") and {
        name: len(seconds) for name, seconds in result.items()
    } == {"a": 3, "b": 3}


def test_speed_is_the_median_relative_to_the_base(monkeypatch):
    """The rate is eight images over the median time, here 2 s and 1 s, and the ratio is that to the
    rate of the base setting."""
    monkeypatch.setattr(
        sampling_settings, "time_in_turn", lambda *_: {"a": [4.0, 1.0, 2.0], "b": [1.0, 1.0, 9.0]}
    )
    result = sampling_settings.speed({}, 8, "a")["contenders"]
    assert (result["a"]["images_per_second"], result["b"]["images_per_second"]) == (4, 8)
    assert (result["a"]["ratio"], result["b"]["ratio"]) == (1, 2)


@pytest.mark.long
def test_study_measures_missing_rows_alone(study, fake_sample, monkeypatch):
    """Rows of an earlier run are kept, whichever panel they were of; a run without new rows changes
    no byte; the picture has a point at each row's value."""
    figures, image_of = [], sampling_report.image_of
    monkeypatch.setattr(
        sampling_report, "image_of", lambda figure: figures.append(figure) or image_of(figure)
    )
    assert study("--what", "smooth") == 0
    parsed = json.loads((study.out / "effects.json").read_text())
    assert len(fake_sample.measured()) == 2 and len(parsed["rows"]) == 4
    assert fake_sample.calls[0]["labels"] == [i % 10 for i in range(24)] and {
        c["seed"] for c in fake_sample.calls
    } == {0}
    row = next(
        row for row in parsed["rows"].values() if row.get("settings", {}).get("smooth") == "on"
    )
    assert row["frechet_distance"]["counts"] == [24, 40] and row["agreement"]["count"] == 24
    assert parsed["rows"]["real images"]["agreement"]["count"] == 40

    assert study("--what", "preset,smooth") == 0  # "fid" is the base, which was in the first panel
    assert [call["top_k"] for call in fake_sample.measured()[2:]] == [0, 1] and len(
        fake_sample.measured()
    ) == 4
    before = (study.out / "effects.json").read_bytes()
    assert study("--what", "preset,smooth") == 0
    assert len(fake_sample.measured()) == 4 and (study.out / "effects.json").read_bytes() == before
    tables = (study.out / "effects.md").read_text()
    assert tables.count("| preset |") == tables.count("| smooth |") == 1 and "| cfg |" not in tables
    assert tables.count("**fid**") == tables.count("**off**") == 1 and "| greedy |" in tables
    points = {
        axes.get_title(): [float(bar.lines[0].get_ydata()[0]) for bar in axes.containers]
        for axes in figures[-1].axes[:2]
    }
    assert {panel: len(heights) for panel, heights in points.items()} == {"preset": 3, "smooth": 2}
    values = [
        row["frechet_distance"]["value"]
        for row in json.loads(before)["rows"].values()
        if "settings" in row
    ]
    assert {round(height, 6) for heights in points.values() for height in heights} == {
        round(value, 6) for value in values
    }


def test_study_interrupted_loses_one_row(study, fake_sample, monkeypatch):
    """The next run measures the row that was interrupted, and not the one before it."""
    sample = fake_sample.sample

    def interrupted(labels, **settings):
        if len(fake_sample.calls) == 1:
            raise KeyboardInterrupt
        return sample(labels, **settings)

    monkeypatch.setattr(fake_sample, "sample", interrupted)
    assert study("--what", "smooth") == 130
    assert len(json.loads((study.out / "effects.json").read_text())["rows"]) == 2
    monkeypatch.setattr(fake_sample, "sample", sample)
    assert study("--what", "smooth") == 0
    assert [call["smooth"] for call in fake_sample.measured()] == [False, True]


@pytest.mark.long
def test_study_of_two_models(study, fake_sample, other_dir, capsys):
    """The small model continues after each number of scales; without it, speeds are those of the
    large one alone; another model's rows are refused."""
    assert study("--small", str(other_dir), "--what", "then") == 0
    assert [call.get("keep_scales") for call in fake_sample.measured()] == [None, 2, 1, None]
    assert all((call["then"] is None) == ("keep_scales" not in call) for call in fake_sample.calls)
    parsed = json.loads((study.out / "effects.json").read_text())
    contenders = parsed["rows"]["speed"]["contenders"]
    assert [name.partition(":")[0] for name in contenders] == [
        "cfg 1.5, top_k off, top_p 0.96, temperature 1, smooth off",
        "small from scale 2",
        "small from scale 1",
        "small alone",
    ]
    large, *_, alone = contenders.values()
    assert large["ratio"] == 1 and len(alone["seconds"]) == 3
    assert "| images/s |" in (study.out / "effects.md").read_text()
    assert (
        study("--what", "smooth") == 0
    )  # without the small model, whose old times are not beside the new ones
    parsed = json.loads((study.out / "effects.json").read_text())
    assert len(parsed["rows"]["speed"]["contenders"]) == 2
    capsys.readouterr()
    assert study("--what", "smooth", model=other_dir) == 2
    assert "effects.json is of other settings: model: " in capsys.readouterr().err


def test_study_mistakes_are_one_line(study, capsys, tmp_path):
    """The line names the option and the value, and nothing is written."""
    for options, message in (
        (["--what", "cfgg"], "unknown setting 'cfgg' in --what; did you mean 'cfg'"),
        (["--what", "then"], "--small is not given"),
        (["--num", "2"], "--num is 2"),
        (["--resamples", "1"], "--resamples is 1"),
        (["--small", str(tmp_path / "no")], "no model"),
        (["--num", "81"], "--num is 81; it must be at most that of the training images, 80"),
        (["--nothing"], "unrecognized arguments: --nothing"),
    ):
        assert study(*options) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    assert not study.out.exists()
