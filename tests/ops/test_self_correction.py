"""Random tokens in the history of teacher forcing, and the targets that correct them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import small
from var_jax.ops import self_correction, vq

SPANS = [small.SCALES.span(k) for k in range(len(small.SCALES))]


@pytest.fixture(scope="module")
def q() -> vq.Quantizer:
    """The small tokenizer's quantizer, with its residual convolutions."""
    params = small.pipeline().params["tokenizer"]["quantize"]
    arrays = (jnp.asarray(params[name]) for name in ("codebook", "phi_kernel", "phi_bias"))
    return vq.Quantizer(*arrays, scales=small.SCALES)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 16, (64, small.SCALES.total)).astype(np.int32)


def test_no_flips_are_teacher_forcing(q, tokens):
    """With a share of 0, inputs and targets are those of the tokens themselves, bit for bit."""
    corrected = self_correction.corrected_targets(q, tokens, jax.random.key(0), 0.0)
    np.testing.assert_array_equal(corrected.tokens, tokens)
    np.testing.assert_array_equal(corrected.inputs, vq.teacher_input(q, tokens))


def test_targets_are_the_codes_nearest_to_what_is_left(q, tokens):
    """The history that the inputs show is recovered from them scale by scale; where it is not the
    image's own, each target is the code nearest (in numpy) to what is left of the image's map."""
    inputs, targets = self_correction.corrected_targets(q, tokens, jax.random.key(1), 0.9)
    np.testing.assert_array_equal(targets[:, SPANS[0]], tokens[:, SPANS[0]])
    goal, codes = vq.decode(q, tokens)[-1], np.asarray(q.table)

    # The first scale has one token: the code whose input is the one that was given.
    choices = jnp.arange(16, dtype=jnp.int32)[:, None]
    first_maps = vq.accumulate(q, None, vq.lookup(q, choices), 0)
    expected_inputs = vq.area_tokens(q, first_maps, 1)
    shown = np.asarray(inputs)[:, : len(range(*SPANS[1].indices(small.SCALES.total)))]
    distance = np.abs(shown[:, None] - np.asarray(expected_inputs)[None]).max((2, 3))
    history = distance.argmin(axis=1)
    assert distance.min(axis=1).max() < 1e-6
    flawed = history != tokens[:, 0]
    assert 0 < flawed.sum() < len(tokens)

    f_hat = vq.accumulate(q, None, vq.lookup(q, jnp.asarray(history)[:, None]), 0)
    left = np.asarray(vq.area_tokens(q, goal - f_hat, 1))
    nearest = ((left[:, :, None] - codes) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(np.asarray(targets)[flawed, SPANS[1]], nearest[flawed])
    # A replacement that happens to be the token itself flaws nothing, and is quantized anew.
    own = np.asarray(targets)[~flawed, SPANS[1]]
    assert ((own == tokens[~flawed, SPANS[1]]) | (own == nearest[~flawed])).all()


def test_share_of_flips_is_uniform_up_to_its_largest(q):
    """Of images whose tokens are all 0, the first scale differs in half of the share times 15/16,
    within four standard errors."""
    tokens = np.zeros((4000, small.SCALES.total), np.int32)
    inputs, _ = self_correction.corrected_targets(q, tokens, jax.random.key(3), 0.4)
    own = vq.teacher_input(q, tokens[:1])
    span = len(range(*SPANS[1].indices(small.SCALES.total)))
    changed = np.abs(np.asarray(inputs - own))[:, :span].max((1, 2)) > 1e-6
    expected = 0.2 * 15 / 16
    assert abs(changed.mean() - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5
