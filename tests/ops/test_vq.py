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
def test_which_phi_serves_which_scale(scales, count, expected):
    assert vq.phi_index(scales, count) == expected


def test_nearest_code_is_the_brute_force_one():
    q = make()
    z = jax.random.normal(jax.random.key(1), (7, 5, 6))
    distance = np.sum(
        (np.asarray(z, np.float64)[..., None, :] - np.asarray(q.codebook, np.float64)) ** 2, axis=-1
    )
    np.testing.assert_array_equal(vq.nearest_code(q, z), distance.argmin(axis=-1))


def test_cosine_search_ignores_lengths_but_adds_the_raw_code():
    q = make(codes="cosine")
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
    q = q.replace(
        codebook=jnp.concatenate([q.codebook, jnp.zeros((1, 6))])
    )  # nothing need get worse
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


def test_counts_of_a_part_and_of_codes_too_many_to_count():
    scales, tokens = Scales.parse("1,2"), jnp.array([[3, 0, 0, 1, 2], [1, 1, 1, 1, 1]])
    by_image = vq.code_counts(scales, tokens, 4, jnp.array([[True], [False]]))
    np.testing.assert_array_equal(by_image, [[0, 0, 0, 1], [2, 1, 1, 0]])
    by_token = vq.code_counts(scales, tokens, 4, tokens != 0)
    np.testing.assert_array_equal(by_token, [[0, 1, 0, 1], [0, 5, 1, 0]])
    folded = vq.code_counts(scales, jnp.array([[2**16 + 3, 3, 5, 2**20 + 5, 2**24 - 1]]), 2**24)
    assert folded.shape == (2, vq.count_bins(2**24)) == (2, 2**16)
    assert (folded[0, 3], folded[1, 3], folded[1, 5], folded[1, -1], folded.sum()) == (
        1,
        1,
        2,
        1,
        5,
    )


def test_binary_codes_are_the_nearest_corners_of_the_sphere():
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
    assert (
        int(vq.nearest_code(q, jnp.array([1.0, -1, 1, -1, -1, -1]))) == 0b000101
    )  # channel 0 is the lowest bit
    np.testing.assert_array_equal(vq.lookup(q, tokens), table[nearest])


def test_binary_vocabularies_need_no_table():
    kernel = jnp.zeros((1, 3, 3, 24, 24))
    q = vq.Quantizer(None, kernel, jnp.zeros((1, 24)), scales=Scales.parse("1,2,3x4"), codes="bsq")
    feature = jax.random.normal(jax.random.key(0), (2, 3, 4, 24))
    tokens, totals = vq.encode(q, feature)
    assert tokens.max() > 2**20 and tokens.min() >= 0
    np.testing.assert_allclose(vq.decode(q, tokens)[-1], totals[-1], atol=1e-5)
    assert vq.teacher_input(q, tokens).shape == (2, 16, 24)
    with pytest.raises(UserError, match=r"2\*\*24 codes is too large.* at most 65536"):
        vq.code_vectors(q)


def test_binary_codes_teach_phi_and_the_encoder():
    q, feature = make(codes="bsq"), jax.random.normal(jax.random.key(4), (2, 3, 3, 6))

    def loss(feature, kernel):
        return vq.vq_loss(feature, vq.encode(q.replace(phi_kernel=kernel), feature)[1], 0.25)

    for gradient in jax.grad(loss, argnums=(0, 1))(feature, q.phi_kernel):
        assert float(jnp.abs(gradient).max()) > 0


@pytest.mark.parametrize("codes", ["euclidean", "cosine", "bsq"])
def test_scales_after_an_images_last_add_nothing(codes):
    q, last = make("1,2,3x4", codes=codes), jnp.array([0, 2, 1])
    feature = jax.random.normal(jax.random.key(2), (3, 3, 4, 6))
    whole, dropped = vq.quantize(q, feature), vq.quantize(q, feature, last)
    np.testing.assert_array_equal(
        vq.kept(q.scales, last), [[1] + [0] * 16, [1] * 17, [1] * 5 + [0] * 12]
    )
    for row, k in enumerate([0, 2, 1]):
        for j in range(3):
            np.testing.assert_array_equal(dropped.totals[j][row], whole.totals[min(j, k)][row])
        span = slice(0, q.scales.offsets[k + 1])
        np.testing.assert_array_equal(dropped.tokens[row, span], whole.tokens[row, span])
        errors = [
            np.mean((np.asarray(whole.totals[j][row]) - feature[row]) ** 2) for j in range(k + 1)
        ]
        one = vq.vq_loss(
            feature[row : row + 1],
            [t[row : row + 1] for t in dropped.totals],
            0.25,
            last[row : row + 1],
        )
        np.testing.assert_allclose(one, 1.25 * np.mean(errors), rtol=1e-5)
    none = jnp.full(3, 2)
    np.testing.assert_allclose(
        vq.vq_loss(feature, whole.totals, 0.25, none),
        vq.vq_loss(feature, whole.totals, 0.25),
        rtol=1e-6,
    )


def test_what_is_searched_is_what_tokens_stand_for():
    q = make("1,2,3x4")
    feature = jax.random.normal(jax.random.key(2), (2, 3, 4, 6))
    tokens, totals, searched = vq.quantize(q, feature)
    np.testing.assert_allclose(searched[:, 0], np.mean(feature, axis=(1, 2)), atol=1e-6)
    np.testing.assert_allclose(searched[:, 5:], (feature - totals[1]).reshape(2, 12, 6), atol=1e-6)
    np.testing.assert_array_equal(vq.nearest_code(q, searched), tokens)
    # A codebook that holds every vector asked for makes no error: the residuals are then the ideal
    # ones.
    ideal = vq.ideal_vectors(q, feature)
    exact = vq.quantize(q.replace(codebook=ideal.reshape(-1, 6)), feature)
    np.testing.assert_allclose(exact.searched, ideal, atol=1e-5)


def test_how_often_and_where_scales_are_left_out():
    last = np.asarray(vq.draw_last(jax.random.key(0), 20000, 10, 0.3, 4))
    shares = np.bincount(last, minlength=10) / 20000
    expected = np.array([0] * 4 + [0.3 / 6] * 5 + [0.7 + 0.3 / 6])
    assert np.abs(shares - expected).max() < 5 * np.sqrt(0.25 / 20000) and shares[:4].sum() == 0
    assert np.all(np.asarray(vq.draw_last(jax.random.key(0), 50, 10, 0.0, 4)) == 9)
