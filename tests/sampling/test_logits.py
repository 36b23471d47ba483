"""Filters, guidance, samples and smooth codes of logits, against numpy and values by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.sampling.guidance import guide
from var_jax.sampling.logits import filter_logits, sample, smooth_codes


def published_keep(logits, top_k, top_p):
    """The published rule in numpy, token by token: top-k by threshold, then top-p by ascending
    cumulative sum."""
    logits = logits.astype(np.float64).copy()
    if top_k:
        logits[logits < np.sort(logits)[-top_k]] = -np.inf
    if top_p:
        order = np.argsort(logits)
        p = np.exp(logits[order] - logits.max())
        removed = np.cumsum(p / p.sum()) <= 1 - top_p
        removed[-1] = False
        logits[order[removed]] = -np.inf
    return np.isfinite(logits)


@pytest.mark.parametrize("top_k", [0, 1, 5, 50])
@pytest.mark.parametrize("top_p", [0, 0.3, 0.96])
def test_filter_keeps_what_the_published_rule_keeps(top_k, top_p):
    """The codes that remain are those of the published loop over sorted logits, for every
    combination of both filters."""
    logits = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32) * 3
    remaining = np.isfinite(filter_logits(jnp.asarray(logits), top_k, top_p or None))
    np.testing.assert_array_equal(remaining, [published_keep(row, top_k, top_p) for row in logits])


@pytest.mark.parametrize(("top_k", "top_p"), [(3, None), (2, 0.5), (0, 0.6)])
def test_equal_logits_at_the_threshold_and_signed_zeros(top_k, top_p):
    """Logits that equal the threshold are all kept, and 0 and -0 count as equal.

    The rows include infinities and numbers at the ends of float32.
    """
    logits = np.array(
        [
            [2.0, 1.0, 1.0, 1.0, -np.inf],
            [0.0, -0.0, -1.0, -2.0, -1.0],
            [-5.0, -5.0, -5.0, -5.0, -5.0],
            [3e38, -3e38, 1e-40, -1e-40, 0.0],
        ],
        np.float32,
    )
    remaining = np.isfinite(filter_logits(jnp.asarray(logits), top_k, top_p))
    expected = {
        (3, None): [[1, 1, 1, 1, 0], [1, 1, 1, 0, 1], [1] * 5, [1, 0, 1, 1, 1]],
        (2, 0.5): [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1] * 5, [1, 0, 0, 0, 0]],
        (0, 0.6): [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1] * 5, [1, 0, 0, 0, 0]],
    }
    np.testing.assert_array_equal(remaining, np.array(expected[top_k, top_p], bool))


def test_filters_sort_nothing():
    """No compiled program has a sort or a top-k, which would be slow on TPUs."""
    logits = jnp.zeros((2, 5, 64))
    for top_k, top_p in ((1, None), (9, None), (9, 0.9), (0, 0.9)):
        compiled = (
            jax.jit(filter_logits, static_argnums=1).lower(logits, top_k, top_p).compile().as_text()
        )
        assert " sort(" not in compiled and "topk(" not in compiled.lower()


def test_guidance_is_linear_and_off_at_zero():
    """(1 + t) conditional - t unconditional, worked out for t = 0 and t = 2."""
    logits = jnp.array([[[1.0, 2.0]], [[0.5, 3.0]]])
    np.testing.assert_allclose(guide(logits, 0.0), [[[1, 2]]])
    np.testing.assert_allclose(guide(logits, 2.0), [[[2, 0]]])


def test_samples_follow_the_softmax_and_an_image_has_its_own_stream():
    """Frequencies of 32,000 samples are the probabilities, and an image's tokens are the same when
    it is sampled alone."""
    keys = jax.random.split(jax.random.key(0), 64)
    logits = jnp.log(jnp.array([0.1, 0.2, 0.7]))
    tokens = sample(keys, jnp.broadcast_to(logits, (64, 500, 3)))
    share = np.bincount(np.asarray(tokens).reshape(-1), minlength=3) / tokens.size
    np.testing.assert_allclose(share, [0.1, 0.2, 0.7], atol=0.01)
    alone = sample(keys[5:6], jnp.broadcast_to(logits, (1, 500, 3)))
    np.testing.assert_array_equal(alone[0], tokens[5])


def test_sample_is_the_categorical_of_jax():
    """With the same key per image, tokens are those of `jax.random.categorical`, bit for bit."""
    keys = jax.random.split(jax.random.key(0), 3)
    logits = 2 * jax.random.normal(jax.random.key(1), (3, 5, 64))
    expected = jax.vmap(jax.random.categorical)(keys, logits)
    np.testing.assert_array_equal(sample(keys, logits), expected)


def test_smooth_codes_sharpen_from_a_mix_to_a_choice():
    """With a codebook of unit vectors the result is the mixing weights: they sum to 1, grow sharper
    towards the last scale, and are 0 for codes that a filter removed."""
    keys = jax.random.split(jax.random.key(0), 8)
    logits = jax.random.normal(jax.random.key(1), (8, 4, 16))
    codebook = jnp.eye(16)
    first, last = (smooth_codes(keys, logits, codebook, progress) for progress in (0.0, 1.0))
    np.testing.assert_allclose(first.sum(axis=-1), 1, rtol=1e-5)
    assert float(last.max(axis=-1).mean()) > float(first.max(axis=-1).mean())
    filtered = jnp.where(jnp.arange(16) < 3, logits, -jnp.inf)
    assert float(smooth_codes(keys, filtered, codebook, 0.5)[..., 3:].max()) == 0
