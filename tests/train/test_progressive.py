"""Progressive training of the transformer: its variants, and the loss of the first scales."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import small
from helpers.batches import token_batch
from helpers.numerics import log_softmax
from var_jax.config.scales import Scales
from var_jax.config.train import OptimizerConfig
from var_jax.models.tokenizer import Tokenizer
from var_jax.models.transformer import Transformer
from var_jax.objectives import registry, token_losses
from var_jax.objectives.next_scale import ALL_SCALES, ScalesVariant

SPANS = [small.SCALES.span(k) for k in range(len(small.SCALES))]


@pytest.fixture(scope="module")
def batch():
    return token_batch()


@pytest.fixture(scope="module")
def params():
    return small.pipeline().params


@pytest.mark.long
def test_train_step_of_a_progressive_phase_sees_the_first_scales(params, batch):
    """Every token of the first scales keeps its weight in the mean over all 17, those of the newest
    scale times its share of a warm-up of four steps, or wholly where they are the first ones; the
    logits are those of the whole sequence, which later scales do not move. So is the gradient, by
    the whole loss with weights, and that of the absent scale's places is 0."""
    still = dataclasses.replace(
        small.TRANSFORMER, progressive=20, progressive_from=0, progressive_warmup=4
    )
    config = small.train_config("transformer", "", steps=40, transformer=still)
    tokens, labels = batch["tokens"], batch["label"]
    logits = small.pipeline().logits(tokens, labels)
    entropy = -np.take_along_axis(log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
    hits = logits.argmax(axis=-1) == tokens
    objective = small.next_scale(config)
    frozen = params["tokenizer"]
    inputs = Tokenizer(small.TOKENIZER).apply({"params": frozen}, tokens, method="teacher_input")

    def weighted(p, newest):
        logits = Transformer(still).apply({"params": p}, inputs, labels)
        result = token_losses.cross_entropy(logits, tokens)
        first, second = (jnp.sum(result[:, span], axis=1) for span in SPANS[:2])
        return jnp.mean(first + newest * second) / 17

    slope_by_hand = jax.jit(jax.grad(weighted))
    for since, steps in ((None, {7: 1.0}), (6, {6: 0.25, 7: 0.5, 9: 1.0, 30: 1.0})):
        variant = ScalesVariant(2, since)

        def loss(p, step, variant=variant):
            return objective.loss(p, objective.frozen, batch, None, variant=variant, step=step)

        compute = jax.jit(jax.value_and_grad(loss, has_aux=True))
        for step, newest in steps.items():
            (value, parts), slope = compute(params["transformer"], step)
            both = entropy[:, SPANS[0]].sum(1) + newest * entropy[:, SPANS[1]].sum(1)
            np.testing.assert_allclose(value, both.mean() / 17, rtol=1e-5)
            expected = slope_by_hand(params["transformer"], newest)
            for actual, reference in zip(
                jax.tree.leaves(slope), jax.tree.leaves(expected), strict=True
            ):
                size = float(jnp.abs(reference).max())
                np.testing.assert_allclose(actual, reference, rtol=0, atol=1e-4 * size + 1e-7)
        np.testing.assert_allclose(parts["loss_mean"], entropy[:, :5].mean(), rtol=1e-5)
        np.testing.assert_allclose(parts["accuracy_mean"], hits[:, :5].mean(), rtol=1e-5)
        by_scale = [entropy[:, span].mean() for span in SPANS[:2]]
        np.testing.assert_allclose(parts["loss_scale"], by_scale, rtol=1e-5)
        assert not {"loss_last", "accuracy_last"} & parts.keys()
        assert not np.asarray(slope["pos_embed"][SPANS[2]]).any()
        assert np.asarray(slope["pos_embed"][SPANS[1]]).any()


def test_variant_of_progressive_training_is_the_published_one():
    """The published schedule, step by step: `pg0` until the rate is warm, then a scale after the
    other by `round`, and all of them from the share `pg` on; the step's number alone decides,
    wherever a run resumes."""
    t = dataclasses.replace(
        small.TRANSFORMER, scales=Scales.parse("1,2,3,4,5,6"), progressive=0.5, progressive_from=2
    )
    config = small.train_config(
        "transformer",
        "",
        steps=60,
        transformer=t,
        optimizer=OptimizerConfig(warmup_steps=6),
        tokenizer=dataclasses.replace(small.TOKENIZER, scales=t.scales),
    )
    objective = registry.with_frozen_shapes(config)
    last, began = 5, 0
    previous = 2
    for done in range(60):
        if done <= 6:
            scale = 2
        elif done >= 60 * 0.5:
            scale = last
        else:
            scale = 2 + round((done - 6) / (60 * 0.5 - 6) * (last - 2))
        if scale != previous:
            previous, began = scale, done
        full, first = scale == last, scale == 2
        part = ScalesVariant(scale + 1, None if first else began)
        assert objective.variant(done) == (ALL_SCALES if full else part), done
    assert len({objective.variant(done) for done in range(60)}) == 4


def test_variant_of_a_plain_run_is_one():
    """Without progressive training every step has all scales, so that only one program is
    compiled."""
    config = small.train_config(
        "transformer", "", steps=60, optimizer=OptimizerConfig(warmup_steps=6)
    )
    objective = registry.with_frozen_shapes(config)
    assert {objective.variant(done) for done in range(60)} == {ALL_SCALES}
