"""L2 normalization and its gradient, alone and in each place that normalizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.config.scales import Scales
from var_jax.ops import attention, codebook_entropy, vq
from var_jax.ops.normalize import l2_norm, l2_normalize
from var_jax.pretrained import perceptual

SCALES = Scales.parse("1,2")


def quantizer(codes: jax.Array) -> vq.Quantizer:
    width = codes.shape[-1]
    return vq.Quantizer(
        codes, jnp.zeros((1, 3, 3, width, width)), jnp.zeros((1, width)), SCALES, codes="cosine"
    )


def qk_norm(x):
    return attention.normalize(x[None, :, None])


def cosine_entropy(x):
    codes = jnp.eye(3, x.shape[-1])
    return codebook_entropy.entropy_penalty(quantizer(codes), x[None], temperature=0.1)


def binary_entropy(x):
    bits = quantizer(x).replace(codebook=None, codes="bsq")
    return codebook_entropy.entropy_penalty(bits, x[None], temperature=0.1)


PLACES = {
    "plain": l2_normalize,
    "norm": l2_norm,
    "qk_norm": qk_norm,
    "entropy of cosine codes": cosine_entropy,
    "entropy of binary codes": binary_entropy,
    "perceptual distance": perceptual._unit,
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_l2_normalize_has_gradient_zero_at_a_zero_vector(place):
    """A zero vector among others gets the gradient 0, and the others get theirs, finite.

    The weights are random, so that no gradient is 0 by symmetry.
    """
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(5, 4)), jnp.float32).at[2].set(0)
    weights = random.normal(size=jax.eval_shape(place, x).shape)
    gradient = np.asarray(jax.grad(lambda x: jnp.sum(place(x) * weights))(x))
    assert np.isfinite(gradient).all()
    assert (gradient[2] == 0).all()
    assert (np.abs(gradient[[0, 1, 3, 4]]).max(axis=-1) > 1e-4).all()


def test_l2_normalize_divides_by_the_norm():
    """Away from zero the result is x / |x| of numpy, and its gradient is orthogonal to x."""
    x = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(l2_normalize(x), unit, rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(l2_normalize(x) * jnp.arange(3.0)))(x)
    np.testing.assert_allclose(np.sum(gradient * x, axis=-1), 0, atol=1e-6)


def test_l2_normalize_keeps_floor_and_constant():
    """A vector shorter than the floor is divided by the floor, and `added` is added to the norm."""
    short = jnp.array([[3e-8, 4e-8]])
    np.testing.assert_allclose(l2_normalize(short, floor=1e-6), short / 1e-6, rtol=1e-6)
    np.testing.assert_allclose(
        l2_normalize(jnp.array([[3.0, 4.0]]), floor=0, added=5), [[0.3, 0.4]]
    )
