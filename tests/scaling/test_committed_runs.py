"""The rows of the Fashion-MNIST sweep that are committed, against its fit and its config."""

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.scripts import load_module
from var_jax.config.train import from_config_dict
from var_jax.models import flops
from var_jax.scaling import table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "scaling_fashion"


@pytest.mark.parametrize("column", ["loss", "loss_last", "err_mean", "err_last"])
def test_committed_runs_are_the_points_of_the_committed_fit(column):
    """Each of the 21 rows has the inputs and the loss of its point in fit.json."""
    law = json.loads((RESULTS / "fit.json").read_text())["laws"][f"{column}~params+tokens"]
    points = {run: (*x, y) for run, x, y in zip(law["run"], law["x"], law["loss"], strict=True)}
    runs = table.read(str(RESULTS / "runs.csv"))
    assert len(runs) == len(points) == 21
    for i, run in enumerate(runs.run):
        row = (runs["params"][i], runs["tokens"][i], runs[column][i])
        np.testing.assert_allclose(row, points[run], rtol=1e-12)


def test_committed_runs_have_the_exact_flops_of_their_sizes():
    """Compute is tokens times the exact FLOPs per token of the size, from the config."""
    module = load_module(ROOT / "configs" / "scaling.py")
    flops_per_token = {}
    for depth, width in module.FASHION_SIZES:
        config = module.get_config("fashion")
        config.transformer.depth = depth
        config.transformer.width = width
        config.transformer.heads = width // module.FASHION_HEAD
        run = from_config_dict(config)
        params = flops.param_count(run.transformer)["total"]
        per_image = flops.train_flops_per_image(run.transformer)
        flops_per_token[params] = per_image / run.tokenizer.scales.total
    runs = table.read(str(RESULTS / "runs.csv"))
    expected = [flops_per_token[params] for params in runs["params"]] * runs["tokens"]
    np.testing.assert_allclose(runs["compute"], expected, rtol=1e-12)


def test_runs_of_the_longer_sweep_are_those_of_its_config():
    """The committed rows have the budgets, the parameters and the exact FLOPs of the config's
    sweep, a row for each of its runs."""
    module = load_module(ROOT / "configs" / "scaling_fashion.py")
    expected = []
    for overrides in module.get_sweep("sizes"):
        config = module.get_config("sizes")
        config.transformer.depth = overrides["transformer.depth"]
        config.transformer.width = overrides["transformer.width"]
        config.transformer.heads = overrides["transformer.heads"]
        run = from_config_dict(config)
        tokens = overrides["steps"] * run.batch_size * run.tokenizer.scales.total
        per_token = flops.train_flops_per_image(run.transformer) / run.tokenizer.scales.total
        params = flops.param_count(run.transformer)["total"]
        expected.append((params, tokens, per_token * tokens))
    runs = table.read(str(ROOT / "docs/results/scaling_fashion_long/runs.csv"))
    actual = sorted(zip(runs["params"], runs["tokens"], runs["compute"], strict=True))
    np.testing.assert_allclose(actual, sorted(expected), rtol=1e-12)
