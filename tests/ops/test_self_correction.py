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
    """Image by image and scale by scale, with the same random numbers: from an image's first flip
    on, each target is the code nearest (in numpy) to what is left of the image's map, before it
    the image's own token; inputs are those of the flawed history."""
    key, share = jax.random.key(1), 0.3
    inputs, targets = self_correction.corrected_targets(q, tokens, key, share)
    share_key, flip_key, code_key = jax.random.split(key, 3)
    shares = jax.random.uniform(share_key, (len(tokens), 1), maxval=share)
    flips = np.asarray(jax.random.uniform(flip_key, tokens.shape) < shares)
    random = np.asarray(jax.random.randint(code_key, tokens.shape, 0, 16, np.int32))
    codes, goals = np.asarray(q.table), vq.decode(q, tokens)[-1]
    first_flaw = set()
    for i in range(len(tokens)):
        f_hat, flawed, shown = jnp.zeros_like(goals[:1]), False, []
        for k, span in enumerate(SPANS):
            expected = tokens[i, span]
            if flawed:
                left = np.asarray(vq.area_tokens(q, goals[i : i + 1] - f_hat, k))[0]
                expected = ((left[:, None] - codes) ** 2).sum(-1).argmin(-1)
            np.testing.assert_array_equal(targets[i, span], expected)
            history = np.where(flips[i, span], random[i, span], expected)
            if not flawed and flips[i, span].any():
                flawed = True
                first_flaw.add(k)
            f_hat = vq.accumulate(q, f_hat, vq.lookup(q, jnp.asarray(history)[None]), k)
            shown.append(f_hat)
        own = vq.scale_inputs(q, shown[:-1], 1)[0]
        np.testing.assert_allclose(inputs[i], own, rtol=0, atol=1e-5)
    assert first_flaw == {0, 1, 2}


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
