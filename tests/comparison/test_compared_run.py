"""`comparison.compared_run`: what the name of a quality says."""

import re
from pathlib import Path

import pytest

from var_jax.comparison import compared_run
from var_jax.comparison.compared_run import ComparedRun, Comparison, Measured
from var_jax.evaluate import against_statistics, feature_networks, readings, samples


def evaluated() -> set[str]:
    """Names of all metrics that `evaluate` writes: of samples, of reconstructions and of further
    networks, whose names are the keys of the networks."""
    networks = re.findall(r'key="(\w+)"', Path(feature_networks.__file__).read_text())
    assert len(networks) >= 2
    named = {*samples.CI95_METHODS, *against_statistics.METRICS, *readings.FIXED, *networks}
    return named | {feature_networks.CMMD}


def test_direction_is_known_of_all_metrics_of_evaluate():
    """What is better agrees with the line on how to read the metric, and none counts as the units
    of a model's own tokens."""
    for name in evaluated():
        direction = compared_run.direction(name)
        assert direction != "unknown", name
        assert not compared_run.has_own_units(name), name
        if reading := readings.FIXED.get(name):
            assert reading.startswith("lower") == (direction == "lower"), name
    assert compared_run.direction("fd_dinov2") == compared_run.direction("cmmd") == "lower"


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        *((name, "lower") for name in ("loss", "loss_last", "val_loss", "test/loss", "Valid Loss")),
        *((name, "lower") for name in ("nll", "test_nll", "bpd", "perplexity", "val_ppl")),
        *((name, "lower") for name in ("cross_entropy", "bits_per_dim", "err_mean", "val_err")),
        ("val_accuracy", "share"),
        ("log_likelihood", "unknown"),
        ("elbo", "unknown"),
    ],
)
def test_comparable_takes_no_losses_of_strangers(name, direction):
    """Usual names of likelihoods and losses count as a model's own units, with or without a
    split before them."""
    runs = [
        ComparedRun(objective, "a", {"train_flops": 1.0}, {name: Measured(1.0, None)})
        for objective in ("masked", "flow")
    ]
    assert compared_run.direction(name) == direction
    assert not compared_run.comparable(Comparison(runs), name, ("masked", "flow"))


def test_direction_ignores_a_split_before_a_distance():
    """A distance and a share of images compare objectives whatever the split is."""
    for name, direction in (("test_fid", "lower"), ("val_recall", "share"), ("fid", "lower")):
        assert compared_run.direction(name) == direction
        assert not compared_run.has_own_units(name)
