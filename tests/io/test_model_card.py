"""The card of a published model: what it takes from the model's directory."""

import json

from etils import epath

from var_jax.config.model import ModelConfig, TokenizerConfig
from var_jax.io import model_card


def test_read_figures_are_the_last_evaluation_of_a_run(tmp_path):
    """Steps of training and a line that a crash cut off are no evaluations; without any there are
    no figures, and a report comes before them."""
    directory = epath.Path(tmp_path)
    assert model_card.read_figures(directory) is None
    records = [
        {"step": 1, "split": "val", "loss": 3.0},
        {"step": 2, "split": "val", "loss": 2.5, "loss_scale": [2.0, 3.0]},
        {"step": 3, "split": "train", "loss": 1.0},
    ]
    lines = [*map(json.dumps, records), '{"step": 4, "spl']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    figures = model_card.read_figures(directory)
    assert figures is not None and figures.rows == [("step", 2), ("loss", 2.5)]
    (tmp_path / "report.json").write_text('{"a": {"b": 1.5, "c": [1]}, "d": NaN, "e": true}')
    figures = model_card.read_figures(directory)
    assert figures is not None and figures.rows == [("a.b", 1.5)]


def test_card_names_the_command_of_its_figures(tmp_path):
    """Beside a run's figures is the command line of its meta.json and beside a report's the
    report's own; where none was recorded, the card says so."""
    directory = epath.Path(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 2, "split": "val", "loss": 2.5}))
    config = ModelConfig(tokenizer=TokenizerConfig())

    def card() -> str:
        figures = model_card.read_figures(directory)
        return model_card.text("owner/name", config, 7, license="mit", figures=figures)

    assert "The command that produced them was not recorded." in card()
    (tmp_path / "meta.json").write_text('{"command": "var-jax train --workdir r"}')
    assert "```\nvar-jax train --workdir r\n```\n\n| figure | value |" in card()
    (tmp_path / "report.json").write_text('{"command": "var-jax quickstart", "a": 1.5}')
    assert "```\nvar-jax quickstart\n```" in card() and "var-jax train" not in card()


def test_find_grid_is_the_newest_of_a_run(tmp_path):
    """The quickstart's own grid comes before those of a run, of which the last step's is taken."""
    directory = epath.Path(tmp_path)
    assert model_card.find_grid(directory) is None
    (tmp_path / "samples").mkdir()
    for name in ("step_0000002.png", "step_0000010.png", "note.png"):
        (tmp_path / "samples" / name).touch()
    assert model_card.find_grid(directory) == directory / "samples" / "step_0000010.png"
    (tmp_path / "samples.png").touch()
    assert model_card.find_grid(directory) == directory / "samples.png"
