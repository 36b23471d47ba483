"""The comparison of ways to better samples: settings are chosen by rows that are not reported, the
best ways are combined, and all commands are ones that exist."""

import argparse
import importlib
import json

import pytest

from helpers.scripts import ROOT, load_script
from var_jax.cli.args import read_config
from var_jax.config import idle_keys
from var_jax.errors import Parser
from var_jax.studies.command_rows import CommandRows, TimeIsUp

script = load_script("better_samples")
# Distances of the reported samples by way; each interval is 10 wide on either side.
DISTANCES = {"ssg": 180, "neon": 150, "decoder": 170, "refiner": 195, "guidance": 260}


@pytest.fixture
def args(tmp_path):
    runs = tmp_path / "runs"
    return argparse.Namespace(
        base=tmp_path / "base", tokens=tmp_path / "tokens", runs=runs, features=["efficientnet"]
    )


@pytest.fixture
def commands(monkeypatch):
    """The commands that a study runs, which do nothing."""
    ran = []
    monkeypatch.setattr(script, "var_jax", lambda *words: ran.append([str(w) for w in words]))
    return ran


class Measured:
    """Rows with distances of our own choosing; `names` are those asked for."""

    def __init__(self):
        self.names = []

    def get(self, name, make):
        self.names.append(name)
        way, setting, num, seed = name.rsplit("_", 2)[0].split("_", 1) + name.rsplit("_", 2)[1:]
        value = DISTANCES.get(way, 200) - (setting in ("cfg1.5", "0.3", "-1", "one_pass"))
        ends = [value - 10, value + 10]
        return {"evaluation": {"metrics": {"frechet_distance": {"value": value, "ci95": ends}}}}


def test_study_reports_the_settings_that_other_rows_choose(args, commands):
    """Every setting of a way has a row of few samples; the best has the reported ones, with further
    seeds where it is below the base by more than the intervals; these ways are combined."""
    rows = Measured()
    script.Study(args, rows).run()
    reported = {name for name in rows.names if f"_{script.MANY}_" in name}
    chosen = {"base_cfg1.5", "ssg_0.3", "neon_-1", "decoder_tuned", "refiner_cfg1.5"}
    chosen |= {"guidance_one_pass", "longer_cfg1.5", "weights_cfg1.5", "flips_cfg1.5"}
    chosen |= {"together_neon_decoder"}
    assert {name.rsplit("_", 2)[0] for name in reported} == chosen
    seeds = {name.rsplit("_", 2)[0] for name in reported if name.endswith("seed2")}
    assert seeds == {"base_cfg1.5", "neon_-1", "decoder_tuned", "together_neon_decoder"}
    few = [name for name in rows.names if f"_{script.FEW}_" in name]
    assert len(set(few)) == 4 + 3 + 3 + 1 + 2 + 1 + 3 * 2


def test_commands_of_all_rows_are_ones_that_parse(args, commands, monkeypatch):
    """The options of every command exist, and no key of a config is without effect."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(script.json, "loads", lambda _: {})
    monkeypatch.setattr(script.Path, "read_text", lambda _: "")
    monkeypatch.setattr(script.Study, "_training_flops", lambda *_: 0.0)
    rows = Measured()
    known = rows.get
    monkeypatch.setattr(rows, "get", lambda name, make: (make(), known(name, make))[1])
    script.Study(args, rows).run()
    kinds = {"train", "tokenize", "generate", "evaluate", "merge"}
    assert {command[0] for command in commands} == kinds
    for name, *options in commands:
        parser = Parser()
        importlib.import_module(f"var_jax.cli.{name}").add_arguments(parser)
        parsed, rest = parser.parse_known_args(options)
        assert all(text.startswith("--config.") for text in rest)
        if name == "train":
            config = read_config(parsed.config, rest)
            idle_keys.refuse_flags(config, idle_keys.flag_keys(rest))
    references = {
        (command[command.index("--reference") + 1], str(script.FEW) in command[2])
        for command in commands
        if command[0] == "evaluate"
    }
    assert {name for name, _ in references} == {script.CHOOSING, script.REPORTED}


def test_scale_weights_are_those_of_hmar():
    """Of the published scales they are the published weights of whole scales, which sum to 1 there,
    divided by the number of tokens."""
    sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    published = (0.0247, 0.0642, 0.1150, 0.1379, 0.1402, 0.1329, 0.1208, 0.1054, 0.0882, 0.0709)
    expected = [w / side**2 / published[0] for w, side in zip(published, sides, strict=True)]
    assert script.scale_weights(sides) == pytest.approx(expected, rel=3e-3, abs=1e-4)


def test_command_rows_are_made_once_and_not_after_the_time(tmp_path):
    """A row that is there is read, by whatever machine it was made; a new one is not begun when the
    hours are over; a row that fails leaves no file."""
    rows = CommandRows(tmp_path / "rows", hours=1)
    assert rows.get("a", lambda: {"x": 1}) == {"x": 1}
    assert rows.get("a", lambda: {"x": 2}) == {"x": 1}
    assert json.loads((tmp_path / "rows" / "a.json").read_text()) == {"x": 1}
    over = CommandRows(tmp_path / "rows", hours=0)
    assert over.get("a", lambda: {"x": 2}) == {"x": 1}
    with pytest.raises(TimeIsUp, match="b"):
        over.get("b", lambda: {"x": 1})
    with pytest.raises(ZeroDivisionError):
        rows.get("c", lambda: {"x": 1 / 0})
    assert [path.name for path in (tmp_path / "rows").iterdir()] == ["a.json"]
