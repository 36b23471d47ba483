"""Next-scale prediction with weights by scale, and with random tokens in its inputs."""

import dataclasses

import jax
import numpy as np
import pytest

from helpers import small
from helpers.batches import token_batch
from var_jax.config import objective_keys
from var_jax.config.scales import Scales
from var_jax.errors import UserError
from var_jax.objectives.next_scale import ScalesVariant

TOTAL = small.SCALES.total


def objective(**changes):
    transformer = dataclasses.replace(small.TRANSFORMER, **changes)
    return small.next_scale(small.train_config("transformer", "", transformer=transformer))


def loss_of(trained, rng=None, variant=None):
    params = small.pipeline().params["transformer"]
    return trained.loss(params, trained.frozen, token_batch(), rng, variant=variant)


@pytest.mark.long
def test_scale_weights_weigh_the_loss_of_each_scale():
    """The loss is the scales' own losses, by their tokens and weights, over the mean weight of a
    token; the metrics stay without weights. Equal weights change nothing."""
    weights = (4.0, 0.0, 0.5)
    loss, metrics = loss_of(objective(scale_weights=weights))
    plain, plain_metrics = loss_of(objective())
    lengths = np.array(small.SCALES.lengths)
    share = lengths * weights / (lengths * weights).sum()
    np.testing.assert_allclose(loss, share @ np.asarray(plain_metrics["loss_scale"]), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_mean"], plain_metrics["loss_mean"], rtol=1e-6)
    np.testing.assert_allclose(loss_of(objective(scale_weights=(2, 2, 2)))[0], plain, rtol=1e-6)


def test_scale_weights_hold_while_scales_are_added():
    """In progressive training every scale has the weight that it has once all are trained."""
    weights = (4.0, 1.0, 0.5)
    loss, metrics = loss_of(objective(scale_weights=weights), variant=ScalesVariant(2))
    lengths = np.array(small.SCALES.lengths)
    share = lengths * weights / (lengths * weights).sum()
    expected = share[:2] @ np.asarray(metrics["loss_scale"])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_scale_weights_fit_the_tokenizer_of_the_run():
    """Their number is compared with the scales of the tokenizer that is read, not with those of the
    config file; with progressive training, steps of fewer scales still have their costs."""
    with pytest.raises(UserError, match="one number for each of the 3 scales 1,2,3x4"):
        objective(scale_weights=(1.0, 2.0))
    weighted, plain = objective(scale_weights=(1.0, 2.0, 3.0)), objective()
    for variant in (None, ScalesVariant(2)):
        assert weighted.flops_per_image(variant) == plain.flops_per_image(variant)


@pytest.mark.long
def test_flips_act_in_training_alone():
    """Without a random key, loss and metrics are those without flips; with one they are others, and
    the same again with the same key."""
    flipped, plain = objective(flip_share=0.5), objective()
    assert float(loss_of(flipped)[0]) == float(loss_of(plain)[0])
    key = jax.random.key(0)
    once, again, without = (float(loss_of(o, key)[0]) for o in (flipped, flipped, plain))
    assert once == again != without


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_weights": (0.0, 0.0, 0.0)}, "not all 0"),
        ({"scale_weights": (1.0, -1.0, 1.0)}, "0 or more"),
        ({"flip_share": 1.0}, "from 0 to below 1"),
    ],
)
def test_values_that_have_no_meaning_are_refused(changes, message):
    """The error names the key, its value, and what would be right."""
    with pytest.raises(UserError, match=message):
        dataclasses.replace(small.TRANSFORMER, **changes)


def test_other_objectives_refuse_the_keys():
    """`masked` predicts one map: weights of scales and flips of a history have no effect on it."""
    transformer = dataclasses.replace(
        small.TRANSFORMER, objective="masked", scales=Scales.parse("3x4"), flip_share=0.1
    )
    assert objective_keys.unused(transformer) == {"flip_share": 0.1}
