"""The entropy penalty against numpy, scipy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from helpers.quantizers import SCALES, make, normal
from var_jax.ops import codebook_entropy, vq


def entropies(p, weights):
    """Returns E[H(p)] and H(E[p]) of rows of probabilities."""
    weights = weights / weights.sum()
    return weights @ scipy.stats.entropy(p, axis=-1), scipy.stats.entropy(weights @ p)


@pytest.mark.parametrize("kind", ["euclidean", "cosine"])
def test_entropy_penalty_matches_scipy_for_every_chunk(kind):
    """The penalty is that of scipy's entropy for chunks of one position, of five and of all, with
    and without a mask."""
    codes, vectors, counted = (
        normal(0, 11, 3),
        normal(1, 2, 21, 3),
        np.random.default_rng(2).random((2, 21)) < 0.7,
    )
    if kind == "cosine":
        unit_codes, unit = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (codes, vectors))
        score = unit @ unit_codes.T
    else:
        score = -np.sum((vectors[..., None, :] - codes) ** 2, axis=-1)
    p = scipy.special.softmax(score.astype(np.float64) / 0.7, axis=-1).reshape(-1, 11)
    for mask in (None, counted):
        sure, average = entropies(p, np.ones(42) if mask is None else mask.reshape(-1) * 1.0)
        for chunk in (1, 2 * 11 * 5, 10**6):
            penalty = codebook_entropy.entropy_penalty(
                make(jnp.asarray(codes), kind), vectors, 0.7, mask, chunk
            )
            np.testing.assert_allclose(penalty, sure - average, rtol=1e-4, atol=1e-6)


def test_scale_entropy_penalty_is_the_mean_over_scales():
    """With a mask of images, those that do not count are left out of every scale."""
    codes, vectors, counted = (
        make(normal(0, 11, 3)),
        normal(1, 2, SCALES.total, 3),
        np.array([[True], [False]]),
    )
    spans = [SCALES.span(k) for k in range(len(SCALES))]
    for mask, rows in ((None, slice(None)), (counted, slice(1))):
        expected = [
            codebook_entropy.entropy_penalty(codes, vectors[rows, span], 0.7) for span in spans
        ]
        penalty = codebook_entropy.scale_entropy_penalty(codes, vectors, 0.7, mask)
        np.testing.assert_allclose(penalty, np.mean(expected), rtol=1e-5)


def test_entropy_penalty_gradient_matches_finite_differences():
    """Along one direction of codes and vectors, the derivative is the finite difference, forward
    and in reverse."""
    codes, vectors, direction = (
        normal(0, 7, 3),
        normal(1, 2, 5, 3),
        (normal(2, 7, 3), normal(3, 2, 5, 3)),
    )

    def penalty(codes, vectors):
        return codebook_entropy.entropy_penalty(make(codes), vectors, 1.0, chunk=2 * 7 * 2)

    _, slope = jax.jvp(penalty, (codes, vectors), direction)
    ahead, behind = (
        penalty(*(x + s * d for x, d in zip((codes, vectors), direction, strict=True)))
        for s in (1e-2, -1e-2)
    )
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-2, rtol=2e-2)
    gradients = jax.grad(penalty, argnums=(0, 1))(codes, vectors)
    by_reverse = sum(float(jnp.vdot(g, d)) for g, d in zip(gradients, direction, strict=True))
    np.testing.assert_allclose(by_reverse, slope, rtol=1e-4)


def test_entropy_penalty_of_bits_matches_that_of_their_codes():
    """The mean entropy is exact; the entropy of the mean is an upper bound, and exact where the
    bits are independent."""
    q, vectors = make(None, "bsq", channels=5), normal(1, 2, 21, 5)
    table = np.asarray(vq.code_vectors(q))

    def by_codes(vectors):
        unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        p = scipy.special.softmax(unit.reshape(-1, 5) @ table.T / 0.3, axis=-1)
        return entropies(p, np.ones(len(p)))

    sure, average = by_codes(vectors)
    penalty = float(codebook_entropy.entropy_penalty(q, vectors, 0.3))
    assert penalty < sure - average
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    bits = scipy.special.expit(2 * unit.reshape(-1, 5) / np.sqrt(5) / 0.3).mean(axis=0)
    np.testing.assert_allclose(
        penalty, sure - scipy.stats.bernoulli(bits).entropy().sum(), rtol=1e-4
    )
    every_sign = np.asarray(table, np.float32)[None]  # all corners in equal use: independent bits
    sure, average = by_codes(every_sign)
    np.testing.assert_allclose(
        codebook_entropy.entropy_penalty(q, every_sign, 0.3), sure - average, rtol=1e-4
    )
