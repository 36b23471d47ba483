"""The multi-scale residual quantizer against its definition in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.config.scales import Scales
from var_jax.errors import UserError
from var_jax.ops import vq


def make(scales="1,2,3", count=1, codes="euclidean", ratio=0.5, seed=0):
    rng = np.random.default_rng(seed)
    arrays = [
        rng.normal(size=s).astype(np.float32) for s in [(32, 6), (count, 3, 3, 6, 6), (count, 6)]
    ]
    q = vq.Quantizer(
        *map(jnp.asarray, (arrays[0], arrays[1] * 0.1, arrays[2] * 0.1)),
        scales=Scales.parse(scales),
        phi_ratio=ratio,
        codes=codes,
    )
    return q.replace(codebook=None) if codes == "bsq" else q


@pytest.mark.parametrize(
    "scales, count, expected",
    [
        (10, 4, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),
        (7, 4, [0, 0, 1, 2, 2, 3, 3]),
        (3, 4, [0, 2, 3]),
        (5, 1, [0] * 5),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (1, 1, [0]),
    ],
)
def test_phi_index_matches_the_published_ticks(scales, count, expected):
    """With 4 convolutions over 10 scales there are ties, which float32 would break otherwise."""
    assert vq.phi_index(scales, count) == expected


def test_nearest_code_matches_brute_force():
    """The chosen code has the least squared distance of all codes, computed in float64 in numpy."""
    q = make()
    z = jax.random.normal(jax.random.key(1), (7, 5, 6))
    distance = np.sum(
        (np.asarray(z, np.float64)[..., None, :] - np.asarray(q.codebook, np.float64)) ** 2, axis=-1
    )
    np.testing.assert_array_equal(vq.nearest_code(q, z), distance.argmin(axis=-1))


def test_cosine_codes_search_by_direction_and_add_the_raw_code():
    """Codes of other lengths win the same searches, and decode to other maps."""
    q = make(codes="cosine")
    longer = q.replace(codebook=q.codebook * jnp.linspace(0.1, 10, 32)[:, None])
    z = jax.random.normal(jax.random.key(1), (7, 6))
    np.testing.assert_array_equal(vq.nearest_code(q, z), vq.nearest_code(longer, z * 3))
    tokens = jnp.zeros((1, 14), jnp.int32)
    assert not np.allclose(vq.decode(q, tokens)[-1], vq.decode(longer, tokens)[-1])


def test_quantize_decode_and_teacher_input_accumulate_the_same_maps():
    """The maps that encoding builds are those that decoding rebuilds from the tokens, for all
    scales or leading ones alone, and those that the transformer's inputs are averages of."""
    q = make("1,2,3x4")
    feature = jax.random.normal(jax.random.key(2), (2, 3, 4, 6))
    tokens, f_hats, _ = vq.quantize(q, feature)
    for num_scales in (1, 2, 3):
        decoded = vq.decode(q, tokens[:, : q.scales.offsets[num_scales]])
        assert len(decoded) == num_scales
        for f_hat, decoded_f_hat in zip(f_hats, decoded, strict=False):
            np.testing.assert_allclose(f_hat, decoded_f_hat, atol=1e-5)
    inputs = vq.teacher_input(q, tokens)
    assert inputs.shape == (2, 16, 6)
    np.testing.assert_allclose(inputs[:, :4], vq.area_tokens(q, f_hats[0], 1), atol=1e-6)
    np.testing.assert_allclose(inputs[:, 4:], vq.area_tokens(q, f_hats[1], 2), atol=1e-6)


def test_accumulate_adds_a_scale_for_active_images_alone():
    """The map grows by `upsample_and_phi` of the codes where an image is active, and stays where it
    is not; without a map before it, the update is the map."""
    q = make()
    codes = jax.random.normal(jax.random.key(0), (2, 4, 6))
    f_hat = jax.random.normal(jax.random.key(1), (2, 3, 3, 6))
    update = vq.upsample_and_phi(q, codes, 1)
    np.testing.assert_array_equal(vq.accumulate(q, None, codes, 1), update)
    np.testing.assert_array_equal(vq.accumulate(q, f_hat, codes, 1), f_hat + update)
    half = vq.accumulate(q, f_hat, codes, 1, active=jnp.array([True, False]))
    np.testing.assert_array_equal(half, jnp.stack([f_hat[0] + update[0], f_hat[1]]))


def test_quantize_lowers_the_error_with_every_scale():
    """With a zero code among the codes, and without phi, no scale can make the error larger."""
    q = make("1,2,4", ratio=0.0)
    q = q.replace(codebook=jnp.concatenate([q.codebook, jnp.zeros((1, 6))]))
    feature = jax.random.normal(jax.random.key(3), (8, 4, 4, 6))
    f_hats = vq.quantize(q, feature).f_hats
    errors = [float(jnp.mean((feature - f_hat) ** 2)) for f_hat in f_hats]
    assert errors[0] > errors[1] > errors[2]


def test_vq_loss_sends_the_commitment_to_the_feature_and_the_rest_to_the_codes():
    """The feature's gradient is the commitment term's, written out by hand, and zero without it;
    the codes get a gradient from the other term."""
    q, feature = make(), jax.random.normal(jax.random.key(4), (2, 3, 3, 6))

    def loss(feature, codebook, beta):
        f_hats = vq.quantize(q.replace(codebook=codebook), feature).f_hats
        return vq.vq_loss(feature, f_hats, beta)

    d_feature, d_codes = jax.grad(loss, argnums=(0, 1))(feature, q.codebook, 0.25)
    f_hats = vq.quantize(q, feature).f_hats
    by_hand = sum(2 * 0.25 * (feature - f_hat) / feature.size for f_hat in f_hats) / len(f_hats)
    np.testing.assert_allclose(d_feature, by_hand, atol=1e-6)
    assert float(jnp.abs(d_codes).max()) > 0
    d_feature, _ = jax.grad(loss, argnums=(0, 1))(feature, q.codebook, 0.0)
    assert float(jnp.abs(d_feature).max()) == 0


def test_binary_codes_are_the_nearest_corners_of_the_cube():
    """Tokens match a brute-force search among all corners; channel 0 is the lowest bit."""
    q, z = make(codes="bsq"), np.asarray(jax.random.normal(jax.random.key(1), (50, 6)))
    table = np.asarray(vq.code_vectors(q))
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-6)
    assert len(np.unique(table, axis=0)) == 64
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    nearest = np.sum((unit[:, None] - table) ** 2, axis=-1).argmin(axis=1)
    tokens = vq.nearest_code(q, z)
    assert tokens.dtype == jnp.int32
    np.testing.assert_array_equal(tokens, nearest)
    np.testing.assert_array_equal(tokens, vq.nearest_code(q, 100 * z))
    assert int(vq.nearest_code(q, jnp.array([1.0, -1, 1, -1, -1, -1]))) == 0b000101
    np.testing.assert_array_equal(vq.lookup(q, tokens), table[nearest])


def test_binary_codes_need_no_codebook():
    """24 bits, more codes than a table may have, encode and decode; what asks for all codes is
    refused."""
    kernel = jnp.zeros((1, 3, 3, 24, 24))
    q = vq.Quantizer(None, kernel, jnp.zeros((1, 24)), scales=Scales.parse("1,2,3x4"), codes="bsq")
    feature = jax.random.normal(jax.random.key(0), (2, 3, 4, 24))
    tokens, f_hats, _ = vq.quantize(q, feature)
    assert tokens.max() > 2**20 and tokens.min() >= 0
    np.testing.assert_allclose(vq.decode(q, tokens)[-1], f_hats[-1], atol=1e-5)
    assert vq.teacher_input(q, tokens).shape == (2, 16, 24)
    with pytest.raises(UserError, match=r"2\*\*24 codes is too large.* at most 65536"):
        vq.code_vectors(q)


def test_binary_codes_pass_gradients_to_phi_and_the_feature():
    """There is no codebook to learn, but the loss still trains both sides."""
    q, feature = make(codes="bsq"), jax.random.normal(jax.random.key(4), (2, 3, 3, 6))

    def loss(feature, kernel):
        f_hats = vq.quantize(q.replace(phi_kernel=kernel), feature).f_hats
        return vq.vq_loss(feature, f_hats, 0.25)

    for gradient in jax.grad(loss, argnums=(0, 1))(feature, q.phi_kernel):
        assert float(jnp.abs(gradient).max()) > 0


@pytest.mark.parametrize("codes", ["euclidean", "cosine", "bsq"])
def test_num_scales_limits_an_images_maps_and_loss_to_its_leading_scales(codes):
    """Maps, tokens and loss up to an image's number of scales are those without a limit; after it
    the map no longer changes, and the loss does not count."""
    q, num_scales = make("1,2,3x4", codes=codes), jnp.array([1, 3, 2])
    feature = jax.random.normal(jax.random.key(2), (3, 3, 4, 6))
    full, limited = vq.quantize(q, feature), vq.quantize(q, feature, num_scales)
    np.testing.assert_array_equal(
        vq.active_tokens(q.scales, num_scales), [[1] + [0] * 16, [1] * 17, [1] * 5 + [0] * 12]
    )
    for row, num in enumerate([1, 3, 2]):
        for k in range(3):
            expected = full.f_hats[min(k, num - 1)][row]
            np.testing.assert_array_equal(limited.f_hats[k][row], expected)
        span = slice(0, q.scales.offsets[num])
        np.testing.assert_array_equal(limited.tokens[row, span], full.tokens[row, span])
        errors = [
            np.mean((np.asarray(full.f_hats[k][row]) - feature[row]) ** 2) for k in range(num)
        ]
        image = slice(row, row + 1)
        loss = vq.vq_loss(
            feature[image], [f_hat[image] for f_hat in limited.f_hats], 0.25, num_scales[image]
        )
        np.testing.assert_allclose(loss, 1.25 * np.mean(errors), rtol=1e-5)
    np.testing.assert_allclose(
        vq.vq_loss(feature, full.f_hats, 0.25, jnp.full(3, 3)),
        vq.vq_loss(feature, full.f_hats, 0.25),
        rtol=1e-6,
    )


def test_residuals_are_the_vectors_whose_nearest_codes_the_tokens_are():
    """A residual is what the coarser scales leave, averaged to the scale; a codebook that holds
    every residual makes no error, and its residuals are the exact ones."""
    q = make("1,2,3x4")
    feature = jax.random.normal(jax.random.key(2), (2, 3, 4, 6))
    tokens, f_hats, residuals = vq.quantize(q, feature)
    np.testing.assert_allclose(residuals[:, 0], np.mean(feature, axis=(1, 2)), atol=1e-6)
    last = (feature - f_hats[1]).reshape(2, 12, 6)
    np.testing.assert_allclose(residuals[:, 5:], last, atol=1e-6)
    np.testing.assert_array_equal(vq.nearest_code(q, residuals), tokens)
    exact = vq.exact_residuals(q, feature)
    quantized = vq.quantize(q.replace(codebook=exact.reshape(-1, 6)), feature)
    np.testing.assert_allclose(quantized.residuals, exact, atol=1e-5)


def test_sample_num_scales_follows_its_distribution():
    """Frequencies of 20,000 draws lie within 5 standard errors of the mixture: all 10 scales with
    probability 0.7, else uniform from 5 to 10."""
    sampled = vq.sample_num_scales(jax.random.key(0), 20000, 10, rate=0.3, start=4)
    frequencies = np.bincount(np.asarray(sampled), minlength=11) / 20000
    expected = np.array([0] * 5 + [0.3 / 6] * 5 + [0.7 + 0.3 / 6])
    assert np.abs(frequencies - expected).max() < 5 * np.sqrt(0.25 / 20000)
    assert frequencies[:5].sum() == 0
    never = vq.sample_num_scales(jax.random.key(0), 50, 10, rate=0.0, start=4)
    assert np.all(np.asarray(never) == 10)
