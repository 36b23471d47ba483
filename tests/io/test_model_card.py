"""The card of a published model: what it takes from the model's directory."""

import json

from etils import epath

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
