import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.ops import vq
from var_jax.ops.scales import Scales


def make(scales="1,2,3", count=1, cosine=False, ratio=0.5, seed=0):
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=s).astype(np.float32) for s in [(32, 6), (count, 3, 3, 6, 6), (count, 6)]]
    return vq.Quantizer(*map(jnp.asarray, (arrays[0], arrays[1] * 0.1, arrays[2] * 0.1)), scales=Scales.parse(scales),
                        phi_ratio=ratio, cosine=cosine)


@pytest.mark.parametrize("scales, count, expected", [
    (10, 4, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]), (7, 4, [0, 0, 1, 2, 2, 3, 3]), (3, 4, [0, 2, 3]),
    (5, 1, [0] * 5), (6, 6, [0, 1, 2, 3, 4, 5]), (1, 1, [0])])
def test_which_phi_serves_which_scale(scales, count, expected):
    assert vq.phi_index(scales, count) == expected


def test_nearest_code_is_the_brute_force_one():
    q = make()
    z = jax.random.normal(jax.random.key(1), (7, 5, 6))
    distance = np.sum((np.asarray(z, np.float64)[..., None, :] - np.asarray(q.codebook, np.float64)) ** 2, axis=-1)
    np.testing.assert_array_equal(vq.nearest_code(q, z), distance.argmin(axis=-1))


def test_cosine_search_ignores_lengths_but_adds_the_raw_code():
    q = make(cosine=True)
    longer = q.replace(codebook=q.codebook * jnp.linspace(0.1, 10, 32)[:, None])
    z = jax.random.normal(jax.random.key(1), (7, 6))
    np.testing.assert_array_equal(vq.nearest_code(q, z), vq.nearest_code(longer, z * 3))
    tokens = jnp.zeros((1, 14), jnp.int32)
    assert not np.allclose(vq.decode(q, tokens)[-1], vq.decode(longer, tokens)[-1])


def test_encode_maps_are_those_that_decode_rebuilds_and_teacher_input_averages():
    q = make("1,2,3x4")
    feature = jax.random.normal(jax.random.key(2), (2, 3, 4, 6))
    tokens, totals = vq.encode(q, feature)
    for ours, theirs in zip(totals, vq.decode(q, tokens), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    inputs = vq.teacher_input(q, tokens)
    assert inputs.shape == (2, 16, 6)
    np.testing.assert_allclose(inputs[:, :4], vq.area_tokens(q, totals[0], 1), atol=1e-6)
    np.testing.assert_allclose(inputs[:, 4:], vq.area_tokens(q, totals[1], 2), atol=1e-6)


def test_later_scales_lower_the_error_when_codes_can():
    q = make("1,2,4", ratio=0.0)
    q = q.replace(codebook=jnp.concatenate([q.codebook, jnp.zeros((1, 6))]))  # nothing need get worse
    feature = jax.random.normal(jax.random.key(3), (8, 4, 4, 6))
    errors = [float(jnp.mean((feature - t) ** 2)) for t in vq.encode(q, feature)[1]]
    assert errors[0] > errors[1] > errors[2]


def test_vq_loss_sends_the_commitment_to_the_feature_and_the_rest_to_the_codes():
    q, feature = make(), jax.random.normal(jax.random.key(4), (2, 3, 3, 6))

    def loss(feature, codebook, beta):
        tokens, totals = vq.encode(q.replace(codebook=codebook), feature)
        return vq.vq_loss(feature, totals, beta)

    d_feature, d_codes = jax.grad(loss, argnums=(0, 1))(feature, q.codebook, 0.25)
    totals = vq.encode(q, feature)[1]
    by_hand = sum(2 * 0.25 * (feature - t) / feature.size for t in totals) / len(totals)
    np.testing.assert_allclose(d_feature, by_hand, atol=1e-6)
    assert float(jnp.abs(d_codes).max()) > 0
    d_feature, _ = jax.grad(loss, argnums=(0, 1))(feature, q.codebook, 0.0)
    assert float(jnp.abs(d_feature).max()) == 0


def test_code_counts():
    counts = vq.code_counts(Scales.parse("1,2"), jnp.array([[3, 0, 0, 1, 2]]), 4)
    np.testing.assert_array_equal(counts, [[0, 0, 0, 1], [2, 1, 1, 0]])
