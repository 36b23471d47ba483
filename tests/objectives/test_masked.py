"""Masked prediction's loss and metrics, and whole runs of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import masked, small
from helpers.runs import assert_resumes_bit_for_bit
from var_jax.config import idle_keys
from var_jax.config.train import LossConfig
from var_jax.errors import UserError
from var_jax.ops import mask_schedule
from var_jax.train import step

BATCH = 8


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "tokens": random.integers(0, 16, (BATCH, masked.TOKENS)).astype(np.int32),
        "label": random.integers(0, small.CLASSES, BATCH).astype(np.int32),
        "mask": np.array([True] * 6 + [False] * 2),
    }


def test_loss_is_the_mean_cross_entropy_of_masked_tokens(batch):
    """The loss is computed here from the logits of the same masks, with the smoothed target of each
    masked token and without the visible ones."""
    config = masked.train_config("", loss=LossConfig(label_smoothing=0.1))
    config = dataclasses.replace(config, transformer=masked.transformer(class_dropout=0.0))
    objective, params = masked.objective(config), masked.params()["transformer"]
    rng = jax.random.key(4)
    loss, metrics = objective.loss(params, objective.frozen, batch, rng)

    mask_rng, _ = jax.random.split(rng)
    is_masked = np.asarray(mask_schedule.random_masks(mask_rng, BATCH, masked.TOKENS))
    inputs = np.where(is_masked, masked.MASK, batch["tokens"])
    log_p = jax.nn.log_softmax(masked.pipeline().logits(inputs, batch["label"]))
    target = 0.9 * jax.nn.one_hot(batch["tokens"], 16) + 0.1 / 16
    losses_by_hand = -np.sum(np.asarray(target * log_p), axis=-1)
    assert float(loss) == pytest.approx(losses_by_hand[is_masked].mean(), rel=1e-5)
    assert metrics["loss"] == loss
    hits = np.argmax(np.asarray(log_p), axis=-1) == batch["tokens"]
    assert float(metrics["accuracy_mean"]) == pytest.approx(hits[is_masked].mean(), rel=1e-5)


def test_loss_ignores_visible_logits(batch):
    """Its gradient by the logits is zero where tokens are visible, and nowhere else."""
    objective, params = masked.objective(masked.train_config("")), masked.params()["transformer"]
    rng = jax.random.key(1)
    mask_rng, _ = jax.random.split(rng)
    is_masked = np.asarray(mask_schedule.random_masks(mask_rng, BATCH, masked.TOKENS))
    logits_of = objective._logits

    def loss(offset):
        objective._logits = lambda *args: logits_of(*args) + offset
        return objective.loss(params, objective.frozen, batch, rng)[0]

    slopes = np.abs(jax.grad(loss)(jnp.zeros((BATCH, masked.TOKENS, 16)))).max(axis=-1)
    assert (slopes[is_masked] > 0).all() and (slopes[~is_masked] == 0).all()


def test_held_out_metrics_are_of_the_fixed_masks(batch):
    """Metrics are computed here over the rows that count: "loss_mean" over all masked tokens,
    "loss_mask" over those of each mask."""
    objective = masked.objective(masked.train_config(""))
    params = masked.params()["transformer"]
    evaluate = jax.jit(step.make_eval_step(objective))
    sums = jax.tree.map(np.asarray, evaluate(params, batch, objective.frozen))
    metrics = objective.summarize({k: v for k, v in sums.items() if k != "images"}, 6)

    by_mask, counts = [], []
    for mask in mask_schedule.fixed_masks(4, masked.TOKENS):
        inputs = np.where(mask, masked.MASK, batch["tokens"])[:6]
        log_p = np.asarray(jax.nn.log_softmax(masked.pipeline().logits(inputs, batch["label"][:6])))
        of_tokens = np.take_along_axis(log_p, batch["tokens"][:6, :, None], axis=2)[..., 0]
        by_mask.append(-of_tokens[:, mask].mean())
        counts.append(mask.sum())
    np.testing.assert_allclose(metrics["loss_mask"], by_mask, rtol=1e-5)
    assert metrics["loss"] == metrics["loss_mean"]
    assert metrics["loss_mean"] == pytest.approx(np.average(by_mask, weights=counts), rel=1e-5)
    assert metrics["loss_with_class_dropout"] != metrics["loss_mean"]


@pytest.mark.long
def test_run_resumes_bit_for_bit(digits_dir, tmp_path, monkeypatch):
    """A run that SIGTERM stops goes on by the same command, with the same masks, as if nothing had
    happened; it has metrics, pictures and a whole model directory."""
    model_dir = tmp_path / "model"
    masked.pipeline().save(model_dir)
    config = masked.train_config(
        digits_dir, tokenizer_dir=str(model_dir), init_from=str(model_dir), steps=3
    )
    assert_resumes_bit_for_bit(config, tmp_path, monkeypatch)
    assert list((tmp_path / "whole" / "samples").glob("*.png"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"order": "zcurve"}, "transformer.order=zcurve"),
        ({"class_conditioning": "start_token"}, "transformer.class_conditioning=start_token"),
        ({"mask": "markov"}, "transformer.mask=markov"),
        ({"progressive": 0.5, "progressive_from": 0}, "transformer.progressive=0.5"),
    ],
)
def test_config_names_keys_that_masked_prediction_has_no_use_for(changes, words):
    """A key that only other objectives read is refused in one line with its value and this
    objective's name."""
    config = masked.train_config("", transformer=masked.transformer(**changes))
    with pytest.raises(UserError, match=words) as caught:
        idle_keys.refuse(config)
    assert "'masked'" in str(caught.value) and "\n" not in str(caught.value)


def test_config_refuses_a_tokenizer_of_several_maps():
    """The error names the scales that are given and the single map that would do."""
    with pytest.raises(UserError, match="tokenizer.scales is 1,2,3x4; .*one token map.*3x4"):
        masked.transformer(scales=small.SCALES)
