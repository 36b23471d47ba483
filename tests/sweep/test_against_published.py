"""`var-jax status D --against published`: a run's records beside the public log's."""

import json

import pytest
from PIL import Image

from var_jax.cli.main import main
from var_jax.config.model import TokenizerConfig, TransformerConfig
from var_jax.config.strict import plain
from var_jax.config.train import DataConfig, TrainConfig
from var_jax.errors import UserError
from var_jax.scaling import published_log
from var_jax.sweep.against_published import Comparison

STEPS = 1669  # of an epoch at the published batch


@pytest.fixture
def workdir(tmp_path):
    """A run of six epochs at the log's losses less 0.1, with one evaluation."""
    config = TrainConfig(
        stage="transformer",
        batch_size=768,
        data=DataConfig("imagenet2012"),
        tokenizer=TokenizerConfig(),
        transformer=TransformerConfig(depth=16, num_classes=1000),
    )
    (tmp_path / "config.json").write_text(json.dumps(plain(config)))
    losses = {1: 7.55, 5: 6.678}
    records = [
        {"step": step, "split": "train", "loss": losses.get(step // STEPS, 7.0)}
        for step in range(100, 6 * STEPS + 100, 100)
    ]
    held_out = {"loss": 6.7, "accuracy_mean": 0.03, "accuracy_last": 0.04}
    records.append({"step": 10_000, "split": "val", **held_out})
    lines = [json.dumps(record) for record in records]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 10']))
    (tmp_path / "status.json").write_text(json.dumps({"step": 10_100, "state": "done"}))
    return tmp_path


def test_comparison_has_the_rows_that_the_run_has_passed(workdir):
    """The run's mean over the images of a row's epoch stands beside the log's; rows that it has
    not passed are left out, and a cut-off last line does no harm."""
    first, header, *rows, accuracy = Comparison(workdir).lines()
    assert "nearest row of the log: epoch 5" in first and "this run's is 6.678" in first
    assert header.split() == ["epoch", "log", "this", "run", "difference"]
    assert [row.split() for row in rows] == [
        ["1", "7.650", "7.550", "-0.100"],
        ["5", "6.778", "6.678", "-0.100"],
    ]
    assert "accuracy 3.00%" in accuracy and "the log's after 10 passes: 3.28%, 4.83%" in accuracy


def test_comparison_of_a_young_run_takes_its_latest_losses(workdir):
    """Before the first row's end the run has no mean to compare, and the nearest row is the
    first."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()[:3]
    (workdir / "metrics.jsonl").write_text("\n".join(lines))
    (only,) = Comparison(workdir).lines()
    assert "0.18 passes" in only and "epoch 1 " in only and "this run's latest is 7.000" in only


def test_status_draws_both(workdir, capsys):
    """The picture lies in the workdir, or where --out says; the table of the run comes first."""
    assert main(["status", str(workdir), "--against", "published"]) == 0
    with Image.open(workdir / "against_published.png") as picture:
        assert min(picture.size) > 300
    output = capsys.readouterr().out
    assert output.startswith("run") and "against_published.png" in output
    other = workdir / "other.png"
    assert main(["status", str(workdir), "--against", "published", "--out", str(other)]) == 0
    assert other.exists()


def test_comparison_refuses_other_codes_and_scales(workdir):
    """Both sides of every difference are named."""
    values = json.loads((workdir / "config.json").read_text())
    for section in ("tokenizer", "transformer"):
        values[section]["vocab_size"] = 1024
    (workdir / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="vocab_size is 1024 and that of the log 4096"):
        Comparison(workdir)


def test_comparison_refuses_a_tokenizer(workdir):
    """Its losses are not those of tokens."""
    values = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps({**values, "stage": "tokenizer"}))
    with pytest.raises(UserError, match="stage is 'tokenizer'; the log is that of a transformer"):
        Comparison(workdir)


def test_comparison_refuses_what_is_no_run(tmp_path, workdir):
    """A sweep's directory has no config.json; a run without records has nothing to compare."""
    with pytest.raises(UserError, match="takes the workdir of one run"):
        Comparison(tmp_path / "sweep")
    (workdir / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has no records of losses yet"):
        Comparison(workdir)


def test_out_needs_against(workdir, capsys):
    """Without a comparison there is no picture to write."""
    assert main(["status", str(workdir), "--out", "a.png"]) == 2
    assert "--out is a.png; it must be given with --against" in capsys.readouterr().err


def test_published_log_has_imagenets_epochs():
    """The number of steps that the tests take for an epoch is the log's."""
    assert -(-published_log.IMAGES // published_log.BATCH) == STEPS
