"""Initial codes and candidates for dead ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.quantizers import SCALES, codes_of_data, make, normal
from var_jax.ops import codebook_init, codebook_revival, vq


def test_candidates_are_balanced_over_scales_and_distinct():
    """40 of 84 vectors leave none of the first scale's out; over 900 keys, each scale gives the
    first candidate equally often, within 5 standard errors."""
    vectors = np.arange(4 * 21, dtype=np.float32).reshape(4, 21, 1)
    indices = np.arange(4 * 21).reshape(4, 21)
    rows = np.asarray(codebook_init.candidates(vectors, jax.random.key(0), 40, SCALES))
    sampled = rows[:, 0].astype(int)
    assert len(set(sampled)) == 40
    assert set(indices[:, 0]) <= set(sampled)
    first = jax.vmap(lambda key: codebook_init.candidates(vectors, key, 1, SCALES)[0, 0])(
        jax.random.split(jax.random.key(1), 900)
    )
    by_scale = np.bincount(SCALES.level_ids[np.asarray(first).astype(int) % 21], minlength=3)
    assert np.abs(by_scale - 300).max() < 5 * np.sqrt(900 * 2 / 9)


def test_candidates_follow_the_scale_weights():
    """Weights are 1 / perplexity of the usage: with 2, 4 and 4 codes in equal use, the first scale
    gives half of the candidates."""
    usage = np.zeros((3, 8), np.float32)
    usage[0, :2], usage[1, 2:6], usage[2, 4:] = 1 / 2, 1 / 4, 1 / 4
    weights = jnp.asarray(codebook_revival.scale_weights(usage))
    np.testing.assert_allclose(weights, [1 / 2, 1 / 4, 1 / 4], rtol=1e-5)
    vectors = np.arange(4 * 21, dtype=np.float32).reshape(4, 21, 1)

    def first_candidate(key):
        return codebook_init.candidates(vectors, key, 1, SCALES, scale_weights=weights)[0, 0]

    first = jax.vmap(first_candidate)(jax.random.split(jax.random.key(1), 900))
    by_scale = np.bincount(SCALES.level_ids[np.asarray(first).astype(int) % 21], minlength=3)
    assert np.abs(by_scale - [450, 225, 225]).max() < 5 * np.sqrt(900 / 4)


def test_sampled_init_takes_all_of_few_vectors_and_noisy_copies():
    """Of 10 vectors for 25 codes, each is taken once, and the others are different copies within 6
    standard deviations of the noise."""
    vectors = normal(0, 10, 3)
    codes = np.asarray(codebook_init.sampled_init(vectors, jax.random.key(0), 25))
    np.testing.assert_array_equal(np.sort(codes[:10], axis=0), np.sort(vectors, axis=0))
    assert len(np.unique(codes, axis=0)) == 25
    nearest = np.linalg.norm(codes[10:, None] - vectors, axis=-1).min(axis=1)
    assert nearest.min() > 0 and nearest.max() < 6 * 0.1 * vectors.std(axis=0).max()
    as_many = np.asarray(codebook_init.sampled_init(vectors, jax.random.key(0), 10))
    np.testing.assert_array_equal(np.sort(as_many, axis=0), np.sort(vectors, axis=0))


def test_kmeans_init_moves_codes_to_the_means_of_their_clusters():
    """At convergence, each code is the mean of the vectors nearest to it, and their error is below
    that of the sampled codes it started from."""
    vectors = normal(1, 400, 4)
    start = np.asarray(codebook_init.sampled_init(vectors, jax.random.key(0), 8))
    codes = np.asarray(codebook_init.kmeans_init(vectors, jax.random.key(0), 8, iterations=200))
    errors, start_errors = (np.sum((vectors[:, None] - c) ** 2, axis=-1) for c in (codes, start))
    assert errors.min(axis=1).sum() < 0.8 * start_errors.min(axis=1).sum()
    means = [vectors[errors.argmin(axis=1) == i].mean(axis=0) for i in range(8)]
    np.testing.assert_allclose(codes, means, atol=1e-4)
    few = codebook_init.kmeans_init(vectors[:5], jax.random.key(0), 8)
    np.testing.assert_array_equal(
        few, codebook_init.sampled_init(vectors[:5], jax.random.key(0), 8)
    )


def test_equal_initial_codes_are_one_of_the_vectors():
    """All 16 codes are the same row, and it occurs among the given vectors."""
    vectors = normal(0, 2, 21, 3)
    codes = np.asarray(codebook_init.initial_codes(vectors, jax.random.key(0), 16, SCALES, "equal"))
    assert codes.shape == (16, 3) and len(np.unique(codes, axis=0)) == 1
    assert (vectors == codes[0]).all(axis=-1).any()


@pytest.mark.parametrize("how", ["sampled", "kmeans"])
def test_initial_codes_represent_features_far_from_the_model_codes(how):
    """Features around 5 and codes around -5: nearly all initial codes are in use, and the error is
    below 30 % of what it was."""
    feature = 5 + 3 * normal(0, 32, 4, 4, 3)
    q, quantize = make(jnp.asarray(normal(1, 16, 3) * 0.1 - 5)), jax.jit(vq.quantize)
    codes = codes_of_data(q, jnp.asarray(feature), jax.random.key(0), how)
    before, after = quantize(q, feature), quantize(q.replace(codebook=codes), feature)
    errors = [float(jnp.mean((x.f_hats[-1] - feature) ** 2)) for x in (before, after)]
    assert errors[1] < 0.3 * errors[0]
    assert [len(np.unique(x.tokens)) >= 15 for x in (before, after)] == [False, True]
