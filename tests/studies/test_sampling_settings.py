import json

import jax
import numpy as np
import pytest

from helpers import small, toy_network
from var_jax import Pipeline
from var_jax.evaluate import features
from var_jax.sampling.settings import PRESETS, Ramp, settings
from var_jax.studies import rows, sampling_settings

SHAPE = small.TOKENIZER.image_shape


class Sampler:
    """In place of `Pipeline.sample`: noise of the settings and of each image's index and label, for
    nothing."""

    def __init__(self, monkeypatch):
        self.calls = []
        monkeypatch.setattr(features, "load", lambda *_: toy_network.network())
        monkeypatch.setattr(
            Pipeline, "sample", lambda model, labels, **given: self.draw(labels, **given)
        )

    def draw(self, labels, first_index=0, as_uint8=False, then=None, **given):
        self.calls.append(
            {**given, "labels": list(map(int, labels)), "first_index": first_index, "then": then}
        )
        drawn = [
            np.random.default_rng([first_index + i, int(label), len(str(given))]).integers(
                0, 256, SHAPE, dtype=np.uint8
            )
            for i, label in enumerate(labels)
        ]
        return np.stack(drawn) if as_uint8 else np.stack(drawn) / np.float32(255)

    def measured(self):
        return [call for call in self.calls if len(call["labels"]) == 24]


@pytest.fixture
def sampler(monkeypatch):
    return Sampler(monkeypatch)


@pytest.fixture
def study(model_dir, digits_dir, tmp_path):
    def run(*options, model=model_dir):
        return sampling_settings.main(
            [
                "--model",
                str(model),
                "--reference",
                "digits:test[:40]",
                "--training",
                "digits:train[:80]",
                "--resize",
                "whole",
                "--data-dir",
                str(digits_dir),
                "--num",
                "24",
                "--resamples",
                "2",
                "--cache",
                "",
                "--speed-images",
                "3",
                "--out",
                str(tmp_path / "out"),
                *options,
            ]
        )

    run.out = tmp_path / "out"
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


def test_entries_vary_one_setting_about_the_base():
    rows = sampling_settings.entries(sampling_settings.PANELS, vocab=4096, scales=10)
    base = settings("fid", {})
    for panel, values in sampling_settings.VALUES.items():
        chosen = [entry.settings for entry in rows if entry.panel == panel]
        assert [entry[panel] for entry in chosen] == list(values) and base in chosen
        assert all({**entry, panel: base[panel]} == base for entry in chosen)
    presets = [entry for entry in rows if entry.panel == "preset"]
    assert {entry.label: entry.settings for entry in presets} == PRESETS
    assert [entry.who for entry in rows if entry.panel == "then"] == ["large", 9, 8, 7, "small"]
    assert [entry.who for entry in sampling_settings.entries(["then"], 4096, 3)] == [
        "large",
        2,
        1,
        "small",
    ]


def test_what_is_the_same_has_one_row():
    rows = sampling_settings.entries(sampling_settings.PANELS, vocab=512, scales=10)
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
        sampling_settings.PANELS
    )
    assert len({e.row for e in rows}) == len(rows) - (len(sampling_settings.PANELS) - 1)
    assert (
        sampling_settings.text("cfg", Ramp(1.5, 1.5)) == "1.5:1.5"
        and sampling_settings.text("temperature", 0.7) == "0.7"
    )


def test_contenders_take_turns():
    runs = []
    found = sampling_settings.alternating(
        {name: lambda name=name: runs.append(name) for name in "ab"}, 3
    )
    assert runs == list("ab" + "ababab") and {
        name: len(seconds) for name, seconds in found.items()
    } == {"a": 3, "b": 3}


def test_ratios_are_to_the_first(monkeypatch):
    monkeypatch.setattr(
        sampling_settings, "alternating", lambda *_: {"a": [4.0, 1.0, 2.0], "b": [1.0, 1.0, 9.0]}
    )
    found = sampling_settings.speed({}, 8, "a")["contenders"]
    assert (found["a"]["images_per_second"], found["b"]["images_per_second"]) == (4, 8)
    assert (found["a"]["ratio"], found["b"]["ratio"]) == (1, 2)


def test_a_study_goes_on_where_it_was(study, sampler, monkeypatch):
    """Rows that are there are not sampled again; the picture has a point at each row's value."""
    figures, image_of = [], rows.image_of
    monkeypatch.setattr(rows, "image_of", lambda figure: figures.append(figure) or image_of(figure))
    assert study("--what", "smooth") == 0
    found = json.loads((study.out / "effects.json").read_text())
    assert len(sampler.measured()) == 2 and len(found["rows"]) == 4
    assert sampler.calls[0]["labels"] == [i % 10 for i in range(24)] and {
        c["seed"] for c in sampler.calls
    } == {0}
    row = next(
        row for row in found["rows"].values() if row.get("settings", {}).get("smooth") == "on"
    )
    assert row["frechet_distance"]["counts"] == [24, 40] and row["agreement"]["count"] == 24
    assert found["rows"]["real images"]["agreement"]["count"] == 40

    assert study("--what", "preset,smooth") == 0  # "fid" is the base, which was in the first panel
    assert [call["top_k"] for call in sampler.measured()[2:]] == [0, 1] and len(
        sampler.measured()
    ) == 4
    before = (study.out / "effects.json").read_bytes()
    assert study("--what", "preset,smooth") == 0
    assert len(sampler.measured()) == 4 and (study.out / "effects.json").read_bytes() == before
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


def test_a_kill_loses_the_row_it_was_at(study, sampler, monkeypatch):
    drawn = sampler.draw
    monkeypatch.setattr(
        sampler,
        "draw",
        lambda labels, **given: (
            (_ for _ in ()).throw(KeyboardInterrupt)
            if len(sampler.calls) == 1
            else drawn(labels, **given)
        ),
    )
    assert study("--what", "smooth") == 130
    assert len(json.loads((study.out / "effects.json").read_text())["rows"]) == 2
    monkeypatch.setattr(sampler, "draw", drawn)
    assert study("--what", "smooth") == 0
    assert [call["smooth"] for call in sampler.measured()] == [False, True]


def test_two_models(study, sampler, other_dir, capsys):
    assert study("--small", str(other_dir), "--what", "then") == 0
    assert [call.get("from_scale") for call in sampler.measured()] == [None, 2, 1, None]
    assert all((call["then"] is None) == ("from_scale" not in call) for call in sampler.calls)
    found = json.loads((study.out / "effects.json").read_text())
    contenders = found["rows"]["speed"]["contenders"]
    assert [name.partition(":")[0] for name in contenders] == [
        "cfg 1.5, top_k off, top_p 0.96, temperature 1, smooth off",
        "small from scale 2",
        "small from scale 1",
        "small alone",
    ]
    large, *_, alone = contenders.values()
    assert large["ratio"] == 1 and len(alone["seconds"]) == 3
    assert "images a second" in (study.out / "effects.md").read_text()
    assert (
        study("--what", "smooth") == 0
    )  # without the small model, whose old times are not beside the new ones
    found = json.loads((study.out / "effects.json").read_text())
    assert len(found["rows"]["speed"]["contenders"]) == 2
    capsys.readouterr()
    assert study("--what", "smooth", model=other_dir) == 2
    assert "effects.json is of other settings: model: " in capsys.readouterr().err


def test_mistakes(study, capsys, tmp_path):
    for options, told in (
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
        assert told in err and err.count("\n") == 1
    assert not study.out.exists()
