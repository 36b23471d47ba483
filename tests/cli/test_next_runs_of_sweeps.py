"""`fit --next` of a sweep: `sweep` takes the overrides that it prints."""

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.scripts import load_module
from var_jax.cli.args import read_config
from var_jax.cli.main import main
from var_jax.config.strict import plain
from var_jax.models import flops
from var_jax.sweep import next_members, plan

SCALING = Path(__file__).parents[2] / "configs" / "scaling.py"


def finished_sweep(directory: Path, shared: float = 0.0):
    """Writes the files of the runs of `fashion`, trunks and branches, with planted losses.

    Args:
      shared: standard deviation of the log loss that the runs of one size have in common.
    """
    module = load_module(SCALING)
    runs = plan.expand(
        module.get_sweep("fashion"), lambda flags: read_config(f"{SCALING}:fashion", flags), "w"
    )
    rng = np.random.default_rng(0)
    for run in runs:
        config = run.config
        params = flops.param_count(config.transformer)["total"]
        tokens_per_step = config.batch_size * config.tokenizer.scales.total
        per_step = flops.train_flops_per_image(config.transformer) * config.batch_size
        tokens = tokens_per_step * config.steps
        common = shared * np.random.default_rng(params).normal()
        exact = 1.8 + 90 * params**-0.47 + 1400 * tokens**-0.55
        loss = exact * np.exp(1e-3 * rng.normal() + common)
        meta = {
            "params": {"total": params, "body": params},
            "tokens_per_step": tokens_per_step,
            "flops_per_step": per_step,
        }
        folder = directory / run.id
        folder.mkdir(parents=True)
        record = {"step": config.steps, "split": "val", "loss": loss}
        for name, content in (
            ("meta.json", meta),
            ("config.json", plain(config)),
            ("metrics.jsonl", record),
            ("status.json", {"state": "done"}),
        ):
            (folder / name).write_text(json.dumps(content))


@pytest.mark.long
def test_next_runs_of_a_table_are_those_of_the_sweep_that_it_is_of(tmp_path, capsys):
    """A table knows parameters alone: with the sweep's config its next runs become the overrides
    that the sweep's own directory gives, and a sweep of other sizes is refused by name."""
    finished_sweep(tmp_path / "sweep")
    options = ["--resamples", "0", "--forms", "none", "--next", "2e13"]
    directory = ["fit", str(tmp_path / "sweep"), "--out", str(tmp_path / "o"), *options]
    assert main([*directory, "--sweep", f"{SCALING}:fashion"]) == 0
    lines = ["run,params,tokens,compute,loss"]
    law = json.loads((tmp_path / "o" / "fit.json").read_text())["laws"]["loss~params+tokens"]
    compute = {}
    for folder in (tmp_path / "sweep").iterdir():
        meta = json.loads((folder / "meta.json").read_text())
        compute[folder.name] = meta["flops_per_step"] / meta["tokens_per_step"]
    for run, (params, tokens), loss in zip(law["run"], law["x"], law["loss"], strict=True):
        lines.append(f"{run},{params},{tokens},{compute[run] * tokens},{loss}")
    (tmp_path / "runs.csv").write_text("\n".join(lines))
    table = ["fit", str(tmp_path / "runs.csv"), "--out", str(tmp_path / "t"), *options]
    assert main([*table, "--sweep", f"{SCALING}:fashion"]) == 0
    proposed, of_table = (
        [run["overrides"] for run in json.loads((tmp_path / name).read_text())["next"]["runs"]]
        for name in ("o/fit.json", "t/fit.json")
    )
    assert proposed == of_table
    capsys.readouterr()
    other = SCALING.parent / "scaling_fashion.py"
    assert main([*table, "--sweep", f"{other}:sizes"]) == 2
    assert "the sweep has no run of" in capsys.readouterr().err
    assert main(["fit", str(tmp_path / "runs.csv"), "--out", "o", "--sweep", "x"]) == 2
    assert "--sweep goes with --next" in capsys.readouterr().err


def test_sweep_takes_the_next_runs_of_a_sweep_with_branches(tmp_path, capsys):
    """The overrides that `fit --next` gives for a sweep of trunks and branches, in a `get_sweep` of
    the same base, are runs of the dry run: as many, of the proposed sizes, tokens and FLOPs."""
    finished_sweep(tmp_path / "sweep")
    options = ["--resamples", "0", "--forms", "none", "--next", "2e13"]
    assert main(["fit", str(tmp_path / "sweep"), "--out", str(tmp_path / "o"), *options]) == 0
    proposed = json.loads((tmp_path / "o" / "fit.json").read_text())["next"]["runs"]
    overrides = [run["overrides"] for run in proposed]
    assert overrides and all("optimizer.cooldown_steps" in o for o in overrides)
    config = tmp_path / "next.py"
    config.write_text(
        f"import runpy\n\nscaling = runpy.run_path({str(SCALING)!r})\n\n"
        "def get_config(arg=''):\n    return scaling['get_config']('fashion')\n\n"
        f"def get_sweep(arg=''):\n    return {overrides!r}\n"
    )
    capsys.readouterr()
    sweep = ["sweep", "--config", str(config), "--workdir", str(tmp_path / "next"), "--dry-run"]
    assert main(sweep) == 0
    lines = capsys.readouterr().out.splitlines()
    distinct = {json.dumps(o, sort_keys=True) for o in overrides}
    assert len(lines) == len(distinct) + 2 and lines[-1].startswith("total")
    assert not (tmp_path / "next").exists()
    for run, override in zip(proposed, overrides, strict=True):
        tokens = override["steps"] * override["batch_size"] * 130
        assert abs(tokens / run["tokens"] - 1) < 0.01


@pytest.mark.long
def test_sizes_between_those_of_a_sweep_are_proposed_where_sizes_share_noise(tmp_path):
    """Runs of one size share most of their noise, so that with the sweep's config some next runs
    are of sizes that the sweep does not have: their overrides are a transformer of exactly the
    stated parameters, other than every size of the sweep, with a rate between both neighbors'.
    Without the config, whose keys would be unknown, all are of the sweep's sizes."""
    finished_sweep(tmp_path / "sweep", shared=0.01)
    options = ["--resamples", "0", "--forms", "none", "--next", "2e13"]
    for name, more in (("o", ()), ("c", ("--sweep", f"{SCALING}:fashion"))):
        out = ["--out", str(tmp_path / name)]
        assert main(["fit", str(tmp_path / "sweep"), *out, *options, *more]) == 0
    proposed, of_config = (
        json.loads((tmp_path / name / "fit.json").read_text())["next"]["runs"] for name in "oc"
    )
    sizes = {
        json.loads((folder / "meta.json").read_text())["params"]["total"]
        for folder in (tmp_path / "sweep").iterdir()
    }
    assert {run["params"] for run in proposed} <= sizes
    new = [run for run in of_config if "between" in run]
    assert new
    for run in new:
        flags = [f"--config.{key}={value}" for key, value in run["overrides"].items()]
        config = read_config(f"{SCALING}:fashion", flags)
        params = flops.param_count(config.transformer)["total"]
        assert params == run["params"]
        tokens = config.steps * config.batch_size * config.tokenizer.scales.total
        assert abs(tokens / run["tokens"] - 1) < 0.01
        assert all(abs(np.log(params / size)) > np.log(1.04) for size in sizes)
        ends = [
            json.loads((tmp_path / "sweep" / end["run"] / "config.json").read_text())
            for end in run["between"]
        ]
        rates = [end["optimizer"]["base_lr"] for end in ends]
        assert min(rates) <= config.optimizer.base_lr <= max(rates)


def test_new_size_trains_on_the_tokens_that_it_is_given_whatever_the_batches():
    """Two sizes with batches of 8 and 32: each size between them has the batch of the nearer one,
    and as many steps as the tokens take at that batch."""
    name = f"{SCALING}:fashion"
    family = [
        {"transformer.width": 32, "transformer.heads": 4, "batch_size": 8},
        {"transformer.width": 96, "transformer.heads": 12, "batch_size": 32},
    ]
    planned = plan.expand(family, lambda flags: read_config(name, flags), "w")
    further = next_members.further_sizes(planned, [])
    chosen = next_members.members(planned, [(size, 1e6) for size in further], further)
    assert {override["batch_size"] for override in chosen} == {8, 32}
    for override in chosen:
        assert abs(override["steps"] * override["batch_size"] * 130 / 1e6 - 1) < 0.01
