"""Codebook usage against numpy, scipy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from var_jax.config.scales import Scales
from var_jax.ops import codebook


def test_code_counts_are_per_scale():
    """The counts of a map of one token and of one of four are those counted by hand."""
    counts = codebook.code_counts(Scales.parse("1,2"), jnp.array([[3, 0, 0, 1, 2]]), 4)
    np.testing.assert_array_equal(counts, [[0, 0, 0, 1], [2, 1, 1, 0]])


def test_code_counts_leave_out_tokens_that_do_not_count():
    """A mask may have one value per image, or one per token."""
    scales, tokens = Scales.parse("1,2"), jnp.array([[3, 0, 0, 1, 2], [1, 1, 1, 1, 1]])
    by_image = codebook.code_counts(scales, tokens, 4, jnp.array([[True], [False]]))
    np.testing.assert_array_equal(by_image, [[0, 0, 0, 1], [2, 1, 1, 0]])
    by_token = codebook.code_counts(scales, tokens, 4, tokens != 0)
    np.testing.assert_array_equal(by_token, [[0, 1, 0, 1], [0, 5, 1, 0]])


def test_code_counts_of_a_large_vocabulary_are_by_the_lowest_bits():
    """24 bits are counted in 65,536 bins, in which tokens of equal lowest 16 bits fall together."""
    tokens = jnp.array([[2**16 + 3, 3, 5, 2**20 + 5, 2**24 - 1]])
    counts = codebook.code_counts(Scales.parse("1,2"), tokens, 2**24)
    assert counts.shape == (2, codebook.count_bins(2**24)) == (2, 2**16)
    assert [int(counts[1, code]) for code in (3, 5, -1)] == [1, 2, 1]
    assert counts[0, 3] == 1 and counts.sum() == 5


def test_codes_used_and_perplexity():
    """Perplexity is exp of scipy's entropy, in numpy as in a program; 1 where nothing was
    counted."""
    counts = np.array([[5, 0, 3, 1], [4, 4, 4, 4], [0, 9, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(codebook.codes_used(counts), [3, 4, 1, 0])
    expected = [np.exp(scipy.stats.entropy(row)) for row in counts[:3]]
    np.testing.assert_allclose(codebook.perplexity(counts), [*expected, 1.0], rtol=1e-12)
    traced = jax.jit(codebook.perplexity)(counts)
    np.testing.assert_allclose(traced, [*expected, 1.0], rtol=1e-5)


def test_usage_metrics_are_per_scale_and_over_all_scales():
    """Of 4 codes, 1 is in use at the first scale, 2 at the second, and 3 at both together."""
    metrics = codebook.usage_metrics(np.array([[2, 0, 0, 0], [0, 1, 1, 0]]))
    assert metrics["code_usage"] == [0.25, 0.5] and metrics["code_usage_all"] == 0.75
    np.testing.assert_allclose(metrics["perplexity"], [1, 2])
    np.testing.assert_allclose(
        metrics["perplexity_all"], np.exp(scipy.stats.entropy([0.5, 0.25, 0.25]))
    )


def test_collapsed_scales_have_few_codes_for_their_tokens():
    """A scale is compared with the most codes that its tokens could use, so that 40 codes of 40
    tokens are no collapse and 40 codes of 4000 tokens are one."""
    counts = np.zeros((6, 1000), np.int64)
    counts[0, :40] = 1  # 40 of 40 tokens
    counts[1, :40] = 100  # 40 codes of 1000
    counts[2, :400] = 100
    counts[3, :400], counts[3, 0] = 1, 10**7  # many codes, but one of them nearly always
    counts[4, 0] = 1  # one token can use one code only
    assert codebook.collapsed(counts, 0.1) == [1, 3]
    assert codebook.collapsed(counts, 0.5) == [1, 2, 3]
    assert codebook.collapsed(counts, 0.0, perplexity_floor=0.0) == []
