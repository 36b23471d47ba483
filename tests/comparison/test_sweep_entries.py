"""`comparison.sweep_entries`: finished runs of a sweep, their costs, evaluations and losses."""

import dataclasses
import json

import pytest
from etils import epath

from var_jax.comparison import read_sources, sweep_entries
from var_jax.comparison.compared_run import Measured
from var_jax.config.model import ModelConfig, TokenizerConfig, TransformerConfig
from var_jax.config.scales import Scales
from var_jax.config.strict import plain
from var_jax.errors import UserError
from var_jax.models import flops

TOKENIZER = TokenizerConfig(
    scales=Scales.parse("4"),
    in_channels=1,
    channels=8,
    multipliers=(1, 2),
    norm_groups=4,
    z_channels=4,
)
TRANSFORMER = TransformerConfig(
    depth=1,
    width=8,
    heads=2,
    num_classes=3,
    z_channels=4,
    scales=Scales.parse("4"),
    objective="next_token",
)
LINES = [
    {"step": 50, "split": "val", "loss": 9.0},
    {"step": 100, "split": "val", "loss": 2.5, "loss_last": 2.5},
    {"step": 100, "split": "train", "loss": 2.0},
]
REPORT = {
    "features": {"network": "net"},
    "samples": {"count": 10},
    "reference": {"name": "r", "count": 20},
    "metrics": {
        "frechet_distance": {"value": 12.0, "ci95": [11.0, 13.0]},
        "kid": {"value": 0.5, "ci95": None},
        "inception_score": None,
    },
}


def write_run(directory, *, seed=0, state="done", stage="transformer", report=None, **changes):
    model = ModelConfig(TOKENIZER, dataclasses.replace(TRANSFORMER, **changes))
    config = {**plain(model), "stage": stage, "steps": 100, "batch_size": 4, "seed": seed}
    meta = {"params": {"total": 1000, "body": 700}, "flops_per_step": {"exact": 50.0}}
    directory.mkdir(parents=True)
    for name, content in (("config", config), ("meta", meta), ("status", {"state": state})):
        (directory / f"{name}.json").write_text(json.dumps(content))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    if report is not None:
        (directory / "evaluation.json").write_text(json.dumps(report))
    return model


def read(path):
    dropped, notes = [], []
    return sweep_entries.read(epath.Path(path), dropped, notes, {}), dropped, notes


def test_read_has_costs_of_config_and_qualities_of_the_evaluation(tmp_path):
    """Compute is the last step's, generation costs are those of the sampler's default, guided, and
    one pass per token; qualities have the evaluation's intervals, and the held-out loss is the last
    one."""
    model = write_run(tmp_path / "a", seed=3, report=REPORT)
    assert model.transformer is not None
    (tmp_path / "a" / "bench.json").write_text('{"images_per_s": 4.0}')
    ((run, seed),), dropped, notes = read(tmp_path)
    assert (seed, dropped, notes) == (3, [], [])
    assert run.objective == "next_token"
    assert run.costs == {
        "train_flops": 5000.0,
        "images_seen": 400.0,
        "generation_flops": flops.generation_flops(model.transformer, guided=True),
        "passes": 16.0,
        "seconds_per_image": 0.25,
    }
    assert run.quality == {
        "frechet_distance": Measured(12.0, (11.0, 13.0)),
        "kid": Measured(0.5, None),
        "loss": Measured(2.5, None),
        "loss_last": Measured(2.5, None),
    }


def test_read_names_seeds_alike_and_orders_apart(tmp_path):
    """Runs that differ in their seed alone have one name, so that they are averaged; an order of
    tokens is an objective of its own."""
    write_run(tmp_path / "a", seed=0, report=REPORT)
    write_run(tmp_path / "b", seed=1, report=REPORT)
    write_run(tmp_path / "c", report=REPORT, order="zcurve")
    runs, _, _ = read(tmp_path)
    names = {run.objective: run.run for run, _ in runs}
    assert set(names) == {"next_token", "next_token_zcurve"} and len(set(names.values())) == 2
    assert runs[0][0].run == runs[1][0].run


def test_read_leaves_out_unfinished_runs_and_tokenizers(tmp_path):
    """A run that trains, a tokenizer's run and one of damaged files are listed with the reason."""
    write_run(tmp_path / "a", report=REPORT)
    write_run(tmp_path / "b", state="running")
    write_run(tmp_path / "c", stage="tokenizer")
    write_run(tmp_path / "d")
    (tmp_path / "d" / "meta.json").write_text("{}")
    runs, dropped, _ = read(tmp_path)
    assert len(runs) == 1
    assert [name for name, _ in dropped] == ["b", "c", "d"]
    assert "running" in dropped[0][1] and "'tokenizer'" in dropped[1][1]


def test_read_warns_of_losses_alone(tmp_path):
    """Without an evaluation a note says how to make one."""
    write_run(tmp_path / "x" / "a")
    assert "only losses" in read(tmp_path / "x")[2][0]


@pytest.mark.parametrize("sources", [("x",), ("x/a", "x/b"), ("x/a", "y"), ("y", "x/a")])
def test_unequal_protocols_are_named_within_and_across_sources(tmp_path, sources):
    """Evaluations of 10 and of 11 images are named with a run of each, as their distances do not
    compare, whether they are of one sweep, of two workdirs or of a workdir and a sweep; those of
    one number are not."""
    other = {**REPORT, "samples": {"count": 11}}
    write_run(tmp_path / "x" / "a", report=REPORT)
    write_run(tmp_path / "x" / "b", report=other, depth=2)
    write_run(tmp_path / "y" / "c", report=other, depth=3)
    (note,) = read_sources.read([str(tmp_path / source) for source in sources]).notes
    assert "net, 10 images against 20 of r (as " in note
    assert "net, 11 images against 20 of r (as " in note
    equal = read_sources.read([str(tmp_path / source) for source in ("x/b", "y")])
    assert equal.notes == []


def test_read_gives_only_reasons_of_the_source_without_runs(tmp_path):
    """The line on a sweep without a finished run does not repeat what an earlier one left out."""
    write_run(tmp_path / "x" / "a", report=REPORT)
    write_run(tmp_path / "x" / "early", state="running")
    write_run(tmp_path / "y" / "late", state="failed")
    with pytest.raises(UserError) as caught:
        read_sources.read([str(tmp_path / "x"), str(tmp_path / "y")])
    assert "late: it is failed" in str(caught.value) and "early" not in str(caught.value)


def test_read_refuses_a_directory_without_runs(tmp_path):
    """A directory that is neither a sweep nor a workdir is a mistake that the line explains."""
    with pytest.raises(UserError, match="has no runs"):
        read(tmp_path)
